"""Sampling and acceptance, compiled and at real sizes: NumPy's tokens, no waiting, graphs, distribution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from lit_eff.kernels.sampling import Tree, accept_chain, accept_tree, count_tokens, processed_logits, sample
from lit_eff.kernels.sampling.reference import processed_logits_reference
from lit_eff.runtime.sampling import SamplingParams, target_distribution
from tests.kernels.sampling_cases import FEATURES, TREES, SamplingCase, drafted, numpy_sample

pytestmark = pytest.mark.gpu


def on_gpu(chosen: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.cuda() for name, each in chosen.items()}


@contextmanager
def no_waiting() -> Iterator[None]:
    """Any call that makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def poisoned() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("features", FEATURES, ids=str)
@pytest.mark.parametrize("vocabulary", [1, 300, 2048, 32_000, 50_257, 128_256, 524_287])
@pytest.mark.parametrize("ties", [True, False], ids=["ties", "no ties"])
def test_tokens_are_those_of_the_definition(features: dict[str, bool], vocabulary: int, ties: bool) -> None:
    case = SamplingCase(24, vocabulary, ties=ties, **features)
    rng = case.generator()
    logits_NV, chosen = case.logits(rng, 24), case.parameters(rng)
    for draws in (1, 4):
        got = sample(torch.from_numpy(logits_NV).cuda(), **on_gpu(chosen), draws=draws, purpose="draft")
        assert got.token_NJ.tolist() == numpy_sample(logits_NV, chosen, draws, "draft")


def test_one_class_of_equals() -> None:
    """All logits equal, or all but a few: every token falls into one bin."""
    rng = np.random.default_rng(0)
    logits_NV = np.zeros((12, 128_256), np.float32)
    logits_NV[6:, rng.integers(0, 128_256, 40)] = 2.0
    chosen = SamplingCase(12, 128_256, top_k=True, top_p=True, min_p=True).parameters(rng)
    got = sample(torch.from_numpy(logits_NV).cuda(), **on_gpu(chosen), draws=3)
    assert got.token_NJ.tolist() == numpy_sample(logits_NV, chosen, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rows_do_not_depend_on_their_neighbours(dtype: torch.dtype) -> None:
    case = SamplingCase(200, 50_257, top_k=True, top_p=True, min_p=True, ties=False)
    rng = case.generator()
    logits = torch.from_numpy(case.logits(rng, 200)).cuda().to(dtype)
    chosen = on_gpu(case.parameters(rng))
    whole = sample(logits, **chosen)
    for first, count in ((0, 1), (77, 1), (199, 1), (3, 16), (20, 133)):
        rows = slice(first, first + count)
        got = sample(logits[rows], **{name: each[rows] for name, each in chosen.items()})
        assert torch.equal(got.token_NJ, whole.token_NJ[rows])
        assert torch.equal(got.logprob_NJ, whole.logprob_NJ[rows])
    for _ in range(20):
        assert torch.equal(sample(logits, **chosen).token_NJ, whole.token_NJ)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "one-hot"])
@pytest.mark.parametrize("features", [FEATURES[0], FEATURES[-1]], ids=str)
@pytest.mark.parametrize("vocabulary", [90, 32_000, 128_256])
@pytest.mark.parametrize("shape", TREES)
def test_decisions_are_those_of_the_definition(
    shape: str, vocabulary: int, features: dict[str, bool], sampled: bool
) -> None:
    case = SamplingCase(6, vocabulary, spread=2.0, **features)
    rng = case.generator()
    chosen = case.parameters(rng)
    round_ = drafted(case, TREES[shape], chosen, rng)
    got = accept_tree(
        torch.from_numpy(round_.target_BUV).cuda(),
        torch.from_numpy(round_.draft_BRV).cuda() if sampled else None,
        torch.from_numpy(round_.drafts_BM).cuda(),
        round_.tree,
        **on_gpu(chosen),
    )
    kept = [row[:count] for row, count in zip(got.kept_BD.tolist(), got.count_B.tolist(), strict=True)]
    assert list(zip(kept, got.next_B.tolist(), strict=True)) == round_.accepted(chosen, sampled=sampled)


def test_penalties_are_those_of_the_plain_form() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 128_256, generator=generator).bfloat16()
    counts = count_tokens(torch.randint(0, 500, (3, 400), generator=generator), 128_256)
    prompt = count_tokens(torch.randint(0, 500, (3, 100), generator=generator), 128_256) > 0
    floats = [torch.rand(3, generator=generator) + 0.5 for _ in range(3)]
    bias = torch.randn(3, 128_256, generator=generator)
    history = torch.randint(0, 3, (9,), generator=generator)
    drafts = torch.randint(0, 500, (9, 4), generator=generator)
    given = (history, bias, counts, prompt, drafts, *floats)
    names = ("history", "bias", "counts", "in_prompt", "drafted", "repetition", "presence", "frequency")
    on_device = {name: each.cuda() for name, each in zip(names, given, strict=True)}
    got = processed_logits(logits.cuda(), **on_device)
    assert torch.equal(got.cpu(), processed_logits_reference(logits, *given))


