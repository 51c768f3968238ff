"""Sampling in the interpreter and in plain PyTorch: NumPy's tokens, bit by bit; invariance; refusals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.sampling import call, count_tokens, processed_logits, reference, sample, weights
from lit_eff.kernels.sampling import select as selection
from lit_eff.kernels.sampling.plan import BINS, MAX_VOCABULARY, Plan
from lit_eff.runtime import fixed_point, random_numbers
from lit_eff.runtime.fixed_point import float32_logits
from lit_eff.runtime.sampling import History, SamplingParams, target_distribution
from tests.kernels.sampling_cases import (
    FEATURES,
    FORMS,
    SamplingCase,
    numpy_sample,
    numpy_weights,
    params_of,
    running,
)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, interpreter: None) -> Iterator[str]:
    with running(request.param):
        yield request.param


def run(case: SamplingCase, draws: int = 1, **changes: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Ours, and the definition's."""
    rng = case.generator()
    logits_NV, chosen = case.logits(rng, case.rows), case.parameters(rng)
    got = sample(torch.from_numpy(logits_NV), **chosen, draws=draws, **changes)
    return got.token_NJ.tolist(), numpy_sample(logits_NV, chosen, draws, changes.get("purpose", "target"))


@pytest.mark.usefixtures("form", "poisoned")
@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_tokens_are_those_of_the_definition(features: dict[str, bool]) -> None:
    got, expected = run(SamplingCase(8, 200, **features))
    assert got == expected


@pytest.mark.usefixtures("form", "poisoned")
@pytest.mark.parametrize("size", [(4, 333), (6, 64), (6, 1), (6, 2)], ids=str)
def test_any_vocabulary(size: tuple[int, int]) -> None:
    got, expected = run(SamplingCase(*size, **FEATURES[-1]))
    assert got == expected


@pytest.mark.usefixtures("form", "poisoned")
@pytest.mark.parametrize("features", [FEATURES[0], FEATURES[-1]], ids=str)
def test_draws_without_replacement(features: dict[str, bool]) -> None:
    got, expected = run(SamplingCase(8, 100, **features), draws=5, purpose="draft")
    assert got == expected
    for tokens in got:
        there = [token for token in tokens if token >= 0]
        assert len(set(there)) == len(there)


@pytest.mark.usefixtures("form", "poisoned")
@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_what_is_kept_is_what_the_definition_keeps(features: dict[str, bool]) -> None:
    """All of it: more draws than tokens. Many ties, over two blocks."""
    case = SamplingCase(8, 24, spread=0.7, **features)
    rng = case.generator()
    logits_NV, chosen = case.logits(rng, 8), case.parameters(rng)
    with mock.patch.object(call, "plan_of", return_value=Plan(16, 4)):
        got = sample(torch.from_numpy(logits_NV), **chosen, draws=25).token_NJ.tolist()
    assert got == numpy_sample(logits_NV, chosen, 25)
    for row, tokens in enumerate(got):
        assert {*tokens} - {-1} == set(np.flatnonzero(numpy_weights(logits_NV[row], chosen, row)))


@pytest.mark.usefixtures("form")
def test_a_sum_reached_exactly_is_reached() -> None:
    """A quarter of sixteen equals is four of them, the lowest."""
    zero = torch.zeros(1, dtype=torch.int64)
    got = sample(torch.zeros(1, 16), temperature=1.0, top_p=0.25, seed=zero, position=zero, draws=5)
    assert sorted(got.token_NJ[0].tolist()) == [-1, 0, 1, 2, 3]


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_totals_are_those_of_the_definition(features: dict[str, bool]) -> None:
    """To the last bit, which says that each border is right where a draw would seldom tell."""
    case = SamplingCase(12, 150, spread=0.7, **features)
    rng = case.generator()
    logits_NV, chosen = case.logits(rng, 12), case.parameters(rng)
    parameters = call.Parameters(**{"top_k": None, "top_p": None, "min_p": None} | chosen)
    with running("kernels"):
        chosen_rows = call.Selection(torch.from_numpy(logits_NV), None, parameters)
        for launch in [*chosen_rows.borders(), chosen_rows.draws(None, None, 0)]:
            launch.run()
    totals = chosen_rows.shared["p_state"][:, weights.TOTAL.value].tolist()
    assert totals == [int(numpy_weights(row_V, chosen, n).sum()) for n, row_V in enumerate(logits_NV)]


