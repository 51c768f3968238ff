"""The traffic record, its table and plot, and the recipe section."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lit_eff.errors import UserError
from lit_eff.profiling.config import (
    AttentionProfile,
    DecodingProfile,
    EnergyProfile,
    KernelsProfile,
    ProfileConfig,
    ServingProfile,
    TrainingProfile,
)
from lit_eff.profiling.tensorboard import traffic_figure, traffic_markdown, write_traffic
from lit_eff.profiling.traffic import KernelTraffic, Number


def record(counted: int = 100, parts: tuple[KernelTraffic, ...] = ()) -> KernelTraffic:
    modelled = {
        "read_bytes": (Number(900, "modelled", "formula"),),
        "written_bytes": (Number(100, "modelled", "formula"),),
    }
    numbers = {
        "read_bytes": (Number(counted, "counted", "interpreter"), Number(100, "modelled", "formula")),
        "written_bytes": (Number(25, "counted", "interpreter"), Number(25, "modelled", "formula")),
        "seconds": (Number(None, "unavailable", "no GPU"),),
    }
    shape: dict[str, int | str | bool] = {"queries": 1024, "causal": True}
    return KernelTraffic("tiled", shape, numbers, KernelTraffic("standard", shape, modelled, parts=parts))


def test_numbers_come_with_their_source() -> None:
    traffic = record()
    assert traffic.get("read_bytes", "counted") == 100
    assert traffic.get("seconds", "measured") is None
    assert traffic.hbm_bytes("counted") == 125
    assert traffic.hbm_bytes("measured") is None
    assert traffic.counted_equals_modelled
    assert not record(101).counted_equals_modelled
    assert traffic.baseline_ratio == 8.0
    with pytest.raises(ValueError, match="unavailable"):
        Number(1, "unavailable", "no reason")
    with pytest.raises(ValueError, match="measured"):
        Number(None, "measured")
    with pytest.raises(ValueError, match="unknown quantities"):
        KernelTraffic("x", {}, {"bytes": ()})


def test_a_ratio_is_of_one_source() -> None:
    """The best that knows both: what DRAM moved, else counts, else formulas; never one over another."""
    traffic = record()
    assert traffic.compared == (125, 1000, "modelled")
    counted = {name: (Number(250, "counted"),) for name in ("read_bytes", "written_bytes")}
    traffic = replace(traffic, baseline=KernelTraffic("standard", {}, counted))
    assert traffic.compared == (125, 500, "counted")
    assert "| counted |" in traffic_markdown([traffic]).splitlines()[-1]
    names = ("dram_read_bytes", "dram_written_bytes")
    own, other = ({name: (Number(each, "measured"),) for name in names} for each in (50, 150))
    baseline = replace(traffic.baseline or traffic, numbers={**counted, **other})
    traffic = replace(traffic, numbers={**traffic.numbers, **own}, baseline=baseline)
    assert traffic.compared == (100, 300, "measured")
    assert traffic.baseline_ratio == 3.0
    assert replace(traffic, baseline=None).baseline_ratio is None


def test_parts_follow_their_sum() -> None:
    part = KernelTraffic("one of three", {}, {"read_bytes": (Number(7, "counted"),)})
    lines = traffic_markdown([record(parts=(part,))]).splitlines()
    assert lines[-2].startswith("| one of three |")
    assert "read_bytes | 7 B | counted" in lines[-2]


def test_record_goes_through_json() -> None:
    traffic = record(parts=(KernelTraffic("one of three", {}, {"flops": (Number(7, "modelled"),)}),))
    assert KernelTraffic.from_dict(json.loads(json.dumps(traffic.to_dict()))) == traffic


def test_table_names_every_source() -> None:
    lines = traffic_markdown([record()]).splitlines()
    assert len(lines) == 2 + 5 + 2 + 1
    assert "| tiled | queries 1024, causal True | read_bytes | 100 B | counted | interpreter |" in lines
    assert "| tiled | queries 1024, causal True | seconds | unavailable | unavailable | no GPU |" in lines
    assert "8.00x" in lines[-1]


def test_plot_has_a_bar_a_kernel() -> None:
    figure = traffic_figure([record()])
    assert figure is not None
    bars = [patch.get_height() for patch in figure.axes[0].patches]
    assert bars == [1000, 125]
    assert traffic_figure([KernelTraffic("x", {})]) is None


def test_tensorboard_holds_table_and_plot(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        write_traffic(writer, [record()], step=3)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["images"] == ["kernels/hbm_bytes"]
    (text,) = events.Tensors("kernels/text_summary")
    assert text.step == 3
    assert b"| tiled |" in text.tensor_proto.string_val[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "TPU"}, "no device 'TPU'"),
        ({"parts": ["atention"]}, "did you mean 'attention'"),
        ({"parts": []}, "profile.parts is empty"),
    ],
)
def test_recipe_section_checks_itself(change: dict[str, Any], message: str) -> None:
    ProfileConfig()
    with pytest.raises(UserError, match=message):
        ProfileConfig(**change)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (AttentionProfile, {"lengths": [64, 0]}, "profile.attention.lengths is 0"),
        (KernelsProfile, {"cases": 0}, "profile.kernels.cases is 0"),
        (TrainingProfile, {"steps": 0}, "profile.training.steps is 0"),
        (TrainingProfile, {"warmup_steps": -1}, "profile.training.warmup_steps is -1"),
        (DecodingProfile, {"tokens": 0}, "profile.decoding.tokens is 0"),
        (ServingProfile, {"requests": 0}, "profile.serving.requests is 0"),
        (EnergyProfile, {"pue": 0.9}, "profile.energy.pue is 0.9; expected 1 or more"),
    ],
)
def test_parts_check_themselves(part: type, change: dict[str, Any], message: str) -> None:
    part()
    with pytest.raises(UserError, match=message):
        part(**change)
