"""RoPE with cache write and propagation, compiled and at real sizes: precision, bits, graphs, big offsets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_eff.kernels.attention.with_cache import attention_with_cache
from lit_eff.kernels.propagate import propagate, propagate_reference
from lit_eff.kernels.rope import rope_cache_write
from tests.kernels import propagate_cases, rope_cases
from tests.kernels.propagate_cases import PropagateCase, layer_by_layer, with_caches
from tests.kernels.rope_cases import RopeCase

pytestmark = pytest.mark.gpu

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
ROPE = [
    *rope_cases.CASES,
    RopeCase(8, 1, 32, 8, 128, 4096, 128),
    RopeCase(4, 600, 32, 8, 128, 1000, 128, page=64, ragged=True),
    RopeCase(16, 8, 9, 3, 64, 512, 64, page=16, ragged=True, positions=True),
    RopeCase(3, 70, 16, 8, 128, 300, 128, norm=True),
]
PROPAGATE = [
    *propagate_cases.CASES,
    PropagateCase(5, 8, 1, 2048, 4, 64, 512, 64),
    PropagateCase(3, 4, 5, 4096, 8, 128, 100, 128, page=16, ragged=True),
    PropagateCase(2, 16, 3, 4096, 32, 128, 100, 128, bias=True),
    PropagateCase(12, 1, 8, 768, 12, 64, 100, 0, norm="layer", bias=True),
    PropagateCase(4, 9, 4, 1024, 8, 128, 100, 128, k_norm=True, page=16),
]


def same(got: Tensor, expected: Tensor) -> bool:
    """The same bits, NaNs and the sign of zero included."""
    return torch.equal(got.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("case", ROPE, ids=str)
def test_rope_is_as_good_as_torch(case: RopeCase, dtype: torch.dtype) -> None:
    arguments = case.draw(dtype, "cuda")
    torch.use_deterministic_algorithms(True)  # poisons what is left unwritten
    try:
        found = rope_cases.run(arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    plain, exact = (rope_cases.plain(arguments, accumulate) for accumulate in (dtype, torch.float64))
    for ours, theirs, true in zip(found, plain, exact, strict=True):
        assert torch.equal(ours.isnan(), true.isnan())
        errors = [(each.double() - true).nan_to_num().abs().max() for each in (ours, theirs)]
        assert errors[0] <= 2 * errors[1] + 1e-5


@pytest.mark.parametrize("norm", [False, True])
def test_rope_of_a_token_alone_has_the_same_bits(norm: bool) -> None:
    """Decoded alone, verified, in a prefill; contiguous and paged; from a projection and from its copy."""
    arguments = RopeCase(2, 40, 32, 8, 128, 100, 128, norm=norm).draw(BF16, "cuda")
    arguments["lengths_B"] = torch.tensor([60, 3], device="cuda")
    whole = rope_cases.run(arguments)
    paged = rope_cases.run(rope_cases.paged(arguments, 16))
    assert same(paged[0], whole[0])
    for first, count in ((0, 1), (39, 1), (7, 8), (0, 16)):
        part = dict(arguments, lengths_B=arguments["lengths_B"] + first)
        for name in ("q_BTHD", "k_BTKD", "v_BTKD"):
            part[name] = arguments[name][:, first : first + count].clone()
        found = rope_cases.run(part)
        assert same(found[0], whole[0][:, first : first + count])
        for b, length in enumerate((60, 3)):
            slots = slice(length + first, length + first + count)
            for got, expected in zip(found[1:], whole[1:], strict=True):
                assert same(got[b, slots], expected[b, slots])


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("case", PROPAGATE, ids=str)
def test_propagated_bits_are_those_of_the_layers_own_kernels(case: PropagateCase, dtype: torch.dtype) -> None:
    arguments = case.draw(dtype, "cuda")
    found = propagate_cases.run(arguments), with_caches(layer_by_layer, arguments)
    plain = with_caches(propagate_reference, arguments, accumulate=dtype)
    for got, expected, theirs, true in zip(*found, plain, propagate_cases.exact(arguments), strict=True):
        assert same(got, expected)
        small = (5e-6 if dtype == F32 else 2e-3) * true.nan_to_num().abs().max()
        errors = [(each.double() - true).nan_to_num().abs().max() for each in (got, theirs)]
        assert errors[0] <= 2 * errors[1] + small


def test_propagated_tokens_do_not_depend_on_their_neighbours() -> None:
    arguments = PropagateCase(3, 40, 1, 2048, 4, 64, 50, 64).draw(BF16, "cuda")
    whole = propagate_cases.run(arguments)
    for first, count in ((0, 1), (39, 1), (5, 8), (3, 17), (0, 16)):
        rows = slice(first, first + count)
        part = dict(arguments, hidden_BTC=arguments["hidden_BTC"][rows])
        part |= {"lengths_B": arguments["lengths_B"][rows]}
        part |= {name: arguments[name][:, rows] for name in ("k_cache", "v_cache")}
        for got, expected in zip(propagate_cases.run(part), whole, strict=True):
            assert same(got, expected[:, rows])


def test_captured_and_compiled() -> None:
    """A captured step whose exits, lengths and positions are decided on the device, replayed with others."""
    rope = RopeCase(4, 1, 32, 8, 128, 256, 128).draw(BF16, "cuda")
    skip = PropagateCase(3, 4, 1, 2048, 8, 128, 256, 128, ragged=True).draw(BF16, "cuda")
    names = ("k_cache", "v_cache")
    caches = [{name: each[name].clone() for name in names} for each in (rope, skip)]
    lengths_B = torch.zeros(4, dtype=torch.int64, device="cuda")
    left_B = torch.zeros(4, dtype=torch.int32, device="cuda")

    def step(caches: list[dict[str, Tensor]]) -> Tensor:
        q = rope_cache_write(**(rope | caches[0] | {"lengths_B": lengths_B}))
        out = attention_with_cache(q, caches[0]["k_cache"], caches[0]["v_cache"], lengths_B)
        assert isinstance(out, Tensor)
        propagate(**(skip | caches[1] | {"lengths_B": lengths_B, "query_lengths_B": left_B}))
        return out

    step([{name: each.clone() for name, each in part.items()} for part in caches])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step(caches)
    for at in range(5):
        lengths_B.copy_(torch.tensor([at, 2 * at, 100, 255]))
        left_B.copy_(torch.tensor([at % 2, 0, 1, at == 3]))
        expected_caches = [{name: each.clone() for name, each in part.items()} for part in caches]
        expected = step(expected_caches)
        graph.replay()
        assert same(out, expected)
        for got, wanted in zip(caches, expected_caches, strict=True):
            assert all(same(got[name], wanted[name]) for name in names)
    compiled = torch.compile(step, fullgraph=True)
    copies = [{name: each.clone() for name, each in part.items()} for part in caches]
    assert same(compiled(copies), step(caches))
    for got, wanted in zip(copies, caches, strict=True):
        assert all(same(got[name], wanted[name]) for name in names)


def test_offsets_beyond_32_bits() -> None:
    """Caches of more than 2**31 elements: their last slots and layers."""
    names = ("k_cache", "v_cache")
    rope = RopeCase(3, 1, 4, 2, 64, 20, 64, positions=True).draw(BF16, "cuda")
    q, *caches = rope_cases.run(rope)
    slots = 2**23
    for name in names:
        small, rope[name] = rope[name], torch.zeros(3, slots, 2, 64, dtype=BF16, device="cuda")
        rope[name][:, -20:] = small
    rope["lengths_B"] += slots - 20
    assert same(rope_cache_write(**rope), q)
    for name, expected in zip(names, caches, strict=True):
        assert same(rope[name][:, -20:], expected)
        assert not rope[name][:, :-20].any()
    rope.clear()

    skip = PropagateCase(3, 2, 1, 128, 2, 128, 9, 128, positions=True).draw(BF16, "cuda")
    caches = list(propagate_cases.run(skip))
    for name in names:
        small, skip[name] = skip[name], torch.zeros(3, 2, slots // 2, 2, 128, dtype=BF16, device="cuda")
        skip[name][:, :, -9:] = small
    skip["lengths_B"] += slots // 2 - 9
    propagate(**skip)
    for name, expected in zip(names, caches, strict=True):
        assert same(skip[name][:, :, -9:], expected)
        assert not skip[name][:, :, :-9].any()
