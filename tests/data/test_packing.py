"""Packing loses no token, crosses no document, and gives every token its own successor as target."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_eff.data.packing import IGNORED, PADDING, Packing, row_count
from tests.data.helpers import documents_of

END = 0
# Token ids are unique over the corpus, so a misplaced one cannot hide behind an equal one.
lengths = st.lists(st.integers(0, 25), min_size=1, max_size=12).filter(any)


def unique_documents(sizes: list[int]) -> list[list[int]]:
    firsts = np.cumsum([1, *sizes])
    return [list(range(first, first + size)) for first, size in zip(firsts, sizes, strict=False)]


@settings(deadline=None)
@given(sizes=lengths, context=st.integers(1, 12), seed=st.integers(0, 99))
def test_each_token_is_an_input_once_with_its_successor_as_target(
    sizes: list[int], context: int, seed: int
) -> None:
    lists = unique_documents(sizes)
    order = np.random.default_rng(seed).permutation(len(lists))
    documents = documents_of(lists)
    packing = Packing(documents, order, context=context, end_of_text=END)
    batch = packing.batch(range(packing.rows))
    assert all(
        value.shape == (packing.rows, context) and value.dtype == torch.int64 for value in batch.values()
    )

    real = batch["documents_BT"] != PADDING
    successor = {
        token: after for tokens in lists for token, after in zip(tokens, [*tokens, END][1:], strict=True)
    }
    inputs = batch["tokens_BT"][real].tolist()
    assert inputs == [token for index in order for token in lists[index]]
    assert batch["targets_BT"][real].tolist() == [successor[token] for token in inputs]

    # Padding only ends the last row, and is no target.
    flat = real.flatten().tolist()
    assert flat == [True] * len(inputs) + [False] * (len(flat) - len(inputs))
    assert len(flat) - len(inputs) < context
    assert (batch["targets_BT"][~real] == IGNORED).all()


@settings(deadline=None)
@given(sizes=lengths, context=st.integers(1, 12))
def test_a_piece_is_one_document_and_its_positions_start_at_zero(sizes: list[int], context: int) -> None:
    lists = unique_documents(sizes)
    owner = {token: index for index, tokens in enumerate(lists) for token in tokens}
    packing = Packing(documents_of(lists), np.arange(len(lists)), context=context, end_of_text=END)
    batch = packing.batch(range(packing.rows))
    for tokens_T, positions_T, documents_T in zip(
        batch["tokens_BT"].tolist(),
        batch["positions_BT"].tolist(),
        batch["documents_BT"].tolist(),
        strict=True,
    ):
        pieces: dict[int, list[tuple[int, int]]] = {}
        for token, position, piece in zip(tokens_T, positions_T, documents_T, strict=True):
            if piece != PADDING:
                pieces.setdefault(piece, []).append((token, position))
        owners = [{owner[token] for token, _ in piece} for piece in pieces.values()]
        assert all(len(of) == 1 for of in owners)
        assert len({min(of) for of in owners}) == len(owners)  # a document is one piece of a row
        assert all(
            [position for _, position in piece] == list(range(len(piece))) for piece in pieces.values()
        )


def test_a_long_document_goes_on_in_the_next_rows() -> None:
    packing = Packing(documents_of([list(range(1, 8))]), np.arange(1), context=3, end_of_text=END)
    batch = packing.batch([0, 1, 2])
    assert batch["tokens_BT"].tolist() == [[1, 2, 3], [4, 5, 6], [7, END, END]]
    assert batch["targets_BT"].tolist() == [[2, 3, 4], [5, 6, 7], [END, IGNORED, IGNORED]]
    assert batch["positions_BT"].tolist() == [[0, 1, 2], [0, 1, 2], [0, 0, 0]]
    assert batch["documents_BT"].tolist() == [[0, 0, 0], [0, 0, 0], [0, PADDING, PADDING]]


@pytest.mark.parametrize(("tokens", "context", "rows"), [(6, 3, 2), (7, 3, 3), (1, 3, 1)])
def test_rows_of_a_pass(tokens: int, context: int, rows: int) -> None:
    assert row_count(documents_of([[1] * tokens]), context) == rows


def test_a_row_past_the_last_is_padding() -> None:
    batch = Packing(documents_of([[1, 2]]), np.arange(1), context=4, end_of_text=END).batch([5])
    assert (batch["documents_BT"] == PADDING).all()
    assert (batch["targets_BT"] == IGNORED).all()
