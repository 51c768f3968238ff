"""What the loss launches, and its I/O model of real sizes. Counted as modelled: `test_catalogue`."""

from __future__ import annotations

import pytest
import torch

from lit_eff.kernels.cross_entropy.io_model import RowShape, product_bytes, row_traffic
from lit_eff.kernels.cross_entropy.sizes import LOGITS_BYTES, chunk_rows, padded
from lit_eff.profiling.counted import count_traffic
from tests.kernels.loss_cases import LossCase


@pytest.mark.usefixtures("interpreter")
def test_the_public_function_launches_what_is_modelled() -> None:
    """A launch an exit; everything else about the count is `test_catalogue`'s."""
    case = LossCase(exits=2, options={"distillation": 0.5})
    inputs = case.draw(torch.float32)
    with count_traffic() as launches:
        inputs.ours()
    counted = int((inputs.targets_N != -100).sum())
    for count, last in zip(launches, (True, False), strict=True):
        shape = RowShape(case.tokens, counted, case.vocabulary, element_bytes=4, taught=not last, last=last)
        modelled = row_traffic(shape)
        assert (count.read_bytes, count.written_bytes) == (modelled.read_bytes, modelled.written_bytes)


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