@pytest.mark.usefixtures("interpreter")
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    logits=st.lists(st.integers(-40, 40), min_size=1, max_size=150),
    scale=st.sampled_from([0.0, 1e-3, 0.125, 1.0, 30.0]),
    temperature=st.sampled_from([0.0, 1e-30, 0.1, 1.0, 2.5, 1e3]),
    top_k=st.integers(0, 160),
    top_p=st.sampled_from([1.0, 0.999, 0.75, 0.5, 0.25, 1e-3]),
    min_p=st.sampled_from([0.0, 0.25, 0.5, 1.0, 1e-3]),
    seed=st.integers(0, 2**63 - 1),
    position=st.integers(0, 2**40),
    form=st.sampled_from(FORMS),
)
def test_any_parameters(
    logits: list[int],
    scale: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    position: int,
    form: str,
) -> None:
    logits_NV = scale * np.array([logits], np.float32)
    chosen = {
        "temperature": torch.tensor([temperature]),
        "top_k": torch.tensor([top_k], dtype=torch.int32),
        "top_p": torch.tensor([top_p]),
        "min_p": torch.tensor([min_p]),
        "seed": torch.tensor([seed]),
        "position": torch.tensor([position]),
    }
    logits_NV = logits_NV.astype(np.float32)
    with running(form):
        got = sample(torch.from_numpy(logits_NV), **chosen, draws=3)
    assert got.token_NJ.tolist() == numpy_sample(logits_NV, chosen, 3)


@pytest.mark.usefixtures("form")
def test_log_probabilities() -> None:
    case = SamplingCase(10, 100, top_p=True, min_p=True)
    rng = case.generator()
    logits_NV, chosen = case.logits(rng, case.rows), case.parameters(rng)
    got = sample(torch.from_numpy(logits_NV), **chosen)
    for row, (token,) in enumerate(got.token_NJ.tolist()):
        exact = np.log(target_distribution(logits_NV[row], params_of(chosen, row))[token])
        assert got.logprob_NJ[row].item() == pytest.approx(exact, abs=1e-5)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("form", [pytest.param("kernels", marks=pytest.mark.slow), "reference"])
@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_frequencies_are_the_distribution(features: dict[str, bool], form: str) -> None:
    """Chi-square over 4000 seeds, fewer in the interpreter."""
    case = SamplingCase(1, 12, spread=2.0, **features)
    logits_NV = case.logits(case.generator(), 1)
    settings = {"top_k": 6, "top_p": 0.8, "min_p": 0.05}
    chosen = {name: settings[name] for name in features}
    trials = 400 if form == "kernels" else 4000
    with running(form):
        got = sample(
            torch.from_numpy(logits_NV).expand(trials, -1),
            temperature=3.0,
            seed=torch.arange(trials),
            position=torch.full((trials,), 9),
            **chosen,
        )
    exact_V = target_distribution(logits_NV[0], SamplingParams(temperature=3.0, **chosen))
    seen_V = np.bincount(got.token_NJ[:, 0].numpy(), minlength=12)
    assert not seen_V[exact_V == 0].any()
    assert chisquare(seen_V[exact_V > 0], trials * exact_V[exact_V > 0]).pvalue > 0.001


@pytest.mark.usefixtures("form")
def test_greedy_is_argmax_with_ties_to_the_lowest() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.integers(-3, 4, (5, 150)).astype(np.float32))
    zeros = torch.zeros(5, dtype=torch.int64)
    got = sample(logits, temperature=0.0, seed=zeros, position=zeros, top_p=0.5, top_k=4)
    assert torch.equal(got.token_NJ[:, 0], logits.argmax(1))
    assert not got.logprob_NJ.any()
    near = torch.ones(1, 150)
    near[0, 140] = 1.0000001
    assert sample(near, temperature=0.0, seed=zeros[:1], position=zeros[:1]).token_NJ.item() == 140


