"""Acceptance in the interpreter and in plain PyTorch: NumPy's decisions, bit by bit; greedy; distribution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.sampling import Acceptance, Tree, accept_chain, accept_tree, sample
from lit_eff.runtime import trees
from lit_eff.runtime.sampling import SamplingParams, target_distribution
from tests.kernels.sampling_cases import FEATURES, FORMS, TREES, Drafted, SamplingCase, drafted, running


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, interpreter: None) -> Iterator[str]:
    with running(request.param):
        yield request.param


def ours(round_: Drafted, chosen: dict[str, Tensor], *, sampled: bool = True) -> Acceptance:
    draft = torch.from_numpy(round_.draft_BRV) if sampled else None
    drafts = torch.from_numpy(round_.drafts_BM)
    return accept_tree(torch.from_numpy(round_.target_BUV), draft, drafts, round_.tree, **chosen)


def as_lists(got: Acceptance) -> list[tuple[list[int], int]]:
    kept = [row[:count] for row, count in zip(got.kept_BD.tolist(), got.count_B.tolist(), strict=True)]
    assert all(set(row[count:]) <= {-1} for row, count in zip(got.kept_BD.tolist(), got.count_B, strict=True))
    return list(zip(kept, got.next_B.tolist(), strict=True))


@pytest.mark.usefixtures("form", "poisoned")
@pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "one-hot"])
@pytest.mark.parametrize("shape", TREES)
def test_decisions_are_those_of_the_definition(shape: str, sampled: bool) -> None:
    case = SamplingCase(5, 70, spread=1.5)
    rng = case.generator()
    chosen = case.parameters(rng)
    round_ = drafted(case, TREES[shape], chosen, rng, 2.0)
    expected = round_.accepted(chosen, sampled=sampled)
    assert as_lists(ours(round_, chosen, sampled=sampled)) == expected


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "one-hot"])
def test_drafts_that_repeat_or_could_not_be_drawn(sampled: bool) -> None:
    """Siblings by chance over four tokens: the same one twice, or one that truncation forbids."""
    case = SamplingCase(16, 4, spread=1.0, min_p=True)
    rng = case.generator()
    chosen = case.parameters(rng)
    round_ = drafted(case, TREES["siblings"], chosen, rng, near=2.0)
    round_.drafts_BM[:] = rng.integers(-1, 4, round_.drafts_BM.shape)
    assert as_lists(ours(round_, chosen, sampled=sampled)) == round_.accepted(chosen, sampled=sampled)


@pytest.mark.usefixtures("interpreter")
@settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parents=st.lists(st.integers(0, 100), min_size=1, max_size=6),
    vocabulary=st.integers(1, 90),
    spread=st.sampled_from([0.0, 0.3, 2.0]),
    near=st.sampled_from([0.0, 0.1, 1.0, 5.0]),
    features=st.sampled_from(FEATURES),
    sampled=st.booleans(),
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 2**32),
)
def test_any_tree(
    parents: list[int],
    vocabulary: int,
    spread: float,
    near: float,
    features: dict[str, bool],
    sampled: bool,
    form: str,
    seed: int,
) -> None:
    tree = Tree(tuple(each % (node + 1) - 1 for node, each in enumerate(parents)))
    case = SamplingCase(1, vocabulary, spread=spread, **features)
    rng = np.random.default_rng(seed)
    chosen = case.parameters(rng)
    round_ = drafted(case, tree, chosen, rng, near)
    round_.drafts_BM[rng.random(round_.drafts_BM.shape) < 0.05] = rng.integers(-1, vocabulary)  # any token
    with running(form):
        got = ours(round_, chosen, sampled=sampled)
    assert as_lists(got) == round_.accepted(chosen, sampled=sampled)


@pytest.mark.usefixtures("form")
def test_greedy_acceptance_is_agreement() -> None:
    """The chain keeps drafts while they are the target's argmax, and ends with its argmax."""
    rng = np.random.default_rng(0)
    target = rng.integers(-3, 3, (6, 5, 40)).astype(np.float32)
    drafts = np.where(rng.random((6, 4)) < 0.8, target[:, :4].argmax(2), rng.integers(0, 40, (6, 4)))
    for draft_logits in (None, torch.zeros(6, 4, 40).scatter(2, torch.from_numpy(drafts)[:, :, None], 9.0)):
        counts, tokens = accept_chain(
            torch.from_numpy(target),
            draft_logits,
            torch.from_numpy(drafts),
            temperature=0.0,
            seed=torch.arange(6),
            position=torch.arange(6),
        )
        for b in range(6):
            agree = target[b, :4].argmax(1) == drafts[b]
            count = 4 if agree.all() else int(np.argmin(agree))
            assert (counts[b].item(), tokens[b].item()) == (count, target[b, count].argmax())