def step(logits: Tensor, draft: Tensor, counts: Tensor, chosen: dict[str, Any]) -> tuple[Tensor, ...]:
    """Draft a few, accept some: what a decoding loop does on the device."""
    batch, vocabulary = logits.shape[0], logits.shape[2]
    drawn = []
    for g in range(3):
        there = chosen | {"position": chosen["position"] + g}
        drawn.append(sample(draft[:, g], **there, purpose="draft").token_NJ)
    drafts = torch.cat(drawn, dim=1)
    rows = torch.arange(batch, device="cuda").repeat_interleave(4)
    presence = torch.full((batch,), 0.5, device="cuda")
    target = processed_logits(logits.reshape(-1, vocabulary), history=rows, counts=counts, presence=presence)
    accepted, own = accept_chain(target.view(batch, 4, -1), draft, drafts, **chosen)
    tree = accept_tree(logits, None, drafts, Tree((-1, -1, 0)), **chosen)
    return drafts, accepted, own, *tree


def test_nothing_waits_and_graphs_replay() -> None:
    case = SamplingCase(4, 32_000, top_k=True, top_p=True, min_p=True, spread=1.0)
    rng = case.generator()
    chosen = on_gpu(case.parameters(rng))
    logits = torch.from_numpy(case.logits(rng, 16)).cuda().view(4, 4, -1)
    draft = logits[:, :3] + 0.3 * torch.randn(4, 3, 32_000, device="cuda")
    counts = torch.randint(0, 2, (4, 32_000), dtype=torch.int32, device="cuda")
    step(logits, draft, counts, chosen)  # compiles, and copies the trees' shapes
    with no_waiting():
        step(logits, draft, counts, chosen)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(logits, draft, counts, chosen)
    for shift in (0, 1, 12345):
        chosen["seed"].add_(shift)
        logits.copy_(logits.roll(shift, 2))
        expected = step(logits, draft, counts, chosen)
        for _ in range(5):
            graph.replay()
            assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_greedy_is_argmax() -> None:
    logits = torch.randn(100, 128_256, device="cuda").bfloat16()  # with ties
    zeros = torch.zeros(100, dtype=torch.int64, device="cuda")
    got = sample(logits, temperature=0.0, seed=zeros, position=zeros, top_p=0.9).token_NJ[:, 0]
    assert got.tolist() == [int(row.argmax()) for row in logits.float().cpu().numpy()]


@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_frequencies_are_the_distribution(features: dict[str, bool]) -> None:
    case = SamplingCase(1, 24, spread=2.0)
    logits_NV = case.logits(case.generator(), 1)
    settings = {"top_k": 9, "top_p": 0.85, "min_p": 0.03}
    chosen = {name: settings[name] for name in features}
    trials = 20_000
    numbers = torch.arange(trials, device="cuda")
    logits = torch.from_numpy(logits_NV).cuda().expand(trials, -1)
    got = sample(logits, temperature=2.0, seed=numbers, position=numbers, **chosen).token_NJ[:, 0]
    exact_V = target_distribution(logits_NV[0], SamplingParams(temperature=2.0, **chosen))
    seen_V = got.bincount(minlength=24).cpu().numpy()
    assert not seen_V[exact_V == 0].any()
    assert chisquare(seen_V[exact_V > 0], trials * exact_V[exact_V > 0]).pvalue > 1e-4


def test_a_tree_leaves_the_distribution() -> None:
    """The first token of 100,000 trees of three siblings, drafts drawn by `sample`."""
    trials, tree = 100_000, Tree((-1, -1, -1))
    rng = np.random.default_rng(3)
    target_V, draft_V = rng.normal(size=(2, 8)).astype(np.float32)
    target = torch.from_numpy(target_V).cuda().expand(trials, 4, 8).contiguous()
    draft = torch.from_numpy(draft_V).cuda().expand(trials, 1, 8).contiguous()
    chosen: dict[str, Any] = {"temperature": 1.3, "seed": torch.arange(trials, device="cuda")}
    chosen["position"] = torch.full((trials,), 7, device="cuda")
    drafts = sample(draft[:, 0], **chosen, draws=3, purpose="draft").token_NJ
    got = accept_tree(target, draft, drafts, tree, **chosen)
    first = torch.where(got.count_B > 0, drafts.gather(1, got.kept_BD.clamp(min=0))[:, 0], got.next_B)
    exact_V = target_distribution(target_V, SamplingParams(temperature=1.3))
    assert chisquare(first.bincount(minlength=8).cpu().numpy(), trials * exact_V).pvalue > 1e-4


def test_offsets_beyond_32_bits() -> None:
    """More than 2^31 logits: the last rows."""
    rows, vocabulary = 17_000, 128_256
    logits = torch.zeros(rows, vocabulary, dtype=torch.bfloat16, device="cuda")
    case = SamplingCase(5, vocabulary, top_p=True)
    rng = case.generator()
    last_NV, chosen = case.logits(rng, 5), case.parameters(rng)
    logits[-5:] = torch.from_numpy(last_NV).cuda().bfloat16()
    spread = {name: torch.cat([each.new_ones(rows - 5), each]).cuda() for name, each in chosen.items()}
    got = sample(logits, **spread).token_NJ[-5:]
    assert got.tolist() == numpy_sample(logits[-5:].float().cpu().numpy(), chosen)
