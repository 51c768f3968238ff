"""Medians, their noise, and turns."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

import pytest
import torch

from lit_eff.bench.measure import Sample, interleaved, tensor_bytes


class Script:
    """A stopwatch that runs the function and takes the time it returns."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def time(self, function: Callable[[], object]) -> float:
        name, milliseconds = function()  # type: ignore[misc]
        self.order.append(name)
        return float(milliseconds)


def test_contenders_take_turns_and_the_first_rounds_are_not_read() -> None:
    calls = {
        "a": iter([100.0, 100.0, 1.0, 2.0, 3.0, 4.0, 100.0]),
        "b": iter([9.0, 9.0, 5.0, 5.0, 5.0, 5.0, 5.0]),
    }
    stopwatch = Script()
    found = interleaved({name: (lambda n=name: (n, next(calls[n]))) for name in calls}, 5, stopwatch)
    assert found["a"].milliseconds == (1.0, 2.0, 3.0, 4.0, 100.0)
    assert found["a"].median == 3.0
    assert found["b"].noise == 0.0
    rounds = [set(stopwatch.order[i : i + 2]) for i in range(0, 14, 2)]
    assert rounds == [{"a", "b"}] * 7
    assert len({tuple(stopwatch.order[i : i + 2]) for i in range(0, 14, 2)}) == 2  # not always the same first


def test_noise_covers_the_true_median_as_often_as_it_says() -> None:
    """Half-widths of a 95% interval, on normal samples whose median is known to be 10."""
    rng = random.Random(0)
    inside = 0
    for _ in range(2000):
        sample = Sample(tuple(rng.gauss(10, 0.5) for _ in range(20)))
        inside += abs(sample.median - 10) <= sample.noise * sample.median
    assert 0.88 <= inside / 2000 <= 0.97


def test_noise_ignores_a_straggler() -> None:
    steady = [10 + 0.01 * (i % 5) for i in range(20)]
    straggler = [*steady[:-1], 1000.0]
    assert Sample(tuple(straggler)).noise == pytest.approx(Sample(tuple(steady)).noise, rel=0.5)
    assert statistics.mean(straggler) > 50


def test_tensor_bytes() -> None:
    x = torch.empty(3, 5, dtype=torch.bfloat16)
    assert tensor_bytes([x, (x, None, 3)]) == 60


@pytest.mark.gpu
def test_peak_memory_beyond_the_result() -> None:
    from lit_eff.bench.measure import peak_extra_bytes

    def function() -> torch.Tensor:
        scratch = torch.empty(2**24, device="cuda")
        return scratch[:1].clone()

    assert peak_extra_bytes(function) == pytest.approx(2**26, abs=2**12)