@pytest.mark.usefixtures("form")
def test_equal_distributions_keep_everything_and_no_drafts_are_plain_sampling() -> None:
    case = SamplingCase(4, 60, top_p=True, top_k=True)
    rng = case.generator()
    chosen = case.parameters(rng)
    round_ = drafted(case, Tree.chain(3), chosen, rng, near=0.0)
    got = ours(round_, chosen)
    assert got.count_B.tolist() == [3] * 4
    last = torch.from_numpy(round_.target_BUV[:, 3].copy())
    after = chosen | {"position": chosen["position"] + 3}
    assert torch.equal(got.next_B, sample(last, **after).token_NJ[:, 0])
    counts, tokens = accept_chain(last[:, None], None, torch.empty(4, 0, dtype=torch.int64), **after)
    assert not counts.any()
    assert torch.equal(tokens, got.next_B)


@pytest.mark.usefixtures("form")
def test_sequences_do_not_depend_on_their_neighbours() -> None:
    case = SamplingCase(3, 40, spread=1.5, top_p=True)
    rng = case.generator()
    chosen = case.parameters(rng)
    round_ = drafted(case, TREES["two levels"], chosen, rng)
    whole = ours(round_, chosen)
    for rows in (slice(0, 1), slice(1, 3)):
        part = Drafted(round_.tree, round_.target_BUV[rows], round_.draft_BRV[rows], round_.drafts_BM[rows])
        got = ours(part, {name: each[rows] for name, each in chosen.items()})
        assert all(torch.equal(a, b[rows]) for a, b in zip(got, whole, strict=True))


@pytest.mark.usefixtures("form")
def test_shorter_chains_and_broken_rows() -> None:
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(size=(4, 4, 30)).astype(np.float32))
    drafts = torch.zeros(4, 3, dtype=torch.int64)
    drafts[1, 1:] = -1
    drafts[2] = -1
    logits[3, 0, 5] = float("nan")
    numbers = torch.arange(4)
    chosen: dict[str, Any] = {"temperature": 1.0, "seed": numbers, "position": numbers}
    favoured = logits.clone()
    favoured[:3, :, 0] = 50.0
    counts, tokens = accept_chain(favoured, favoured[:, :3], drafts, **chosen)
    assert counts.tolist() == [3, 1, 0, 0]
    assert tokens.tolist() == [0, 0, 0, -1]


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("form", [pytest.param("kernels", marks=pytest.mark.slow), "reference"])
@pytest.mark.parametrize("shape", ["chain", "two levels"])
def test_the_first_token_is_distributed_as_the_targets(shape: str, form: str) -> None:
    """Drafts drawn by `sample`: chi-square over 1500 sequences, fewer in the interpreter."""
    with running(form):
        check_the_first_token(shape, 300 if form == "kernels" else 1500)


