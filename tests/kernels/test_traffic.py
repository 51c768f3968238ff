"""Bytes that the kernels request, counted in the interpreter, equal the model to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from lit_eff.errors import UserError
from lit_eff.kernels.attention import tiles as tile_table
from lit_eff.kernels.attention import traffic_model
from lit_eff.kernels.attention.io_model import AttentionShape
from lit_eff.kernels.attention.traffic import count_forward
from lit_eff.profiling.counted import KernelCount, count_traffic
from lit_eff.profiling.modelled import Traffic
from tests.kernels.cases import CASES, Case

# All else that adds requests: sinks, slopes, a seed, windows without causality, one id all along a row.
MORE = [
    Case(1, 70, 90, 2, 1, 16, {"window": 20, "sinks": 2, "alibi": 2}),
    Case(1, 200, 140, 2, 1, 16, {"causal": True, "dropout_p": 0.5, "seed": 1, "alibi": 2}),
    Case(1, 300, 260, 1, 1, 16, documents=1),
    Case(2, 200, 200, 2, 1, 16, {"causal": True, "window": 150}, documents=2),
]
GRADIENT_CASES = [CASES[2], CASES[3], CASES[4], CASES[8], CASES[11], *MORE]


def by_tensor(count: KernelCount) -> tuple[dict[str, int], dict[str, int]]:
    loads = {name: each.loads.requested_bytes for name, each in count.tensors.items()}
    stores = {name: each.stores.requested_bytes for name, each in count.tensors.items()}
    return {k: v for k, v in loads.items() if v}, {k: v for k, v in stores.items() if v}


def shape_of(case: Case) -> AttentionShape:
    return AttentionShape(
        case.batch,
        case.queries,
        case.keys,
        case.heads,
        case.kv_heads,
        case.head_dim,
        element_bytes=4,
        causal=case.options.get("causal", False),
        window=case.options.get("window"),
        starts=case.starts,
        documents=ids(case, "documents_BT"),
        key_documents=ids(case, "key_documents_BS"),
        sinks="sinks" in case.options,
        alibi="alibi" in case.options,
        dropout="dropout_p" in case.options,
    )


def ids(case: Case, name: str) -> tuple[tuple[int, ...], ...] | None:
    tensor = case.arguments().get(name)
    return None if tensor is None else tuple(map(tuple, tensor.tolist()))


def assert_counts(counts: list[KernelCount], expected: list[tuple[str, Traffic]]) -> None:
    """Kernel by kernel, tensor by tensor, to the byte, without atomics."""
    assert [count.kernel for count in counts] == [name for name, _ in expected]
    for count, (_, modelled) in zip(counts, expected, strict=True):
        reads, writes = by_tensor(count)
        assert reads == {name: value for name, value in modelled.reads.items() if value}, count.kernel
        assert writes == modelled.writes, count.kernel
        assert count.atomic_bytes == 0


def ranges(shape: AttentionShape, own: int, other: int, block: int) -> list[tuple[str, Traffic]]:
    if shape.documents is None:
        return []
    return [("document_ranges_kernel", traffic_model.document_ranges_traffic(shape, own, other, block))]


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("case", CASES + MORE, ids=str)
def test_forward_counts_as_modelled(case: Case) -> None:
    from lit_eff.kernels.attention import attention

    with count_traffic() as counts:
        attention(*case.tensors(torch.float32), **case.arguments())
    shape, tiles = shape_of(case), tile_table.forward_tiles(case.head_dim, 4)
    expected = ranges(shape, case.queries, case.keys, tiles.block_m)
    expected += [("attention_forward_kernel", traffic_model.forward_traffic(shape, tiles))]
    assert_counts(counts, expected)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("case", GRADIENT_CASES, ids=str)
def test_backward_counts_as_modelled(case: Case) -> None:
    from lit_eff.kernels.attention import attention

    q, k, v = (tensor.requires_grad_() for tensor in case.tensors(torch.float32))
    out, lse = attention(q, k, v, return_lse=True, **case.arguments())
    with count_traffic() as counts:
        torch.autograd.backward([out, lse], [torch.randn_like(out), torch.randn_like(lse)])
    shape = shape_of(case)
    key_tiles = tile_table.key_gradient_tiles(case.head_dim, 4)
    query_tiles = tile_table.query_gradient_tiles(case.head_dim, 4)
    key_gradient = traffic_model.key_gradient_traffic(shape, key_tiles)
    query_gradient = traffic_model.query_gradient_traffic(shape, query_tiles)
    assert_counts(
        counts,
        [
            ("attention_delta_kernel", traffic_model.delta_traffic(shape, lse_gradient=True)),
            *ranges(shape, case.keys, case.queries, key_tiles.block_n),
            ("attention_key_gradient_kernel", key_gradient),
            *ranges(shape, case.queries, case.keys, query_tiles.block_m),
            ("attention_query_gradient_kernel", query_gradient),
        ],
    )


@pytest.mark.usefixtures("interpreter")
def test_blocks_of_other_documents_are_not_read() -> None:
    """Eight documents of 64 tokens, causal: keys read fall to what the documents span."""
    from lit_eff.kernels.attention import attention

    q, k = torch.randn(1, 512, 1, 16), torch.randn(1, 512, 1, 16)
    documents = torch.arange(512)[None] // 64
    with count_traffic() as counts:
        attention(q, k, k.clone(), causal=True, documents_BT=documents)
    read = {name: count.loads.requested_bytes for name, count in counts[-1].tensors.items()}
    tiles = tile_table.forward_tiles(16, 4)
    spanned = sum(max(tiles.block_m, 64) for _ in range(0, 512, tiles.block_m))
    assert read["k"] == spanned * 16 * 4


@pytest.mark.usefixtures("interpreter")
def test_packed_forward_counts_as_modelled() -> None:
    from lit_eff.kernels.attention import attention_varlen

    lengths = [(150, 150), (0, 40), (33, 100), (20, 0), (1, 1)]
    cu_q, cu_k = (torch.tensor([0, *(each[i] for each in lengths)]).cumsum(0).int() for i in (0, 1))
    q, k, v = (torch.randn(int(n), heads, 16) for n, heads in ((cu_q[-1], 2), (cu_k[-1], 1), (cu_k[-1], 1)))
    options = {"causal": True, "alibi": torch.rand(2), "sinks": torch.rand(2), "dropout_p": 0.1, "seed": 1}
    with count_traffic() as counts:
        attention_varlen(q, k, v, cu_q, cu_k, **options)
    rule = {"causal": True, "sinks": True, "alibi": True, "dropout": True}
    shapes = [AttentionShape(1, t, s, 2, 1, 16, element_bytes=4, **rule) for t, s in lengths]
    modelled = traffic_model.packed_forward_traffic(shapes, tile_table.forward_tiles(16, 4), 4)
    assert_counts(counts, [("attention_forward_kernel", modelled)])


@pytest.mark.usefixtures("interpreter")
def test_record_of_a_causal_count() -> None:
    record = count_forward(1, 2, 1, 200, 48, True)
    assert record.counted_equals_modelled
    assert record.shape["block_m"] == 128
    # Distinct sectors: each of Q, K and V once, however often its blocks are read; 48 of 64 lanes.
    assert record.get("read_sector_bytes", "counted") == 200 * 48 * 2 * (2 + 1 + 1)
    assert record.get("written_sector_bytes", "counted") == record.get("written_bytes", "counted")
    standard = record.baseline
    assert standard is not None
    assert standard.counted_equals_modelled
    assert [part.kernel for part in standard.parts] == [
        "standard_scores_kernel",
        "standard_softmax_kernel",
        "standard_output_kernel",
    ]
    assert all(part.counted_equals_modelled for part in standard.parts)
    # The paper's formula is what a perfect cache leaves: 4 N^2 + 4 N d elements; K and V of one head.
    formula = 2 * (4 * 2 * 200 * 200 + 2 * 2 * 200 * 48 + 2 * 200 * 48)
    for source in ("counted", "modelled"):
        read, written = (standard.get(f"{name}_sector_bytes", source) for name in ("read", "written"))
        assert read is not None
        assert written is not None
        assert read + written == formula
    # Two query tiles of two heads request K and V: three times more than that.
    assert standard.hbm_bytes("counted") == formula + 3 * 2 * (2 * 200 * 48)
    assert record.baseline_ratio is not None
    assert record.baseline_ratio > 3


def test_count_runs_where_the_kernels_are_compiled() -> None:
    """As from the command line: the process has no interpreter, the count starts one that has."""
    program = (
        "import json\n"
        "from lit_eff.kernels.attention.traffic import count_forward\n"
        "print(json.dumps(count_forward(1, 4, 4, 256, 32, True).to_dict()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    numbers = json.loads(done.stdout)["numbers"]
    counted, modelled = numbers["read_bytes"]
    assert (counted["source"], modelled["source"]) == ("counted", "modelled")
    assert counted["value"] == modelled["value"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "bfloat16"}, "cannot be counted"),
        ({"head_dim": 300}, "outside 16 to 256"),
        ({"kv_heads": 3}, "not a multiple"),
        ({"window": 0}, "at least 1"),
    ],
)
def test_bad_requests_are_named(change: dict[str, object], message: str) -> None:
    arguments = {"batch": 1, "heads": 4, "kv_heads": 2, "queries": 8, "head_dim": 32, "causal": True} | change
    with pytest.raises(UserError, match=message):
        count_forward(**arguments)