@pytest.mark.usefixtures("form")
def test_rows_do_not_depend_on_their_neighbours_or_on_blocks() -> None:
    case = SamplingCase(6, 150, top_k=True, top_p=True, min_p=True, ties=False)
    rng = case.generator()
    logits, chosen = torch.from_numpy(case.logits(rng, case.rows)), case.parameters(rng)
    whole = sample(logits, **chosen, draws=2)
    for rows in (slice(0, 1), slice(3, 4), slice(2, 6)):
        got = sample(logits[rows], **{name: each[rows] for name, each in chosen.items()}, draws=2)
        assert torch.equal(got.token_NJ, whole.token_NJ[rows])
        assert (
            torch.equal(
                got.logprob_NJ,
                whole.logprob_NJ[rows],
            )
            or got.logprob_NJ.isnan().any()
        )
    with mock.patch.object(call, "plan_of", return_value=Plan(1024, 8)):
        assert torch.equal(sample(logits, **chosen, draws=2).token_NJ, whole.token_NJ)
    strided = torch.stack([logits, logits], dim=2)[:, :, 0]
    assert torch.equal(sample(strided, **chosen, draws=2).token_NJ, whole.token_NJ)
    apart = torch.cat([logits, logits], dim=1)[:, :150]
    assert torch.equal(sample(apart, **chosen, draws=2).token_NJ, whole.token_NJ)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_logits_are_their_own_values(dtype: torch.dtype) -> None:
    case = SamplingCase(6, 130, top_k=True, top_p=True)
    rng = case.generator()
    logits, chosen = torch.from_numpy(case.logits(rng, 6)).to(dtype), case.parameters(rng)
    assert torch.equal(sample(logits, **chosen).token_NJ, sample(logits.float(), **chosen).token_NJ)


@pytest.mark.usefixtures("form")
def test_broken_and_banned_logits() -> None:
    logits = torch.zeros(5, 100)
    logits[0, 70] = float("nan")
    logits[1, 70] = float("inf")
    logits[2] = float("-inf")
    logits[3, :99] = float("-inf")
    numbers = torch.arange(5)
    got = sample(logits, temperature=1.0, seed=numbers, position=numbers, top_k=5, top_p=0.9).token_NJ[:, 0]
    assert got[:3].tolist() == [-1, -1, -1]
    assert got[3].item() == 99
    assert 0 <= got[4].item() < 5


