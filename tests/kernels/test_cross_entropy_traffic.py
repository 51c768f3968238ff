"""Bytes that the row kernel requests, counted in the interpreter, equal the model to the byte."""

from __future__ import annotations

import pytest
import torch

from lit_eff.kernels.cross_entropy.io_model import RowShape, product_bytes, row_traffic
from lit_eff.kernels.cross_entropy.sizes import LOGITS_BYTES, chunk_rows, padded
from lit_eff.profiling.counted import count_traffic
from lit_eff.profiling.counter import KernelCount
from tests.kernels.loss_cases import LossCase


def requested(count: KernelCount, kind: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, each in count.tensors.items():
        size = getattr(each, kind).requested_bytes
        name = "logits" if name == "gradient+logits" and kind == "loads" else name
        name = "gradient" if name == "gradient+logits" else name
        if size:
            found[name] = found.get(name, 0) + size
    return found


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize(
    "case",
    [
        LossCase(exits=1, vocabulary=640),
        LossCase(exits=2, vocabulary=133, biased=(0, 1)),
        LossCase(exits=2, vocabulary=133, options={"distillation": 0.5, "temperature": 2.0}),
    ],
    ids=str,
)
def test_counts_are_as_modelled(case: LossCase, gradient: bool) -> None:
    inputs = case.draw(torch.float32)
    with count_traffic() as launches, torch.set_grad_enabled(gradient):
        inputs.ours()
    shapes = [
        RowShape(
            case.tokens,
            int((inputs.targets_N != -100).sum()),
            case.vocabulary,
            element_bytes=4,
            gradient=gradient,
            taught=not last and "distillation" in case.options,
            last=last,
            bias_bytes=4 if case.biased else 0,
        )
        for last in (True, False)[: case.exits]
    ]
    assert len(launches) == len(shapes)
    for count, shape in zip(launches, shapes, strict=True):
        modelled = row_traffic(shape)
        assert requested(count, "loads") == modelled.reads
        assert requested(count, "stores") == modelled.writes
        assert count.atomic_bytes == 0


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_gradient_of_one_moves_nothing(factor: float) -> None:
    inputs = LossCase(exits=1).draw(torch.float32)
    losses = inputs.ours()
    with count_traffic() as launches:
        inputs.gradients(losses, factor)
    assert [each.kernel for each in launches] == ["scale_kernel"] * 2
    moved = sum(leaf.numel() * 4 for leaf in inputs.leaves) if factor != 1.0 else 0
    assert sum(each.written_bytes for each in launches) == moved
    # Every program asks for the factor.
    assert all(each.read_bytes == each.written_bytes + 4 for each in launches)


def test_the_logits_move_less_than_the_products() -> None:
    """N 8,192, C 2,048, V 50,304 in three chunks: 0.8 GB written, against 5 GB and more by the products."""
    rows = chunk_rows(8192, 50304 * 2, 1)
    chunks = [rows, rows, 8192 - 2 * rows]
    moved = sum(row_traffic(RowShape(n, n, 50304)).writes["gradient"] for n in chunks)
    assert moved == pytest.approx(8192 * 50304 * 2, rel=1e-4)
    products = sum(product_bytes(n, 2048, 50304, first=i == 0) for i, n in enumerate(chunks))
    assert 5e9 < products < 8e9


@pytest.mark.parametrize("exits", [1, 12])
@pytest.mark.parametrize("tokens", [0, 1, 127, 2688, 8192, 16384, 100_000])
@pytest.mark.parametrize("columns", [50_304, 50_257, 128_256, 1000])
def test_chunks_are_alike_and_fit(tokens: int, columns: int, exits: int) -> None:
    row_bytes = padded(columns) * 2
    rows = chunk_rows(tokens, row_bytes, exits)
    assert rows * row_bytes <= LOGITS_BYTES[exits > 1] or rows <= 128
    if rows < tokens:
        assert rows % 128 == 0
        chunks = -(-tokens // rows)
        assert tokens - (chunks - 1) * rows > rows - chunks * 128  # the last is no sliver
