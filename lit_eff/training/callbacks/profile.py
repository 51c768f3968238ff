"""A profile of a few training steps: time, traffic, FLOPs, energy and memory by module and kernel."""

from __future__ import annotations

import math
import socket
import time
from collections import deque
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_eff.errors import UserError
from lit_eff.kernels.operator_costs import operator_costs
from lit_eff.profiling.energy import EnergyMeter
from lit_eff.profiling.report import ReportTable
from lit_eff.profiling.tensorboard import table_markdown
from lit_eff.profiling.timeline import Timeline
from lit_eff.training.callbacks.profile_window import COUNTED, WARMUP, Window
from lit_eff.training.callbacks.tensorboard import summary_writer
from lit_eff.training.callbacks.throughput import Throughput


class Profile(Callback):
    """Records a few optimizer steps of rank 0, early in the run and, if asked, again and again.

    Writes ``HOST_RANK.TIME.pt.trace.json.gz`` into the run folder (for TensorBoard's PyTorch profiler,
    Perfetto or chrome://tracing), tables under TensorBoard's Text tab, and ``profile/`` scalars. Outside its
    steps it hooks nothing; the other ranks only ever compare a number.

    Args:
        start: optimizer steps of this run before the trace; fewer if the run is shorter.
        steps: optimizer steps traced.
        every: optimizer steps from one trace to the next; None traces once.
        rows: of each table.
        max_megabytes: of all trace files of a run: older ones make room, and a single one that is larger is
            not kept, which the log says.
        count: after the trace, model bytes and FLOPs of one more step operator by operator, and follow its
            memory. That step takes several times as long, and compiled layers run uncompiled in it.
        meter: of the traced steps' energy.

    Attributes:
        path: the trace file written last.
        timeline, tables, notes: what the latest recording found; notes say what is missing, and why.
        began: when the timeline starts, by time.perf_counter.

    Raises:
        UserError: for a setting out of range.
    """

    def __init__(
        self,
        start: int = 10,
        steps: int = 3,
        every: int | None = None,
        rows: int = 25,
        max_megabytes: float = 64.0,
        count: bool = False,
        meter: EnergyMeter | None = None,
    ) -> None:
        if start < 0 or min(steps, rows, max_megabytes) <= 0:
            raise UserError(
                f"profile: start {start}, steps {steps}, rows {rows}, max_megabytes {max_megabytes}; "
                "expected start from 0 and the others positive"
            )
        self._length = WARMUP + steps + (COUNTED if count else 0)
        if every is not None and every < self._length:
            raise UserError(
                f"profile.every is {every}; expected at least the {self._length} steps that one trace takes"
            )
        self.start = start
        self.steps = steps
        self.every = every
        self.rows = rows
        self.max_megabytes = max_megabytes
        self.count = count
        self.meter = meter
        self.path: Path | None = None
        self.timeline = Timeline()
        self.tables: list[ReportTable] = []
        self.notes: list[str] = []
        self.began = 0.0
        self._window: Window | None = None
        self._next = math.inf  # optimizer step at which the next recording begins
        self._kept: deque[tuple[Path, float]] = deque()  # trace files with their megabytes, oldest first

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)  # collective: all ranks ask
        first = trainer.global_step + self.start
        if trainer.max_steps > 0:
            first = min(first, max(trainer.max_steps - self._length, trainer.global_step))
        self._next = first if trainer.is_global_zero else math.inf
        self.path = None
        self._kept.clear()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._window is None:
            if trainer.global_step < self._next:
                return
            self._next = math.inf if self.every is None else trainer.global_step + self.every
            self._window = self._open(trainer, pl_module)
        self._window.batch_starts()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._window is None:
            return
        self._window.batch_ends(trainer.global_step)
        self._keep(self._window)
        if self._window.closed:
            self._finish(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._finish(trainer)

    def _open(self, trainer: Trainer, module: LightningModule) -> Window:
        name = f"{socket.gethostname()}_{trainer.global_rank}.{time.time_ns() // 1_000_000}.pt.trace.json.gz"
        return Window(
            trainer,
            module,
            self._folder / name,
            steps=self.steps,
            rows=self.rows,
            max_megabytes=self.max_megabytes,
            count=self.count,
            meter=self.meter,
            models=operator_costs(),
        )

    def _finish(self, trainer: Trainer) -> None:
        if self._window is None:
            return
        window, self._window = self._window, None
        window.close()
        if not window.written:
            return
        self._keep(window)
        found = window.recording()
        self.timeline, self.tables, self.notes = found.timeline, found.tables, found.notes
        self.began = found.began
        for note in found.notes:
            trainer.print(f"Profile: {note}")
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        for callback in callbacks:
            if isinstance(callback, Throughput):
                callback.discard()
        writer = summary_writer(trainer)
        if writer is None:
            return
        for table in found.tables:
            tag = table.title.lower().replace(" ", "_")
            writer.add_text(f"profile/{tag}", table_markdown(table), trainer.global_step)
        for scalar, value in found.scalars.items():
            writer.add_scalar(f"profile/{scalar}", value, trainer.global_step)

    def _keep(self, window: Window) -> None:
        """A trace counts from when it is written, which is before the counted step."""
        if window.written and self.path != window.path:
            self.path = window.path
            self._make_room(window.path)

    def _make_room(self, path: Path) -> None:
        if not path.exists():
            return
        self._kept.append((path, path.stat().st_size / 1e6))
        while sum(megabytes for _, megabytes in self._kept) > self.max_megabytes:
            self._kept.popleft()[0].unlink(missing_ok=True)
