"""What a decode step's I/O model says of a real model. Counted as modelled: `test_catalogue`."""

from __future__ import annotations

from lit_eff.kernels.decode_step.arguments import Shape
from lit_eff.kernels.decode_step.call import PHASES
from lit_eff.kernels.decode_step.io_model import Step, weight_bytes
from lit_eff.kernels.decode_step.plan import plan_of
from lit_eff.profiling.modelled import Traffic

TINY_LLAMA = Shape(22, 2048, 32, 4, 64, 5632, 32_000)
MATRICES = ("qkv", "output", "gate_up", "down")


def traffic(rows: int) -> Traffic:
    """One launch on an H100, every row at slot 256."""
    shape = TINY_LLAMA
    plan = plan_of(shape.qkv // 2, shape.channels, shape.inner, 132, 90)
    rows_at = ([1] * rows, [256] * rows, [0] * rows)
    return Step(shape, plan, 2, *rows_at, cached_sequences=1, slots=512).traffic(PHASES)


def test_weights_are_read_once_up_to_a_tile_of_rows() -> None:
    """What is new to the chip in a step of 1.1B is all weights; the rest a step asks for comes from L2."""
    one, sixteen = traffic(1), traffic(16)
    matrices = sum(one.reads[name] for name in MATRICES)
    assert matrices + 2 * 32_000 * 2048 == weight_bytes(TINY_LLAMA, 2)
    assert one.sectors is not None
    assert matrices < one.sectors < 1.005 * matrices
    assert all(sixteen.reads[name] == one.reads[name] for name in MATRICES)
    assert traffic(17).reads["down"] == 2 * one.reads["down"]
