"""Acceptance over trees leaves the target's distribution unchanged, in float64 and in whole numbers.

Joint distributions of two emitted tokens over a vocabulary of four, against exact enumeration: the tree is
drafted, tested and, where it stops early, the second token drawn as a next round would. Wrong rules fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from lit_eff.errors import UserError
from lit_eff.runtime import trees
from lit_eff.runtime.fixed_point import draw_token, draw_without_replacement, kept_weights
from lit_eff.runtime.random_numbers import Purpose, random_word
from lit_eff.runtime.sampling import SamplingParams, accept_drafts, draw, target_distribution
from lit_eff.runtime.trees import Tree, accept_tree, accept_tree_exactly

V = 4
TRIALS = 10_000
RNG = np.random.default_rng(0)
TARGET = RNG.normal(size=(V + 1, V)).astype(np.float32)  # after nothing, then after each token
DRAFT = (TARGET + 0.9 * RNG.normal(size=(V + 1, V))).astype(np.float32)
PLAIN = SamplingParams(temperature=1.0)
SHAPED = SamplingParams(temperature=1.2, top_k=3, top_p=0.95, min_p=0.02)
TREES = {
    "chain": Tree.chain(2),
    "siblings": Tree((-1, -1, -1)),
    "two levels": Tree((-1, -1, 0, 0, 1, 1, 1)),
    "uneven": Tree((-1, -1, 1, -1, 1)),
}
Pair = tuple[int, int]
Round = Callable[["Rows", "Rows", Tree, int], Pair]


class Rows:
    """What each token is followed by, root first: weights in whole numbers and as distributions."""

    def __init__(self, logits: np.ndarray, params: SamplingParams) -> None:
        self.weights = [kept_weights(row_V, params) for row_V in logits]
        self.distributions = [target_distribution(row_V, params) for row_V in logits]


def children_of(tree: Tree, drafts: list[int]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Every parent that is there: its place in `Rows`, its depth and its children."""
    depths = {-1: 0}
    for node, parent in enumerate(tree.parents):
        depths[node] = depths[parent] + 1
    for parent in tree.draft_rows:
        if parent < 0 or drafts[parent] >= 0:
            yield 0 if parent < 0 else 1 + drafts[parent], depths[parent], tree.children[parent + 1]


def float_round(target: Rows, draft: Rows, tree: Tree, seed: int) -> Pair:
    rng = np.random.default_rng(seed)
    drafts = [-1] * len(tree.parents)
    for place, _, children in children_of(tree, drafts):
        q_V = draft.distributions[place].copy()
        for node in children:
            if q_V.any():
                drafts[node] = draw(q_V, rng)
                q_V[drafts[node]] = 0
    places = [0, *(1 + max(token, 0) for token in drafts)]
    p_rows = [target.distributions[place] for place in places]
    q_rows = [draft.distributions[places[parent + 1]] for parent in tree.draft_rows]
    kept, token = accept_tree(p_rows, q_rows, drafts, tree, rng)
    tokens = [*(drafts[node] for node in kept), token]
    if len(tokens) < 2:
        tokens.append(draw(target.distributions[1 + tokens[0]], rng))
    return tokens[0], tokens[1]


def accepted(
    target: Rows, draft: Rows | None, tree: Tree, drafts: list[int], words: Callable[..., int]
) -> Pair:
    """The first two tokens; numbers are counted by position, so a second round may meet one again that a
    draft was drawn with which nobody looked at."""
    places = [0, *(1 + max(token, 0) for token in drafts)]
    q_rows = None if draft is None else [draft.weights[places[parent + 1]] for parent in tree.draft_rows]
    kept, token = accept_tree_exactly([target.weights[each] for each in places], q_rows, drafts, tree, words)
    tokens = [*(drafts[node] for node in kept), token]
    if len(tokens) < 2:
        tokens.append(draw_token(target.weights[1 + tokens[0]], words(1, Purpose.TARGET, 0)))
    return tokens[0], tokens[1]


def exact_round(target: Rows, draft: Rows, tree: Tree, seed: int, *, in_order: bool = True) -> Pair:
    words = partial(random_word, seed)
    drafts = [-1] * len(tree.parents)
    for place, depth, children in children_of(tree, drafts):
        numbers = [words(depth, Purpose.DRAFT, slot) for slot in range(len(children))]
        tokens = draw_without_replacement(draft.weights[place], numbers)
        if not in_order:
            tokens.sort(key=lambda token: -draft.weights[place][token])
        for node, token in zip(children, tokens, strict=True):
            drafts[node] = token
    return accepted(target, draft, tree, drafts, words)


def one_hot_round(target: Rows, draft: Rows, tree: Tree, seed: int) -> Pair:
    """Drafts that no random number chose: each parent's children are the draft's best tokens in order."""
    drafts = [-1] * len(tree.parents)
    for place, _, children in children_of(tree, drafts):
        for node, token in zip(children, np.argsort(-draft.weights[place], kind="stable"), strict=False):
            drafts[node] = int(token)
    return accepted(target, None, tree, drafts, partial(random_word, seed))


def p_value(one_round: Round, tree: Tree, params: SamplingParams, trials: int = TRIALS) -> float:
    """Chi-square of the joint distribution of two tokens; 0 when an impossible pair was seen."""
    target, draft = Rows(TARGET, params), Rows(DRAFT, params)
    counts = np.zeros((V, V))
    for seed in range(trials):
        counts[one_round(target, draft, tree, seed)] += 1
    exact = target.distributions[0][:, None] * np.stack(target.distributions[1:])
    if counts[exact == 0].any():
        return 0.0
    return float(chisquare(counts[exact > 0], trials * exact[exact > 0]).pvalue)


