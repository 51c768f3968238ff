"""Cells whose work is reading one weight: a CUDA graph of calls on rotating copies a contender.

The rate is the weight's bytes over the time of a call; copies rotate past the L2 size, so none is warm, and
nobody's launches are timed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lit_eff.bench.attention_peers import UnavailableError, attempt, reason_of
from lit_eff.bench.attention_training import raise_if_lost
from lit_eff.bench.measure import Replay, Stopwatch, interleaved, peak_extra_bytes
from lit_eff.bench.results import Measurement, timed, with_ratios

ROTATED_BYTES = 8 * 50 * 2**20  # at the least: 8 L2 caches of an H100
GRAPH_BYTES = 2**31  # read by one replay, at the least: a millisecond or so
MAX_CALLS = 1000  # in one graph


@dataclass(frozen=True)
class Contender:
    """``call`` runs it on one copy of the weight; ``fault`` says what is wrong with its result."""

    name: str
    call: Callable[[Tensor], Any]
    fault: Callable[[Any], str | None]
    ours: bool = False


class WrongError(UnavailableError):
    """It ran, and its result is not the right one."""


def copies(outputs: int, channels: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Enough weights (O, C) of random numbers to rotate through, each row of length 1 or so."""
    count = max(2, math.ceil(ROTATED_BYTES / (outputs * channels * dtype.itemsize)))
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (count, outputs, channels)
    return torch.randn(shape, device="cuda", dtype=dtype, generator=generator).mul_(channels**-0.5)


def graph_of(functions: Sequence[Callable[[], object]], calls: int) -> torch.cuda.CUDAGraph:
    """A graph of ``calls`` calls, of the functions in turn."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # first calls allocate and choose algorithms, which a capture may not
        for _ in range(2):
            functions[-1]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(calls):
            functions[index % len(functions)]()
    return graph


def measure(
    place: tuple[str, str, str],
    weights_ROC: Tensor,
    contenders: Sequence[Contender],
    stopwatch: Stopwatch,
    rounds: int,
) -> list[Measurement]:
    """All contenders of one cell; ``place`` is its section, label and quantity."""
    bytes_read = weights_ROC[0].numel() * weights_ROC.element_size()
    calls = max(len(weights_ROC), min(MAX_CALLS, math.ceil(GRAPH_BYTES / bytes_read)))
    replays: dict[str, Replay] = {}
    found: dict[str, Measurement] = {}
    for contender in contenders:
        name = contender.name
        found[name] = Measurement(*place[:2], name, place[2], "GB/s", contender.ours)
        try:
            with attempt() as caught:
                result = contender.call(weights_ROC[0])
            if fault := contender.fault(result):
                raise WrongError(f"wrong: {fault}")
            extra = peak_extra_bytes(lambda call=contender.call: call(weights_ROC[0]))  # type: ignore[misc]
            found[name] = replace(found[name], extra_bytes=extra)
            turns = [functools.partial(contender.call, weight_OC) for weight_OC in weights_ROC]
            replays[name] = Replay(graph_of(turns, calls), contender)
        except Exception as error:
            raise_if_lost(error)
            wrong = isinstance(error, WrongError)
            found[name] = replace(found[name], unavailable=reason_of(error, caught), wrong=wrong)
    for name, sample in interleaved(replays, rounds, stopwatch).items():
        found[name] = timed(found[name], sample, bytes_read / 1e6, calls)
    return with_ratios(list(found.values()))
