"""Bytes that sampling requests, counted in the interpreter, equal the model; and how often a row is read."""

from __future__ import annotations

import pytest
import torch

from lit_eff.kernels.sampling import sample
from lit_eff.kernels.sampling.io_model import SamplingShape, draw_traffic, peak_traffic
from lit_eff.kernels.sampling.plan import Plan
from lit_eff.profiling.counted import count_traffic
from lit_eff.profiling.counter import KernelCount
from tests.kernels.counting import requested
from tests.kernels.sampling_cases import FEATURES, SamplingCase, running


def loads(count: KernelCount) -> dict[str, int]:
    """By tensor; rows without drafts pass the same tensor for both."""
    return {name.removeprefix("draft+"): size for name, size in requested(count, "loads").items()}


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_counts_are_as_modelled(features: dict[str, bool]) -> None:
    case = SamplingCase(3, 192, ties=False, **features)  # whole blocks
    rng = case.generator()
    logits, chosen = torch.from_numpy(case.logits(rng, 3)), case.parameters(rng)
    chosen["temperature"] = torch.ones(3)
    for name, value in (("top_k", 20), ("top_p", 0.9)):
        if name in chosen:
            chosen[name] = torch.full_like(chosen[name], value)
    with running("kernels"), count_traffic() as launches:
        sample(logits, **chosen)
    shape, plan = SamplingShape(3, 192, **features), Plan(64, 4)
    assert len(launches) == shape.passes
    for count in launches[1:-1]:
        assert loads(count)["target"] == shape.row_bytes
    for count, modelled in (
        (launches[0], peak_traffic(shape, plan)),
        (launches[-1], draw_traffic(shape, plan)),
    ):
        assert loads(count) == modelled.reads
        assert requested(count, "stores") == modelled.writes


def test_a_row_is_read_few_times() -> None:
    """Twice without truncation, five times with all of it; the rest is small beside a row."""
    shape, plan = SamplingShape(1, 128_256), Plan()
    assert (shape.passes, SamplingShape(1, 8, top_k=True, top_p=True).passes) == (2, 5)
    both = peak_traffic(shape, plan).total + draw_traffic(shape, plan).total
    assert 2 * shape.row_bytes < both < 2.1 * shape.row_bytes
