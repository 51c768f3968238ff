"""Metrics of tokens by hand and against torchmetrics; the loss of a sequence made of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.text import edit_distance as of_text

from lit_eff.runtime.metrics import TOKEN_METRICS, edit_distance, exact_match, token_disagreement
from lit_eff.runtime.risk import SequenceLoss

TOKENS = st.lists(st.integers(0, 3), min_size=5, max_size=5)


def test_by_hand() -> None:
    assert token_disagreement([1, 2, 3, 4], [1, 2, 0, 0]) == 0.5
    assert (exact_match([1, 2], (1, 2)), exact_match([1, 2], [1, 3])) == (0.0, 1.0)
    assert edit_distance([1, 2, 3, 4], [9, 1, 2, 3]) == 2 / 4, "one insertion and one deletion"
    assert edit_distance([1, 2, 3, 4, 5], [1, 3, 5]) == 2 / 5, "two deletions"
    assert edit_distance([1, 2], [3]) == 1.0, "a substitution and a deletion"
    assert (edit_distance([], []), edit_distance([], [1])) == (0.0, 1.0)


@given(st.text("abcd", max_size=9), st.text("abcd", max_size=9))
def test_edit_distance_is_torchmetrics(one: str, other: str) -> None:
    expected = int(of_text([one], [other], reduction="sum")) / max(len(one), len(other), 1)
    assert edit_distance(list(map(ord, one)), list(map(ord, other))) == pytest.approx(expected)


@pytest.mark.parametrize("name", TOKEN_METRICS)
@given(one=TOKENS, other=TOKENS, reference=TOKENS)
def test_losses_lie_between_0_and_1_and_are_0_without_a_change(
    name: str, one: list[int], other: list[int], reference: list[int]
) -> None:
    metric = TOKEN_METRICS[name]
    assert metric(one, one) == 0.0
    assert 0.0 <= metric(one, other) == metric(other, one) <= 1.0
    loss = SequenceLoss(metric, of_reference=True)
    assert loss(one, one, reference) == 0.0
    assert loss(reference, one, reference) == 0.0, "early exits that do better make up for nothing"
    assert loss(one, other, reference) == max(0.0, metric(one, reference) - metric(other, reference))
    assert loss(one, reference, reference) == metric(one, reference)


def test_rules_that_write_the_same_text_are_compared_once() -> None:
    calls = []

    def counted(one: object, other: object) -> float:
        calls.append((one, other))
        return token_disagreement(one, other)  # type: ignore[arg-type]

    tokens_KBN = np.random.default_rng(0).integers(0, 2, (9, 20, 3))
    losses_BK = SequenceLoss(counted).of_rules(tokens_KBN)
    assert losses_BK.tolist() == (tokens_KBN != tokens_KBN[0]).mean(axis=2).T.tolist()
    assert len(calls) == sum(len(np.unique(tokens_KBN[:, b], axis=0)) for b in range(20)) < 9 * 20
