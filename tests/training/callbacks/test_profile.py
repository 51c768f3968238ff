"""The profile of a few training steps: what it finds, what it costs, and that it is bounded."""

from __future__ import annotations

import gzip
import json
import math
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from lit_eff.errors import UserError
from lit_eff.models.config import ExitConfig
from lit_eff.profiling.report import ReportTable
from lit_eff.profiling.traffic import Number
from lit_eff.training.callbacks import Profile
from tests.training.callbacks.tiny import BATCH, CONTEXT, make_config, make_data, make_module, make_trainer


class Seen(Callback):
    """The optimizer step after which the trace was there."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.written_at: int | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self.profile.path is not None and self.written_at is None:
            self.written_at = trainer.global_step


def rows_of(table: ReportTable) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


class FixedMeter:
    """Says 6 J for whatever it was entered around, and how often that was."""

    def __init__(self) -> None:
        self.entered = self.left = 0

    @property
    def joules(self) -> Number:
        return Number(6.0, "measured", "a test's meter")

    def __enter__(self) -> FixedMeter:
        self.entered += 1
        return self

    def __exit__(self, *exception: object) -> None:
        self.left += 1


def test_trace_of_the_steps_asked_for(tmp_path: Path, text: Path) -> None:
    profile = Profile(start=2, steps=2, rows=5)
    seen = Seen(profile)
    trainer = make_trainer(
        tmp_path, profile, seen, max_steps=8, accumulate_grad_batches=2, val_check_interval=16
    )
    trainer.fit(make_module(), datamodule=make_data(text))
    assert profile.path is not None
    assert profile.path.parent == Path(str(trainer.log_dir))
    assert profile.path.name.endswith(".pt.trace.json.gz")
    assert seen.written_at == 2 + 1 + 2  # start, the profiler's own warm-up, the two steps
    with gzip.open(profile.path, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert len({name for name in names if name.startswith("ProfilerStep#")}) == 2
    assert sum(name == "autograd::engine::evaluate_function: MmBackward0" for name in names) > 0
    # Two optimizer steps, not two batches: four backward passes.
    assert sum(name.startswith("Optimizer.step#AdamW.step") for name in names) == 2
    assert names.count("module: model.blocks.0") == 4

    found = EventAccumulator(str(trainer.log_dir), {"tensors": 0}).Reload()
    (table,) = found.Tensors("profile/a_training_step_by_operator/text_summary")
    lines = table.tensor_proto.string_val[0].decode().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 5
    shares = [float(row.split("|")[4]) for row in rows[2:]]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1.001


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory, text: Path) -> tuple[Profile, Trainer]:
    """A run with validation in between, two batches a step, an energy meter and a counted step."""
    profile = Profile(start=1, steps=2, rows=200, count=True, meter=FixedMeter())
    trainer = make_trainer(
        tmp_path_factory.mktemp("counted"),
        profile,
        max_steps=7,
        accumulate_grad_batches=2,
        val_check_interval=2,
    )
    trainer.fit(make_module(), datamodule=make_data(text))
    return profile, trainer


def test_time_bytes_and_energy_by_module(counted: tuple[Profile, Trainer]) -> None:
    profile, trainer = counted
    assert profile.notes == []
    tables = {table.title: rows_of(table) for table in profile.tables}
    modules = {(row["module"], row["phase"]): row for row in tables["A training step by module"]}
    config = make_config()
    weight = 4 * config.mlp_size * config.model_dim
    tokens = BATCH * CONTEXT
    hidden, inner = 4 * tokens * config.model_dim, 4 * tokens * config.mlp_size
    up = modules["model.blocks.0.mlp.up", "forward"]
    # Two batches a step: the product reads its input and weight and writes its output.
    assert up["MB (modelled)"] == pytest.approx(2 * (hidden + weight + inner) / 1e6)
    assert up["GFLOP (modelled)"] == pytest.approx(2 * 2 * tokens * config.model_dim * config.mlp_size / 1e9)
    backward = modules["model.blocks.0.mlp.up", "backward"]
    assert backward["GFLOP (modelled)"] == pytest.approx(2 * up["GFLOP (modelled)"])
    assert up["ms (measured)"] > 0
    assert up["GB/s"] == pytest.approx(up["MB (modelled)"] / up["ms (measured)"])
    assert any(phase == "optimizer" for _, phase in modules)
    kinds = {(row["module"], row["phase"]): row for row in tables["A training step by kind of module"]}
    assert kinds["model.blocks.*.mlp.up", "forward"]["GFLOP (modelled)"] == pytest.approx(
        3 * up["GFLOP (modelled)"]
    )
    assert not any(char.isdigit() for module, _ in kinds for char in module)
    # All time and all energy are somewhere: 6 J over two steps.
    assert sum(row["share of time"] for row in modules.values()) == pytest.approx(1)
    assert sum(row["J"] for row in modules.values()) == pytest.approx(3)
    assert up["source of J"] == "measured: a test's meter"
    assert isinstance(profile.meter, FixedMeter)
    assert (profile.meter.entered, profile.meter.left) == (1, 1)

    steps = tables["Training steps"]
    assert [row["step"] for row in steps] == ["step 0", "step 1"]
    assert sum(row["J"] for row in steps) == pytest.approx(6)
    operators = tables["Bytes of a training step by operator"]
    adam = next(row for row in operators if row["operator"] == "aten::_fused_adamw_")
    parameters = sum(each.numel() for each in trainer.lightning_module.parameters())
    assert adam["MB written"] == pytest.approx(3 * 4 * parameters / 1e6, rel=1e-3)
    peak = {row["what"]: row["MB (counted)"] for row in tables["Memory at its peak"]}
    assert peak["parameters"] == pytest.approx(4 * parameters / 1e6)
    assert peak["optimizer state"] == pytest.approx(2 * 4 * parameters / 1e6, rel=1e-2)
    assert peak["activations"] > 0

    events = EventAccumulator(str(trainer.log_dir), {"scalars": 0}).Reload()
    (joules,) = events.Scalars("profile/joules_per_step")
    assert joules.value == pytest.approx(3)
    assert events.Scalars("profile/step_ms")[0].value == pytest.approx(
        statistics.mean(row["ms (measured)"] for row in steps), rel=1e-3
    )


def test_the_timeline_of_a_recording(counted: tuple[Profile, Trainer]) -> None:
    timeline = counted[0].timeline
    names = {span.name for span in timeline.spans}
    assert {"step 0", "step 1", "model.blocks.0.mlp.up", "aten::addmm"} & names >= {
        "step 0",
        "model.blocks.0.mlp.up",
    }
    (later,) = (span for span in timeline.spans if span.name == "step counted operator by operator")
    last = next(span for span in timeline.spans if span.name == "step 1")
    assert later.start >= last.start + last.duration - 0.05
    assert {sample.counter for sample in timeline.samples} >= {"activations, B", "parameters, B"}
    assert all(later.start - 0.05 <= s.time <= later.start + later.duration + 0.05 for s in timeline.samples)


def test_a_validation_after_the_last_step_is_not_traced(tmp_path: Path, text: Path) -> None:
    with_validation, without = Profile(steps=1), Profile(steps=1)
    counts = []
    for profile, interval in ((with_validation, 2), (without, 1000)):
        trainer = make_trainer(tmp_path / str(interval), profile, max_steps=2, val_check_interval=interval)
        trainer.fit(make_module(), datamodule=make_data(text))
        assert profile.path is not None
        with gzip.open(profile.path, "rt", encoding="utf-8") as file:
            counts.append(
                sum(event.get("name") == "aten::linear" for event in json.load(file)["traceEvents"])
            )
    assert counts[0] == counts[1] > 0


def test_a_short_run_is_traced_all_the_same_and_a_large_trace_not_kept(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = Profile(start=100, steps=1, max_megabytes=0.001, count=True)
    make_trainer(tmp_path, profile, max_steps=2).fit(make_module(), datamodule=make_data(text))
    assert profile.path is not None
    assert not profile.path.exists()
    printed = capsys.readouterr().out
    assert "over profile.max_megabytes 0.001" in printed
    assert "the run ended before its counted step" in printed


def test_profiling_changes_no_bit_of_the_run(tmp_path: Path, text: Path) -> None:
    """Counting as well, where nothing is compiled."""
    weights = []
    for profile in (Profile(start=1, steps=1, count=True), Profile(start=1000)):
        config = make_config(dropout=0.1, exits=ExitConfig((1, 2), "norm"))
        module = make_module(config)
        trainer = make_trainer(tmp_path / str(profile.start), profile, max_steps=5)
        trainer.fit(module, datamodule=make_data(text))
        weights.append([parameter.detach().clone() for parameter in module.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


class Hooked(Callback):
    """At which steps anything of the profile is hooked into the module, torch or the dispatcher."""

    def __init__(self) -> None:
        self.steps: set[int] = set()

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        hooked = any(each._forward_hooks or each._forward_pre_hooks for each in pl_module.modules())
        patched = _get_current_dispatch_mode_stack() or torch_module._global_forward_hooks
        if hooked or patched or torch.autograd._profiler_enabled():
            self.steps.add(trainer.global_step)


def test_it_hooks_nothing_outside_its_windows(tmp_path: Path, text: Path) -> None:
    hooked, profile = Hooked(), Profile(start=2, steps=1, every=5, count=True)
    trainer = make_trainer(tmp_path, profile, hooked, max_steps=12)
    trainer.fit(make_module(), datamodule=make_data(text))
    assert hooked.steps == {2, 3, 4, 7, 8, 9}  # warm-up, traced, counted; and again
    assert len(list(Path(str(trainer.log_dir)).glob("*.pt.trace.json.gz"))) == 2


def test_a_trace_makes_room_when_written_not_when_counted(tmp_path: Path, text: Path) -> None:
    first = Profile(start=0, steps=1)
    make_trainer(tmp_path / "first", first, max_steps=2).fit(make_module(), datamodule=make_data(text))
    assert first.path is not None
    room = 1.5 * first.path.stat().st_size / 1e6  # for one of them
    profile = Profile(start=0, steps=1, every=3, count=True, max_megabytes=room)
    sizes = TraceSizes(profile)
    trainer = make_trainer(tmp_path / "often", profile, sizes, max_steps=6, val_check_interval=1000)
    trainer.fit(make_module(), datamodule=make_data(text))
    assert len(sizes.totals) == 2
    assert max(sizes.totals) <= room * 1e6


@pytest.mark.parametrize(
    ("at", "max_steps", "rank", "begins"),
    [
        (0, 1000, 0, 10),
        (500, 1000, 0, 510),  # a resumed run counts from where it is
        (993, 1000, 0, 995),  # too short to wait: a recording takes five steps
        (998, 1000, 0, 998),
        (0, -1, 0, 10),
        (0, 1000, 1, math.inf),  # other ranks never
    ],
)
def test_when_a_recording_begins(
    tmp_path: Path, at: int, max_steps: int, rank: int, begins: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []

    class Opened:
        written, closed, path = False, False, None

        def batch_starts(self) -> None:
            pass

    def open_window(self: Profile, trainer: Any, module: Any) -> Opened:
        opened.append(trainer.global_step)
        return Opened()

    monkeypatch.setattr(Profile, "_open", open_window)
    profile = Profile(start=10, steps=3, count=True)
    trainer: Any = SimpleNamespace(
        log_dir=str(tmp_path), global_step=at, max_steps=max_steps, is_global_zero=rank == 0
    )
    profile.on_train_start(trainer, None)  # type: ignore[arg-type]
    for trainer.global_step in range(at, at + 30):
        profile.on_train_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
    assert opened == ([] if begins == math.inf else [begins])


class Timed(Callback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def test_outside_its_windows_it_costs_less_than_a_hundredth_of_a_step(tmp_path: Path, text: Path) -> None:
    """Of the smallest step there is; real ones are longer, and what an idle step costs does not grow."""
    profile, timed = Profile(start=10**6), Timed()
    trainer = make_trainer(tmp_path, profile, timed, max_steps=15, val_check_interval=1000)
    module = make_module()
    trainer.fit(module, datamodule=make_data(text))
    profile._next = 10**6
    idle = []
    for _ in range(1000):
        start = time.perf_counter()
        profile.on_train_batch_start(trainer, module, None, 0)
        profile.on_train_batch_end(trainer, module, None, None, 0)
        idle.append(time.perf_counter() - start)
    assert profile._window is None
    assert statistics.median(idle) < 0.01 * statistics.median(timed.seconds[5:])


def test_traces_of_a_run_make_room_for_one_another(tmp_path: Path) -> None:
    profile = Profile(max_megabytes=1.0)
    paths = [tmp_path / f"{index}.pt.trace.json.gz" for index in range(20)]
    sizes: list[int] = []
    for index, path in enumerate(paths):
        path.write_bytes(bytes(300_000 if index < 10 else 600_000))
        profile._make_room(path)
        sizes.append(path.stat().st_size)
        fitting = max(n for n in range(1, index + 2) if sum(sizes[-n:]) <= 1e6)
        assert [each for each in paths if each.exists()] == paths[index + 1 - fitting : index + 1]


class TraceSizes(Callback):
    """Bytes of all trace files together after every step, where they changed; stands after the profile."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.totals: list[int] = []
        self._last: Path | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self.profile.path != self._last:
            self._last = self.profile.path
            files = Path(str(trainer.log_dir)).glob("*.pt.trace.json.gz")
            self.totals.append(sum(file.stat().st_size for file in files))


@pytest.mark.slow
def test_traces_stay_within_their_bound_over_ten_thousand_steps(tmp_path: Path, text: Path) -> None:
    profile = Profile(start=10, steps=2, every=100, max_megabytes=1.5)
    sizes = TraceSizes(profile)
    trainer = make_trainer(
        *(tmp_path, profile, sizes), max_steps=10_000, val_check_interval=10**6, log_every_n_steps=1000
    )
    trainer.fit(make_module(), datamodule=make_data(text))
    assert len(sizes.totals) == 100
    assert max(sizes.totals) <= 1.5e6
    kept = sorted(Path(str(trainer.log_dir)).glob("*.pt.trace.json.gz"))
    assert len(kept) > 1
    assert kept[-1] == profile.path
    assert sum(path.stat().st_size for path in kept) <= 1.5e6 < sum(sizes.totals)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"start": -1}, {"rows": 0}, {"every": 3}])
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="profile"):
        Profile(**settings)