@pytest.mark.parametrize("params", [PLAIN, SHAPED], ids=["plain", "shaped"])
@pytest.mark.parametrize("shape", TREES)
def test_whole_numbers_leave_the_distribution(shape: str, params: SamplingParams) -> None:
    assert p_value(exact_round, TREES[shape], params) > 0.001


@pytest.mark.parametrize("shape", TREES)
def test_floats_leave_the_distribution(shape: str) -> None:
    assert p_value(float_round, TREES[shape], SHAPED, 6000) > 0.001


@pytest.mark.parametrize("shape", ["chain", "two levels"])
def test_one_hot_drafts_leave_the_distribution(shape: str) -> None:
    assert p_value(one_hot_round, TREES[shape], SHAPED) > 0.001


def test_the_test_sees_siblings_in_another_order() -> None:
    """The classic mistake: the likelier sibling is tested first."""

    assert p_value(partial(exact_round, in_order=False), TREES["siblings"], PLAIN) < 1e-9


def test_the_test_sees_numbers_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    original = random_word

    def one_purpose(seed: int, position: int, _: Purpose, slot: int) -> int:
        return original(seed, position, Purpose.TARGET, slot)

    monkeypatch.setattr(f"{__name__}.random_word", one_purpose)
    assert p_value(exact_round, TREES["siblings"], PLAIN) < 1e-9


def test_the_test_sees_a_missing_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unchanged:
        """NumPy, but for the maximum that makes p a residual."""

        def __getattr__(self, name: str) -> object:
            return getattr(np, name)

        def maximum(self, a_V: np.ndarray, _: float) -> np.ndarray:
            return np.abs(a_V)

    monkeypatch.setattr(trees, "np", Unchanged())
    assert p_value(exact_round, TREES["chain"], PLAIN) < 1e-9


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(0, 4))
def test_a_chain_is_leviathans_rule(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    p_rows, q_rows = list(rng.dirichlet(np.ones(5), length + 1)), list(rng.dirichlet(np.ones(5), length))
    drafts = [draw(q_V, rng) for q_V in q_rows]
    kept, token = accept_tree(p_rows, q_rows, drafts, Tree.chain(length), np.random.default_rng(seed))
    assert (len(kept), token) == accept_drafts(p_rows, q_rows, drafts, np.random.default_rng(seed))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), shape=st.sampled_from(sorted(TREES)))
def test_whole_numbers_are_the_float_rule(seed: int, shape: str) -> None:
    """Given the same uniform numbers, both keep the same nodes and draw the same token."""
    tree, rng = TREES[shape], np.random.default_rng(seed)
    rows = rng.normal(size=(2, len(tree.parents) + 1, 6)).astype(np.float32)
    drafts = [-1] * len(tree.parents)
    for parent in tree.draft_rows:
        words = [int(rng.integers(2**63)) * 2 for _ in tree.children[parent + 1]]
        tokens = draw_without_replacement(kept_weights(rows[1, parent + 1], PLAIN), words)
        for node, token in zip(tree.children[parent + 1], tokens, strict=True):
            drafts[node] = token

    class Counted:
        """The float rule's numbers, in the order it asks for them, noted for the other."""

        def __init__(self) -> None:
            self.numbers = [float(number) for number in np.random.default_rng(seed + 1).random(32)]
            self.asked = 0

        def random(self) -> float:
            self.asked += 1
            return self.numbers[self.asked - 1]

    numbers, again = Counted(), Counted()
    p_rows = [target_distribution(row_V, PLAIN) for row_V in rows[0]]
    q_rows = [target_distribution(rows[1, parent + 1], PLAIN) for parent in tree.draft_rows]
    expected = accept_tree(p_rows, q_rows, drafts, tree, numbers)  # type: ignore[arg-type]
    target = [kept_weights(row_V, PLAIN) for row_V in rows[0]]
    draft = [kept_weights(rows[1, parent + 1], PLAIN) for parent in tree.draft_rows]
    got = accept_tree_exactly(target, draft, drafts, tree, lambda *_: int(again.random() * 2**64))
    assert got == expected


def test_equal_distributions_keep_the_first_child() -> None:
    weights = [kept_weights(row_V, PLAIN) for row_V in TARGET]
    tree = Tree((-1, -1, 0, 0))
    for seed in range(200):
        rows = [weights[0], *(weights[1:])][:5]
        draft = [rows[parent + 1] for parent in tree.draft_rows]
        first = draw_without_replacement(rows[0], [random_word(seed, 0, Purpose.DRAFT, s) for s in (0, 1)])
        second = draw_without_replacement(rows[1], [random_word(seed, 1, Purpose.DRAFT, s) for s in (0, 1)])
        kept, _ = accept_tree_exactly(
            rows, draft, first + second, tree, lambda d, p, s, seed=seed: random_word(seed, d, p, s)
        )
        assert kept == [0, 2]


def test_absent_repeated_and_impossible_drafts_are_passed_over() -> None:
    target = [np.array([1, 1, 2, 0], np.int64) << 40] * 4
    draft = [np.array([0, 3, 1, 8], np.int64) << 40]
    tree = Tree((-1, -1, -1))

    def words(*_: object) -> int:
        return 2**64 - 1

    assert accept_tree_exactly(target, draft, [-1, 0, -1], tree, words)[0] == []
    assert accept_tree_exactly(target, draft, [3, 3, 2], tree, words)[0] == [2]
    assert accept_tree_exactly(target, draft, [-1, -1, -1], tree, lambda *_: 0) == ([], 0)
    nothing = [np.zeros(4, np.int64)] * 4
    assert accept_tree_exactly(nothing, draft, [1, 2, 3], tree, words) == ([], -1)


def test_parents_come_first() -> None:
    with pytest.raises(UserError, match="node 1 has parent 1"):
        Tree((-1, 1))
