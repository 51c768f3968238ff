"""Rotation with cache write in the interpreter: values, row invariance, what is left alone and refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_eff.errors import UserError
from lit_eff.kernels.attention.with_cache import attention_with_cache
from lit_eff.kernels.rope import RotaryTables, rope_cache_write, rotary_tables
from lit_eff.models.config import ModelConfig
from lit_eff.models.layers import inverse_frequencies, rotary_table, rotate
from tests.kernels.rope_cases import CASES, RopeCase, plain, run

F16, F32 = torch.float16, torch.float32


@pytest.mark.usefixtures("interpreter", "poisoned")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_matches_float64(case: RopeCase) -> None:
    """q and both caches, of which nothing but the tokens' slots changes."""
    arguments = case.draw(F32)
    for got, expected in zip(run(arguments, case.tile), plain(arguments, torch.float64), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.usefixtures("interpreter", "poisoned")
@pytest.mark.parametrize("case", [RopeCase(), RopeCase(norm=True, rotary=12)], ids=str)
def test_float16_is_as_good_as_torch(case: RopeCase) -> None:
    arguments = case.draw(F16)
    found = run(arguments), plain(arguments, F16), plain(arguments, torch.float64)
    for ours, theirs, exact in zip(*found, strict=True):
        assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + 1e-4


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ],
    ids=["plain", "linear", "llama3"],
)
def test_it_is_the_models_rotation(scaling: dict[str, Any] | None) -> None:
    """Angles are the models' bit for bit, whatever the scaling; turned, they differ in rounding alone."""
    config = ModelConfig(
        vocab_size=8, layers=1, model_dim=64, heads=2, context=64, head_dim=32, rope_scaling=scaling
    )
    tables = rotary_tables(inverse_frequencies(config, torch.device("cpu")), 64)
    arguments = RopeCase(heads=2, kv_heads=1, capacity=60).draw(F32) | {"tables": tables}
    positions_BT = arguments["lengths_B"][:, None] + torch.arange(4)
    cos, sin = rotary_table(config, positions_BT, F32)
    assert torch.equal(tables.cos_MR[positions_BT], cos[:, :, 0])
    assert torch.equal(tables.sin_MR[positions_BT], sin[:, :, 0])
    torch.testing.assert_close(run(arguments)[0], rotate(arguments["q_BTHD"], cos, sin))


@pytest.mark.usefixtures("interpreter")
def test_attention_finds_what_was_written() -> None:
    """A sequence written in pieces into shuffled pages is attended to as the whole that it is."""
    whole = RopeCase(batch=2, queries=9, capacity=9).draw(F32)
    whole["lengths_B"] = torch.zeros(2, dtype=torch.int64)
    q, k_cache, v_cache = run(whole)
    expected = attention_with_cache(q, k_cache, v_cache, whole["lengths_B"])
    table_BP = torch.tensor([[5, 0, 3], [1, 6, 4]], dtype=torch.int32)
    pages = [torch.full((7, 4, 2, 32), torch.nan) for _ in range(2)]
    found = []
    for first, count in ((0, 3), (3, 5), (8, 1)):
        part = slice(first, first + count)
        lengths_B = torch.full((2,), first)
        q_BTHD, k_BTKD, v_BTKD = (whole[name][:, part] for name in ("q_BTHD", "k_BTKD", "v_BTKD"))
        q = rope_cache_write(
            q_BTHD, k_BTKD, v_BTKD, *pages, lengths_B, tables=whole["tables"], page_table_BP=table_BP
        )
        found.append(attention_with_cache(q, *pages, lengths_B, page_table_BP=table_BP))
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.usefixtures("interpreter")
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 5),
    heads=st.integers(1, 9),
    kv_heads=st.integers(1, 5),
    half=st.integers(8, 40),
    part=st.floats(0, 1),
    page=st.integers(0, 9),
    ragged=st.booleans(),
    positions=st.booleans(),
    norm=st.booleans(),
)
def test_any_sizes(
    batch: int,
    queries: int,
    heads: int,
    kv_heads: int,
    half: int,
    part: float,
    page: int,
    ragged: bool,
    positions: bool,
    norm: bool,
) -> None:
    rotary = 2 * round(part * half)
    case = RopeCase(
        batch, queries, heads, kv_heads, 2 * half, 13, rotary, page, ragged, positions and rotary > 0, norm
    )
    arguments = case.draw(F32)
    for got, expected in zip(run(arguments), plain(arguments, torch.float64), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=5e-5, atol=5e-5, equal_nan=True)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("case", [RopeCase(queries=6), RopeCase(queries=6, page=4, norm=True)], ids=str)
