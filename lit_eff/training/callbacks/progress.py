"""One progress bar for a whole run: steps, loss of every exit, tokens per second."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from lit_eff.models.transformer import Transformer

_EXIT = re.compile(r"_exit_(\d+)$")


class _Bars(Progress):
    """Bars with a line of text below them: beside them it would leave an 80-column bar no room."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(self.note)


class RunProgress(ProgressBar):
    """A bar over the run's optimizer steps, and one for each validation, test or prediction while it runs.

    On a terminal the bars redraw in place. Elsewhere (a file, a CI log) a line is written at most every
    ``seconds``, and one after each validation.

    Args:
        seconds: between lines, off a terminal.
        refresh: times a second that the bars are redrawn; metrics are read off the device as often.
    """

    def __init__(self, seconds: float = 15.0, refresh: float = 2.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.refresh = refresh
        self._enabled = True
        self._bars: _Bars | None = None
        self._run: TaskID | None = None
        self._evaluation: TaskID | None = None
        self._drawn = 0.0
        self._began = 0.0
        self._first_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._drawn = time.monotonic()

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False
        self._close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bars."""
        if self._bars is not None:
            self._bars.console.print(*args, markup=False, highlight=False)
        else:
            print(*args, **kwargs)

    # --- bars or lines -------------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._bars is not None or not self._enabled or not sys.stderr.isatty():
            return
        self._bars = _Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            refresh_per_second=self.refresh,
        )
        self._bars.start()

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._run = self._evaluation = None

    def _due(self) -> bool:
        """Whether it is time to draw again; metrics are only read then."""
        interval = 1 / self.refresh if self._bars is not None else self.seconds
        if not self._enabled or time.monotonic() - self._drawn < interval:
            return False
        self._drawn = time.monotonic()
        return True

    def _line(self, text: str) -> None:
        if self._enabled and self._bars is None:
            print(text, file=sys.stderr, flush=True)

    # --- training ------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open()
        self._began = self._drawn = time.monotonic()
        self._first_step = trainer.global_step
        if self._bars is not None:
            self._run = self._bars.add_task(
                "Training", total=_total(trainer.max_steps), completed=trainer.global_step
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._due():
            return
        note = training_note(trainer)
        if self._bars is not None and self._run is not None:
            self._bars.note = note
            self._bars.update(self._run, completed=trainer.global_step)
        else:
            total = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
            left = self._time_left(trainer)
            self._line(f"step {trainer.global_step}{total}  {note}{left}")

    def _time_left(self, trainer: Trainer) -> str:
        done = trainer.global_step - self._first_step
        if done <= 0 or trainer.max_steps <= 0:
            return ""
        seconds = (time.monotonic() - self._began) / done * (trainer.max_steps - trainer.global_step)
        return f"  {int(seconds // 60)} min {int(seconds % 60)} s left"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bars is not None and self._run is not None:
            self._bars.note = training_note(trainer)
            self._bars.update(self._run, completed=trainer.global_step)
        self._close()

    # --- evaluation ----------------------------------------------------------------------------------------

    def _begin(self, what: str, batches: list[int | float]) -> None:
        self._open()
        if self._bars is not None:
            self._evaluation = self._bars.add_task(what, total=_total(sum(batches)))

    def _advance(self, what: str, batches: list[int | float], batch_idx: int) -> None:
        if self._bars is not None and self._evaluation is not None:
            self._bars.advance(self._evaluation)
        elif self._due():
            self._line(f"{what} {batch_idx + 1}/{sum(batches)} batches")

    def _end(self) -> None:
        if self._bars is not None and self._evaluation is not None:
            self._bars.remove_task(self._evaluation)
            self._evaluation = None
        if self._run is None:
            self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._begin("Trying validation" if trainer.sanity_checking else "Validating", batches)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._advance("validating", trainer.num_val_batches, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "fit" and self._enabled:
            self.print(f"step {trainer.global_step}  {validation_note(trainer)}", file=sys.stderr)
            self._drawn = time.monotonic()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("Testing", trainer.num_test_batches)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._advance("testing", trainer.num_test_batches, batch_idx)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("Predicting", trainer.num_predict_batches)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._advance("predicting", trainer.num_predict_batches, batch_idx)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()


def _total(count: int | float) -> float | None:
    return None if count < 0 or math.isinf(count) else count


def _by_layer(trainer: Trainer, prefix: str) -> dict[int, float]:
    found = {}
    for name, value in trainer.callback_metrics.items():
        match = _EXIT.search(name)
        if match and name.startswith(prefix):
            found[int(match.group(1))] = float(value)
    return dict(sorted(found.items()))


def training_note(trainer: Trainer) -> str:
    """Loss, each exit's by layers run, and speed: ``loss 4.102 (2: 4.911, 4: 4.021)  12,345 tokens/s``."""
    metrics = trainer.callback_metrics
    parts = []
    if "train/loss" in metrics:
        exits = ", ".join(
            f"{layer}: {value:.3f}" for layer, value in _by_layer(trainer, "train/loss_exit_").items()
        )
        parts.append(f"loss {float(metrics['train/loss']):.3f}" + (f" ({exits})" if exits else ""))
    if "train/tokens_per_second" in metrics:
        parts.append(f"{float(metrics['train/tokens_per_second']):,.0f} tokens/s")
    return "  ".join(parts)


def validation_note(trainer: Trainer) -> str:
    """What is trained of each exit, by layers run: ``validation perplexity 2: 91.2, 4: 70.1``."""
    model = trainer.lightning_module.model
    assert isinstance(model, Transformer)
    measure = "accuracy" if model.config.labels else "perplexity"
    if model.config.exits.classifier:  # the exits themselves stay as they are
        measure = "score_auroc"
    values = _by_layer(trainer, f"validation/{measure}_exit_")
    return f"validation {measure} " + ", ".join(f"{layer}: {value:.4g}" for layer, value in values.items())
