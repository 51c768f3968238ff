"""A torch.profiler trace of a few training steps, in the TensorBoard folder."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile, schedule

from lit_eff.errors import UserError
from lit_eff.files import atomic_path
from lit_eff.training.callbacks.tensorboard import summary_writer
from lit_eff.training.callbacks.throughput import Throughput

_WARMUP = 1  # the profiler's first step pays for its own start


class TraceSteps(Callback):
    """Traces a few optimizer steps of rank 0, early in the run.

    Writes ``HOST_RANK.TIME.pt.trace.json.gz`` into the run folder (for TensorBoard's PyTorch profiler,
    Perfetto or chrome://tracing), and the slowest operators as a table under TensorBoard's Text tab.

    Args:
        start: optimizer steps of this run before the trace; fewer if the run is shorter.
        steps: optimizer steps traced.
        rows: operators in the table.
        max_megabytes: a larger file is not kept, and the log says so.
    """

    def __init__(self, start: int = 10, steps: int = 3, rows: int = 25, max_megabytes: float = 64.0) -> None:
        if start < 0 or min(steps, rows, max_megabytes) <= 0:
            raise UserError(
                f"trace: start {start}, steps {steps}, rows {rows}, max_megabytes {max_megabytes}; expected "
                "start from 0 and the others positive"
            )
        self.start = start
        self.steps = steps
        self.rows = rows
        self.max_megabytes = max_megabytes
        self.path: Path | None = None  # of the file written
        self._profiler: profile | None = None
        self._first = self._seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)  # collective: all ranks ask
        first = trainer.global_step + self.start
        latest = trainer.max_steps - self.steps - _WARMUP
        self._first = min(first, max(latest, trainer.global_step)) if trainer.max_steps > 0 else first
        self.path = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        started = self._profiler is not None or self.path is not None
        if started or not trainer.is_global_zero or trainer.global_step != self._first:
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it tells stderr that it starts and stops
        self._seen = trainer.global_step
        self._profiler = profile(
            activities=_activities(),
            schedule=schedule(wait=0, warmup=_WARMUP, active=self.steps, repeat=1),
            on_trace_ready=lambda profiler: self._write(profiler, trainer),
            record_shapes=True,
        )
        self._profiler.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step ends here, so that a validation that follows the last one is not traced."""
        if self._profiler is None or trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        self._profiler.step()  # the last of them calls _write
        if self.path is not None:
            self._stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()  # writes what there is when the run ended within the trace

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._profiler is not None:
            profiler, self._profiler = self._profiler, None
            profiler.stop()

    def _write(self, profiler: profile, trainer: Trainer) -> None:
        name = f"{socket.gethostname()}_{trainer.global_rank}.{time.time_ns() // 1_000_000}.pt.trace.json.gz"
        self.path = self._folder / name
        with atomic_path(self.path) as temporary:
            profiler.export_chrome_trace(str(temporary))
            megabytes = temporary.stat().st_size / 1e6
        if megabytes > self.max_megabytes:
            self.path.unlink()
            trainer.print(
                f"Trace: not kept, {megabytes:.0f} MB is over trace.max_megabytes {self.max_megabytes:g}; "
                f"trace fewer steps than {self.steps}"
            )
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        for callback in callbacks:
            if isinstance(callback, Throughput):
                callback.discard()
        writer = summary_writer(trainer)
        if writer is not None:
            writer.add_text("profile/top_operators", top_operators(profiler, self.rows), trainer.global_step)


def _activities() -> list[ProfilerActivity]:
    cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    return [ProfilerActivity.CPU, *cuda]


def top_operators(profiler: profile, rows: int) -> str:
    """A Markdown table of the operators that took longest by themselves, on the device if there is one."""
    events = profiler.key_averages()
    on_device = any(event.self_device_time_total for event in events)

    def own_time(event: Any) -> float:
        return float(event.self_device_time_total if on_device else event.self_cpu_time_total)

    total = sum(own_time(event) for event in events) or 1.0
    where = "device" if on_device else "CPU"
    lines = [f"| operator | calls | self {where} ms | share | CPU total ms |", "|---|--:|--:|--:|--:|"]
    for event in sorted(events, key=own_time, reverse=True)[:rows]:
        own = own_time(event)
        lines.append(
            f"| `{event.key}` | {event.count} | {own / 1e3:.2f} | {own / total:.1%} | "
            f"{event.cpu_time_total / 1e3:.2f} |"
        )
    return "\n".join(lines)
