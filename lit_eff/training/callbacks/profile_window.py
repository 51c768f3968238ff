"""One recording of training steps: some traced by torch.profiler, then one counted operator by operator.

Counting slows a step several times over, so the step that is counted is not among those that are timed.
"""

from __future__ import annotations

import gzip
import json
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile, schedule

from lit_eff.files import atomic_path
from lit_eff.profiling.attribution import StepCosts, kernel_table, module_table, operator_table, step_table
from lit_eff.profiling.energy import EnergyMeter
from lit_eff.profiling.memory import MemoryTimeline
from lit_eff.profiling.modules import ModuleScopes
from lit_eff.profiling.operators import CostModel, CountOperators
from lit_eff.profiling.report import ReportTable
from lit_eff.profiling.timeline import Sample, Span, Timeline
from lit_eff.profiling.torch_trace import STEPS, TorchTrace, parse_torch_trace
from lit_eff.profiling.traffic import Number

WARMUP = 1  # the profiler's first step pays for its own start
COUNTED = 1
COMPRESSION = 5  # of 9: half the time of the best, a tenth more bytes
NO_METER = Number(None, "unavailable", "no energy meter was given to the callback")


@dataclass
class Recording:
    """What a window found. ``notes`` say what is missing, and why.

    ``began`` is when the timeline starts, by time.perf_counter.
    """

    timeline: Timeline = field(default_factory=Timeline)
    tables: list[ReportTable] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    scalars: dict[str, float] = field(default_factory=dict)
    began: float = 0.0


class Window:
    """Open from the start of an optimizer step; :meth:`batch_ends` closes it a few steps later.

    Args:
        path: of the trace file; none is left there if it is larger than ``max_megabytes``.
        steps: optimizer steps traced.
        rows: of each table.
        count: count one more step, operator by operator.
        meter: of the traced steps' energy.
        models: costs of operators that have an I/O model.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        path: Path,
        *,
        steps: int,
        rows: int,
        max_megabytes: float,
        count: bool,
        meter: EnergyMeter | None,
        models: dict[str, CostModel],
    ) -> None:
        self.path, self.written, self.closed = path, False, False
        self._steps, self._rows, self._max_megabytes = steps, rows, max_megabytes
        self._module, self._meter = module, meter
        self._seen, self._traced = trainer.global_step, -WARMUP
        self._began = 0.0  # the first traced step, by time.perf_counter
        self._trace: TorchTrace | None = None
        self._recording = Recording()
        self._counter = CountOperators(module, models) if count else None
        self._memory = MemoryTimeline(module, trainer.optimizers) if count else None
        self._counted: tuple[float, float] | None = None  # when the counted step began and ended
        self._counting = ExitStack()
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it tells stderr that it starts and stops
        self._tracing = ExitStack()
        self._metering = ExitStack()
        self._tracing.enter_context(ModuleScopes(module, ranges=True))
        self._profiler = profile(
            activities=_activities(),
            schedule=schedule(wait=0, warmup=WARMUP, active=steps, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
        )
        self._profiler.start()
        self._tracing.callback(self._profiler.stop)

    def batch_starts(self) -> None:
        """Before every batch of the window's steps; several make an optimizer step."""
        if self.written and self._counter is not None and self._memory is not None:
            now = time.perf_counter()
            self._counted = (self._counted or (now, now))[0], now
            self._counting.enter_context(self._counter)
            self._counting.enter_context(self._memory)

    def batch_ends(self, step: int) -> None:
        """A step ends here, so that a validation that follows the last one is not recorded.

        Args:
            step: optimizer steps of the run so far.
        """
        self._counting.close()
        if step == self._seen:
            return
        self._seen = step
        if self.written:  # this was the counted one
            assert self._counted is not None
            self._counted = self._counted[0], time.perf_counter()
            self.close()
        else:
            self._traced_step_ends()

    def _traced_step_ends(self) -> None:
        self._traced += 1
        if self._traced in (0, self._steps) and torch.cuda.is_available():
            torch.cuda.synchronize()  # so that the meter and the clock see whole steps
        if self._traced == self._steps:
            self._metering.close()
        self._profiler.step()  # the last of them calls _write
        if self._traced == 0:
            self._began = time.perf_counter()
            if self._meter is not None:
                self._metering.enter_context(self._meter)
        if self._traced == self._steps:
            self._tracing.close()
            if self._counter is None:
                self.close()

    def close(self) -> None:
        """End whatever is under way, and write what there is when the run ended within the trace."""
        self._counting.close()
        self._metering.close()
        self._tracing.close()
        self.closed = True

    def recording(self) -> Recording:
        """What was found; after :meth:`close`."""
        found = self._recording
        found.began = self._began
        energy = NO_METER if self._meter is None else self._meter.joules
        totals = {} if self._counter is None else self._counter.totals
        costs = StepCosts(totals, COUNTED, energy)
        if self._trace is not None:
            found.timeline = self._trace.timeline()
            found.tables += [
                step_table(self._trace, energy),
                module_table(self._trace, costs, self._rows, alike=True),
                module_table(self._trace, costs, self._rows),
                kernel_table(self._trace, self._rows),
            ]
            steps = len(self._trace.steps) or 1
            found.scalars["step_ms"] = 1e3 * sum(step.duration for step in self._trace.steps) / steps
            if energy.value is not None:
                found.scalars["joules_per_step"] = energy.value / steps
        if self._counted is not None and self._memory is not None:
            found.tables += [operator_table(costs, self._rows), self._memory.peak_table()]
            found.scalars["step_gigabytes_modelled"] = sum(t.moved_bytes for t in totals.values()) / 1e9
            found.scalars["step_gflop_modelled"] = sum(t.flops for t in totals.values()) / 1e9
            found.scalars["peak_memory_megabytes"] = sum(self._memory.peak.values()) / 1e6
            self._add_memory(found.timeline, self._counted, self._memory)
        elif self._counter is not None:
            found.notes.append(
                "bytes, FLOPs and memory by module unavailable: the run ended before its counted step"
            )
        return found

    def _add_memory(self, timeline: Timeline, counted: tuple[float, float], memory: MemoryTimeline) -> None:
        began, ended = (moment - self._began for moment in counted)
        timeline.spans.append(Span("step counted operator by operator", STEPS, began, ended - began))
        timeline.samples += [
            Sample(sample.counter, sample.time - self._began, sample.value) for sample in memory.samples
        ]

    def _write(self, profiler: profile) -> None:
        """Keep the trace, compressed; PyTorch's own compression, line by line, takes many times as long."""
        self.written = True
        with TemporaryDirectory() as folder:
            plain = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(plain))
            content = plain.read_bytes()
        self._trace = parse_torch_trace(json.loads(content))
        packed = gzip.compress(content, COMPRESSION)
        megabytes = len(packed) / 1e6
        if megabytes > self._max_megabytes:
            self._recording.notes.append(
                f"trace not kept: {megabytes:.0f} MB is over profile.max_megabytes {self._max_megabytes:g}; "
                f"trace fewer steps than {self._steps}"
            )
            return
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(packed)


def _activities() -> list[ProfilerActivity]:
    cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    return [ProfilerActivity.CPU, *cuda]