@pytest.mark.usefixtures("form", "poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bias_and_penalties(dtype: torch.dtype) -> None:
    """Each row's own history and drafted tokens, against the definition to the bit."""
    rng = np.random.default_rng(4)
    rows, vocabulary, histories = 7, 130, 3
    logits = torch.from_numpy(rng.normal(size=(rows, vocabulary))).to(dtype)
    prompts, outputs = rng.integers(0, vocabulary, (2, histories, 20))
    drafted = rng.integers(0, vocabulary, (rows, 3))
    drafted[:, 2], drafted[2:, 1] = -1, outputs[0, 0]
    history = rng.integers(0, histories, rows)
    bias = np.zeros((histories, vocabulary), np.float32)
    bias[:, 5], bias[1, 9] = 1.25, -np.inf
    given = {
        "repetition": np.array([1.0, 1.3, 0.7], np.float32),
        "presence": np.array([0.0, 0.3, -0.2], np.float32),
        "frequency": np.array([0.5, 0.0, 0.1], np.float32),
    }
    got = processed_logits(
        logits,
        history=torch.from_numpy(history),
        bias=torch.from_numpy(bias),
        counts=count_tokens(torch.from_numpy(outputs), vocabulary),
        in_prompt=count_tokens(torch.from_numpy(prompts), vocabulary) > 0,
        drafted=torch.from_numpy(drafted),
        **{name: torch.from_numpy(each) for name, each in given.items()},
    )
    for n, h in enumerate(history):
        params = SamplingParams(
            repetition_penalty=float(given["repetition"][h]),
            presence_penalty=float(given["presence"][h]),
            frequency_penalty=float(given["frequency"][h]),
            logit_bias={5: 1.25, **({9: float("-inf")} if h == 1 else {})},
        )
        past = History(
            prompts[h].tolist(), [*outputs[h].tolist(), *(t for t in drafted[n].tolist() if t >= 0)]
        )
        expected = float32_logits(logits[n].float().numpy(), params, past)
        np.testing.assert_array_equal(got[n].numpy(), expected)


@pytest.mark.usefixtures("form")
def test_each_penalty_alone() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    counts = torch.tensor([[1, 0, 2]], dtype=torch.int32)
    one = torch.tensor([0.5])
    assert processed_logits(logits).tolist() == [[2.0, -2.0, 1.0]]
    assert processed_logits(logits, counts=counts, presence=one).tolist() == [[1.5, -2.0, 0.5]]
    assert processed_logits(logits, counts=counts, frequency=one).tolist() == [[1.5, -2.0, 0.0]]
    seen = torch.tensor([[False, True, False]])
    assert processed_logits(logits, in_prompt=seen, repetition=one * 4).tolist() == [[2.0, -4.0, 1.0]]


def test_constants_are_those_of_the_definition() -> None:
    assert (weights.FRACTION_BITS.value, weights.WEIGHT_BITS.value, weights.DEAD.value) == (
        fixed_point.FRACTION_BITS,
        fixed_point.WEIGHT_BITS,
        fixed_point.DEAD,
    )
    assert reference.EXP2_COEFFICIENTS == fixed_point.EXP2_COEFFICIENTS
    assert MAX_VOCABULARY == fixed_point.MAX_VOCABULARY
    assert selection.BINS.value == BINS == 1 << selection.FINE_BITS.value
    assert fixed_point.DEAD >> selection.FINE_BITS.value < BINS
    shadow = random_numbers.Purpose.SHADOW  # for which no kernel draws
    purposes = {each.name.lower(): each.value for each in random_numbers.Purpose if each is not shadow}
    assert purposes == {**reference.PURPOSES, "accept": reference.ACCEPT}
    assert [weights.TARGET.value, weights.DRAFT.value, weights.ACCEPT.value] == list(purposes.values())


@pytest.mark.usefixtures("interpreter")
def test_operator_check_and_tracing() -> None:
    from lit_eff.kernels.sampling import operator

    logits, ints = torch.randn(2, 50), torch.arange(2)
    chosen = (torch.ones(2), torch.ones(2, dtype=torch.int32), torch.ones(2), None, ints, ints)
    torch.library.opcheck(operator.sample, (logits, *chosen, 2, 0))
    torch.library.opcheck(operator.processed_logits, (logits, None, logits, *[None] * 6))

    def step(logits: Tensor) -> Tensor:
        return sample(logits, temperature=1.0, top_p=0.9, seed=ints, position=ints).token_NJ + 1

    assert torch.equal(torch.compile(step, fullgraph=True, backend="eager")(logits), step(logits))


@pytest.mark.usefixtures("form")
def test_no_rows() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert sample(torch.empty(0, 9), temperature=1.0, seed=none, position=none).token_NJ.shape == (0, 1)
    assert processed_logits(torch.empty(0, 9)).shape == (0, 9)


X, ROWS = torch.zeros(3, 8), torch.arange(3)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"logits_NV": X[0]}, "logits_NV must be floating point of 2 dimensions"),
    ({"logits_NV": X.double()}, "got torch.float64"),
    ({"logits_NV": torch.zeros(3, 0)}, "a vocabulary of 0"),
    ({"logits_NV": torch.zeros(3, 2**19, device="meta")}, "a vocabulary of 524288"),
    ({"temperature": -0.5}, "temperature is -0.5"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"temperature": torch.ones(2)}, r"temperature must be torch.float32 \(3\)"),
    ({"top_k": -1}, "top_k is -1"),
    ({"top_k": torch.ones(3)}, "top_k must be torch.int32"),
    ({"top_p": 0.0}, "top_p is 0.0"),
    ({"top_p": torch.ones(3, device="meta")}, "top_p is on meta"),
    ({"min_p": 1.5}, "min_p is 1.5"),
    ({"seed": ROWS.int()}, "seed must be torch.int64"),
    ({"position": ROWS[:2]}, r"position must be torch.int64 \(3\); got torch.int64 \(2,\)"),
    ({"draws": 0}, "draws is 0"),
    ({"purpose": "drafts"}, "did you mean 'draft'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample(**({"logits_NV": X, "temperature": 1.0, "seed": ROWS, "position": ROWS} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": torch.zeros(8)}, "bias must be"),
        ({"counts": torch.zeros(3, 8)}, "counts must be torch.int32"),
        ({"history": torch.zeros(3)}, "history must be int32"),
        ({"drafted": torch.zeros(2, 1).long()}, r"drafted must be torch.int64 \(3, D\)"),
        ({"presence": torch.zeros(2)}, "presence must be"),
    ],
)
def test_penalties_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        processed_logits(X, **changes)


def test_cases_reach_what_they_name() -> None:
    """Some rows of the mixed case are greedy, some truncate, some do not."""
    case = replace(SamplingCase(40), top_k=True, top_p=True, min_p=True)
    chosen = case.parameters(case.generator())
    for name, off in (("temperature", 0), ("top_k", 0), ("top_p", 1), ("min_p", 0)):
        assert 0 < (chosen[name] == off).sum() < 40
