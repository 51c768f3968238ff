"""Progress bars for the slow passes over a corpus, on standard error so that reports can be piped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

T = TypeVar("T")


class Stages:
    """A context manager that shows one line for each stage of a job, the current one moving."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._waiting: TaskID | None = None

    def __enter__(self) -> Stages:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish_waiting()
        self._bars.stop()

    def count(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield the items while a line counts them; it pulses when ``total`` is not known."""
        self._finish_waiting()
        task = self._bars.add_task(description, total=total)
        seen = 0
        for item in items:
            yield item
            seen += 1
            if seen % 256 == 0:  # an update takes a lock: not for every item
                self._bars.update(task, completed=seen)
        self._bars.update(task, completed=seen, total=seen)

    def wait(self, description: str) -> None:
        """A pulsing line, until the next stage, for a step that cannot tell how far it is."""
        self._finish_waiting()
        self._waiting = self._bars.add_task(description, total=None)

    def _finish_waiting(self) -> None:
        if self._waiting is not None:
            self._bars.update(self._waiting, completed=1, total=1)
            self._waiting = None
