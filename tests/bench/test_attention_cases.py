"""The generated cases themselves, and that the rule which judges them can fail."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from lit_eff.bench import attention_rule
from lit_eff.bench.attention_cached_cases import cached_cases
from lit_eff.bench.attention_cases import DTYPES, FEATURES, GROUPS, HEAD_DIMS, cases, random_tree
from lit_eff.bench.attention_rule import check, compare, covering
from lit_eff.bench.checks import Outcome


def test_there_are_enough_and_each_is_one_of_a_kind() -> None:
    everything = cases()
    assert len(everything) >= 400
    assert len({case.name for case in everything}) == len(everything)
    assert len({case.name for case in cached_cases()}) == len(cached_cases()) >= 70


def test_every_feature_stands_alone_and_in_every_possible_pair() -> None:
    alone = {(case.features, case.dtype) for case in cases() if case.family == "alone"}
    assert alone == {((name,), dtype) for name in FEATURES for dtype in DTYPES}
    pairs = {case.features for case in cases() if case.family == "pair"}
    impossible = {
        pair
        for pair in itertools.combinations(FEATURES, 2)
        for group in GROUPS
        if len(group & set(pair)) == 2
    }
    assert pairs == set(itertools.combinations(FEATURES, 2)) - impossible
    assert (
        {case.head_dim for case in cases()}
        >= {16, 24, 40, 80, 96, 112, 160, 192, 256}
        == set(HEAD_DIMS) & {16, 24, 40, 80, 96, 112, 160, 192, 256}
    )
    assert {case.queries for case in cases()} >= {0, 1, 63, 65, 127}


def test_inputs_are_the_same_every_time() -> None:
    case = next(case for case in cases() if case.features == ("documents", "strided"))
    first, second = case.inputs("cpu"), case.inputs("cpu")
    assert all(torch.equal(a, b) for a, b in zip(first.tensors, second.tensors, strict=True))
    assert torch.equal(first.options["documents_BT"], second.options["documents_BT"])
    assert not first.tensors[0].is_contiguous()


def test_trees_are_ancestors() -> None:
    mask_BTT = random_tree(5, 9, torch.Generator().manual_seed(0))
    assert torch.equal(mask_BTT.tril(), mask_BTT)
    assert mask_BTT.diagonal(dim1=1, dim2=2).all()
    reach = (mask_BTT.float() @ mask_BTT.float()) > 0
    assert torch.equal(reach, mask_BTT)  # an ancestor's ancestor is an ancestor
    assert mask_BTT.sum() < 5 * 9 * 10 / 2  # not all chains


def test_the_rule_fails_what_is_wrong() -> None:
    exact = torch.tensor([1.0, 2.0, -math.inf])
    plain = exact.bfloat16() + torch.tensor([0.01, 0.0, 0.0]).bfloat16()

    def faults(*values: float) -> list[str]:
        return compare("out", torch.tensor(values, dtype=torch.bfloat16), plain, exact, torch.bfloat16)

    assert faults(1.0, 2.0, -math.inf) == []
    assert faults(1.015, 2.0, -math.inf) == []  # within twice plain's own error
    assert "off by" in faults(1.03, 2.0, -math.inf)[0]
    assert "not finite" in faults(math.nan, 2.0, -math.inf)[0]
    assert "not -inf" in faults(1.0, 2.0, 0.0)[0]
    assert "shape" in compare("out", exact[:2], plain, exact, torch.bfloat16)[0]


def test_a_broken_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference in the kernels' place passes; a mask off by one fails, and so does what raises."""
    from lit_eff.kernels import attention as room

    case = next(case for case in cases() if case.features == ("causal",) and case.dtype == "float32")
    monkeypatch.setattr(room, "attention", room.attention_reference)
    assert check(case, "cpu") == Outcome(case.name)

    def off_by_one(q, k, v, *, causal, **options):  # type: ignore[no-untyped-def]
        starts = torch.full((q.shape[0],), 1)
        return room.attention_reference(q, k, v, starts_B=starts, **options)

    monkeypatch.setattr(room, "attention", off_by_one)
    assert any(fault.startswith("dk is off") for fault in check(case, "cpu").faults)

    def raises(*_: object, **__: object) -> None:
        raise RuntimeError("out of resources\nmore")

    monkeypatch.setattr(room, "attention", raises)
    assert check(case, "cpu").faults == ("RuntimeError: out of resources",)


def test_nondeterminism_is_found() -> None:
    x = torch.tensor([1.0, math.nan])
    assert attention_rule.same_bits([x], [x.clone()])
    assert not attention_rule.same_bits([torch.tensor([0.0])], [torch.tensor([-0.0])])


def test_a_few_cases_cover_the_features() -> None:
    chosen = covering(cases(), 24, 70_000)
    assert {name for case in chosen for name in case.features} == set(FEATURES)
    assert max(case.cost for case in chosen) <= 70_000