def test_tokens_do_not_depend_on_their_neighbours(case: RopeCase) -> None:
    """A token alone, or with others, of other lengths and values: the same bits."""
    arguments = case.draw(F32)
    lengths_B, table_BP = arguments["lengths_B"], arguments.get("page_table_BP")
    whole = run(arguments)
    for b, first, count in ((0, 0, 1), (2, 5, 1), (1, 2, 3)):
        part = dict(arguments, lengths_B=lengths_B[b : b + 1] + first)
        for name in ("q_BTHD", "k_BTKD", "v_BTKD"):
            part[name] = arguments[name][b : b + 1, first : first + count]
        if table_BP is None:
            part |= {name: arguments[name][b : b + 1] for name in ("k_cache", "v_cache")}
        else:
            part["page_table_BP"] = table_BP[b : b + 1]
        q, *caches = run(part)
        assert torch.equal(q, whole[0][b : b + 1, first : first + count])
        for slot in range(int(lengths_B[b]) + first, int(lengths_B[b]) + first + count):
            place = (b, slot) if table_BP is None else (table_BP[b, slot // 4], slot % 4)
            own = (0, slot) if table_BP is None else place
            for got, expected in zip(caches, whole[1:], strict=True):
                assert torch.equal(got[own], expected[place])


@pytest.mark.usefixtures("interpreter")
def test_strides_change_no_bit_and_out_may_be_q() -> None:
    arguments = RopeCase(norm=True).draw(F32)
    expected = run(arguments)
    for name in ("q_BTHD", "k_BTKD", "v_BTKD"):
        arguments[name] = arguments[name].permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    wide = {name: torch.full((3, 20, 2, 70), -1.0) for name in ("k_cache", "v_cache")}
    caches = {name: each[..., 3:67:2] for name, each in wide.items()}
    for name, each in caches.items():
        each.copy_(arguments[name])
    out = arguments["q_BTHD"]
    assert rope_cache_write(**(arguments | caches), out=out) is out
    for got, wanted in zip((out, *caches.values()), expected, strict=True):
        assert torch.equal(got, wanted)
    for each in wide.values():
        assert (each[..., 4:67:2] == -1).all()


@pytest.mark.usefixtures("interpreter", "poisoned")
@pytest.mark.parametrize("tables", [True, False])
def test_what_is_no_token_is_left_out(tables: bool) -> None:
    """As on a GPU, where nothing is checked: slots, positions and pages out of range, at both ends."""
    case = RopeCase(4, 3, rotary=32 if tables else 0, page=4, positions=True, norm=True)
    arguments = case.draw(F32) | {"norm_eps": 0.0}
    arguments["lengths_B"] = torch.tensor([18, -2, 5, 0])
    arguments["query_lengths_B"] = torch.tensor([3, 3, -1, 9])
    arguments["positions_BT"][3, 0], arguments["positions_BT"][3, 1] = -1, 20
    arguments["page_table_BP"][0, 4] = 99
    arguments["page_table_BP"][1] = -1
    with mock.patch("lit_eff.kernels.rope.interface.check_places"):
        found = run(arguments)
    q = found[0]
    assert not q[1:3].any()
    assert q[0, :2].isfinite().all()
    assert q[0, :2].all()
    if tables:
        assert not q[3, :2].any()
    assert q[3, 2].all()
    for got, name in zip(found[1:], ("k_cache", "v_cache"), strict=True):
        same = (got == arguments[name]) | (got.isnan() & arguments[name].isnan())
        changed = (~same).all(dim=-1).all(dim=-1).nonzero().tolist()
        first = int(arguments["page_table_BP"][3, 0])
        assert changed == [[first, 2]] if tables else [[first, 0], [first, 1], [first, 2]]
        assert same.sum() == same.numel() - 64 * len(changed)
    for got, expected in zip(found, plain(arguments), strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.usefixtures("interpreter")
def test_a_page_past_the_last_is_none() -> None:
    arguments = RopeCase(page=4).draw(F32)
    arguments["page_table_BP"][0] = pages = arguments["k_cache"].shape[0] - 1
    pools = [arguments[name].clone() for name in ("k_cache", "v_cache")]
    caches = {name: pool[:pages] for name, pool in zip(("k_cache", "v_cache"), pools, strict=True)}
    with mock.patch("lit_eff.kernels.rope.interface.check_places"):
        q = rope_cache_write(**(arguments | caches))
    for pool, name in zip(pools, ("k_cache", "v_cache"), strict=True):
        torch.testing.assert_close(pool[pages], arguments[name][pages], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(q, run(arguments)[0])


@pytest.mark.usefixtures("interpreter")
def test_infinities_stay_in_their_channels() -> None:
    """Those that do not turn, that is."""
    arguments = RopeCase(rotary=16).draw(F32)
    arguments["q_BTHD"] = arguments["q_BTHD"].clone()
    arguments["q_BTHD"][..., 16:20] = torch.inf
    q = run(arguments)[0]
    assert q[..., 16:20].isinf().all()
    assert q[..., :16].isfinite().all()
    assert q[..., 20:].isfinite().all()


@pytest.mark.usefixtures("interpreter")
def test_operator_check_and_tracing() -> None:
    from lit_eff.kernels.rope.operator import rope_cache_write as operator

    arguments = RopeCase(page=4, norm=True, ragged=True).draw(F32)
    q, k, v, lengths_B = (arguments[name] for name in ("q_BTHD", "k_BTKD", "v_BTKD", "lengths_B"))
    k_cache, v_cache = (arguments[name].nan_to_num() for name in ("k_cache", "v_cache"))
    names = ("page_table_BP", "query_lengths_B", "positions_BT", "q_norm_D", "k_norm_D")
    options = [arguments.get(name) for name in names]
    flat = (q, k, v, torch.empty_like(q), k_cache, v_cache, lengths_B, *arguments["tables"], *options, 1e-5)
    torch.library.opcheck(operator, flat)

    expected = run(arguments | {"k_cache": k_cache, "v_cache": v_cache})
    for in_place in (False, True):
        caches = {"k_cache": k_cache.clone(), "v_cache": v_cache.clone()}

        def step(x: torch.Tensor, in_place: bool = in_place, caches: Any = caches) -> torch.Tensor:
            """q is a view of what comes in, as it is of a fused projection."""
            q = x[:, :, :4] * 1.0
            changed = arguments | caches | {"q_BTHD": q, "out": q if in_place else None}
            return rope_cache_write(**changed) * 2

        traced = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert torch.equal(traced(q), expected[0] * 2)
        assert torch.equal(caches["k_cache"], expected[1])
        assert torch.equal(caches["v_cache"], expected[2])


@pytest.mark.usefixtures("interpreter")
def test_no_tokens() -> None:
    arguments = RopeCase(queries=0).draw(F32)
    assert run(arguments)[0].shape == (3, 0, 4, 32)


def test_cpu_runs_the_reference_without_the_interpreter() -> None:
    arguments = RopeCase(page=4, norm=True, ragged=True).draw(F32)
    with mock.patch("lit_eff.kernels.linear.operator.INTERPRETED", False):
        found = run(arguments)
        out = torch.empty_like(arguments["q_BTHD"])
        assert rope_cache_write(**arguments, out=out) is out
    assert torch.equal(out, found[0])
    for got, expected in zip(found, plain(arguments), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


Q, KV, CACHE = torch.randn(2, 3, 4, 32), torch.randn(2, 3, 2, 32), torch.zeros(2, 9, 2, 32)
TABLES = rotary_tables(torch.ones(16), 8)
TABLE = torch.zeros(2, 1, dtype=torch.int32)
BAD: list[tuple[dict[str, Any], str]] = [
    ({"q_BTHD": Q[0]}, "wants q"),
    ({"v_BTKD": KV[:, :2]}, "wants q"),
    ({"q_BTHD": Q[:1]}, "differ in more than their heads"),
    ({"q_BTHD": Q[..., :9], "k_BTKD": KV[..., :9], "v_BTKD": KV[..., :9]}, "head dim 9"),
    ({"q_BTHD": Q[..., :17], "k_BTKD": KV[..., :17], "v_BTKD": KV[..., :17]}, "head dim 17 is odd"),
    ({"q_BTHD": Q.double()}, "float64 is not"),
    ({"k_BTKD": KV.half()}, "k is torch.float16"),
    ({"v_cache": CACHE.half()}, "v_cache is torch.float16"),
    ({"k_cache": CACHE.to("meta")}, "k_cache is on meta"),
    ({"out": Q[:1]}, "out .* must have the shape of q"),
    ({"out": Q.half()}, "out is torch.float16"),
    ({"k_cache": CACHE[:1]}, r"wants a cache \(2, S, 2, 32\); got \(1, 9, 2, 32\)"),
    ({"k_cache": CACHE[..., :16]}, "wants a cache"),
    ({"k_cache": CACHE[:, :8]}, "of one shape"),
    ({"k_cache": CACHE[:, :0], "v_cache": CACHE[:, :0], "page_table_BP": TABLE}, "hold no slot"),
    ({"tables": RotaryTables(TABLES[0], TABLES[1][1:])}, "sin_MR is torch.float32"),
    ({"tables": RotaryTables(TABLES[0].half(), TABLES[1])}, "cos_MR is torch.float16"),
    ({"tables": RotaryTables(TABLES[0].T.contiguous().T, TABLES[1])}, "must be contiguous"),
    ({"tables": rotary_tables(torch.ones(17), 8)}, "tables turn 34 channels"),
    ({"q_norm_D": torch.ones(31)}, r"q_norm_D must be floating point \(32,\)"),
    ({"k_norm_D": torch.ones(32, dtype=torch.int32)}, "k_norm_D must be"),
    ({"norm_eps": float("nan")}, "norm_eps nan"),
    ({"lengths_B": torch.zeros(2)}, "lengths_B must hold int32 or int64"),
    ({"positions_BT": torch.zeros(2, 2, dtype=torch.int64)}, r"positions_BT must have shape \(2, 3\)"),
    ({"lengths_B": torch.tensor([0, 7])}, "row 1 has 7 tokens and 3 query tokens, more than the 9 slots"),
    ({"lengths_B": torch.tensor([6, 0]), "tables": TABLES}, "more than the 8 positions of the rotary tables"),
    ({"lengths_B": torch.tensor([0, -1])}, "row 1 has length -1"),
    ({"query_lengths_B": torch.tensor([0, 4])}, "row 1 has 4 of 3 query tokens"),
    ({"page_table_BP": TABLE + 2}, r"page_table_BP\[0, 0\] is 2, not one of the 2 pages"),
    (
        {"positions_BT": torch.full((2, 3), 8), "tables": TABLES},
        r"positions_BT\[0, 0\] is 8, not one of the 8 positions",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message for _, message in BAD])
def test_refusals(changes: dict[str, Any], message: str) -> None:
    given = {"q_BTHD": Q, "k_BTKD": KV, "v_BTKD": KV, "k_cache": CACHE, "v_cache": CACHE}
    with pytest.raises(UserError, match=message):
        rope_cache_write(**(given | {"lengths_B": torch.tensor([0, 6])} | changes))


@pytest.mark.usefixtures("interpreter")
def test_rows_without_tokens_need_no_pages() -> None:
    arguments = replace(RopeCase(), page=4).draw(F32)
    arguments["page_table_BP"][1] = -1
    arguments["query_lengths_B"] = torch.tensor([4, 0, 4])
    run(arguments)