def check_the_first_token(shape: str, trials: int) -> None:
    vocabulary, tree = 5, {"chain": Tree.chain(1)}.get(shape, Tree((-1, -1, -1, 0)))
    rng = np.random.default_rng(5)
    target_V, draft_V = rng.normal(size=(2, vocabulary)).astype(np.float32)
    target = torch.from_numpy(np.tile(target_V, (trials, len(tree.parents) + 1, 1)))
    draft = torch.from_numpy(np.tile(draft_V, (trials, len(tree.families), 1)))
    chosen: dict[str, Any] = {"temperature": 1.5, "top_p": 0.9, "seed": torch.arange(trials)}
    position = torch.full((trials,), 4)
    width = len(tree.families[-1])
    drafts = sample(draft[:, 0], **chosen, position=position, draws=width, purpose="draft").token_NJ
    if len(tree.families) > 1:
        more = sample(draft[:, 1], **chosen, position=position + 1, purpose="draft").token_NJ
        drafts = torch.cat([drafts, more], dim=1)
    got = accept_tree(target, draft, drafts, tree, **chosen, position=position)
    first = torch.where(got.count_B > 0, drafts.gather(1, got.kept_BD[:, :1].clamp(min=0))[:, 0], got.next_B)
    exact_V = target_distribution(target_V, SamplingParams(temperature=1.5, top_p=0.9))
    seen_V = np.bincount(first.numpy(), minlength=vocabulary)
    assert not seen_V[exact_V == 0].any()
    assert chisquare(seen_V[exact_V > 0], trials * exact_V[exact_V > 0]).pvalue > 0.001
    assert 0 < (got.count_B == 0).sum() < trials


def test_tree_is_the_runtimes() -> None:
    for tree in TREES.values():
        other = trees.Tree(tree.parents)
        assert (
            tuple(tuple(tree.families.get(parent, ())) for parent in range(-1, len(tree.parents)))
            == other.children
        )
        assert {parent: row for row, parent in enumerate(tree.families)} == other.draft_rows
    assert (TREES["uneven"].depth, TREES["uneven"].width) == (3, 3)
    with pytest.raises(UserError, match="node 1 has parent 1"):
        Tree((-1, 1))
    with pytest.raises(UserError, match="300 nodes"):
        Tree.chain(300)


@pytest.mark.usefixtures("interpreter")
def test_operator_check_and_tracing() -> None:
    from lit_eff.kernels.sampling import operator

    tree, ints = Tree((-1, -1, 0)), torch.arange(2)
    target, draft, drafts = torch.randn(8, 30), torch.randn(4, 30), torch.randint(30, (2, 3))
    chosen = (torch.ones(2), None, None, torch.full((2,), 0.1), ints, ints)
    torch.library.opcheck(operator.accept_tree, (target, draft, drafts, [-1, -1, 0], *chosen))

    def step(target: Tensor) -> Tensor:
        logits = target.view(2, 4, 30)
        chosen = {"temperature": 1.0, "seed": ints, "position": ints}
        own = accept_chain(logits, logits[:, :3], drafts, **chosen)[1]
        return own + accept_tree(logits, None, drafts, tree, **chosen).next_B

    assert torch.equal(torch.compile(step, fullgraph=True, backend="eager")(target), step(target))


@pytest.mark.usefixtures("form")
def test_no_sequences() -> None:
    none = torch.empty(0, dtype=torch.int64)
    got = accept_tree(
        torch.empty(0, 3, 9), None, none.view(0, 2), Tree.chain(2), temperature=1.0, seed=none, position=none
    )
    assert [each.shape for each in got] == [(0, 2), (0,), (0,)]


X, DRAFTS, ROWS = torch.zeros(2, 4, 8), torch.zeros(2, 3, dtype=torch.int64), torch.arange(2)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"target_logits": X[:, :3]}, r"expected target_logits \(B, 4, V\)"),
    ({"target_logits": X[0]}, "target_logits must be floating point of 3 dimensions"),
    ({"drafts": DRAFTS.int()}, "got .* and torch.int32"),
    ({"drafts": DRAFTS.to("meta")}, "drafts are on meta"),
    ({"draft_logits": X}, r"draft_logits must be \(2, 3, 8\), a row for each parent"),
    ({"draft_logits": X[:, :3].half()}, "draft_logits is torch.float16"),
    ({"seed": ROWS[:1]}, "seed must be"),
    ({"temperature": float("inf")}, "temperature is inf"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refusals(changes: dict[str, Any], message: str) -> None:
    usual = {"target_logits": X, "draft_logits": None, "drafts": DRAFTS, "tree": Tree.chain(3)}
    with pytest.raises(UserError, match=message):
        accept_tree(**(usual | {"temperature": 1.0, "seed": ROWS, "position": ROWS} | changes))
