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
from tests.kernels.cases import CASES, Case

GRADIENT_CASES = [CASES[2], CASES[3], CASES[4], CASES[8], CASES[11]]


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
        documents=bool(case.documents),
    )


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_counts_as_modelled(case: Case) -> None:
    from lit_eff.kernels.attention import attention

    with count_traffic() as launches:
        attention(*case.tensors(torch.float32), **case.arguments())
    (count,) = launches
    modelled = traffic_model.forward_traffic(shape_of(case), tile_table.forward_tiles(case.head_dim, 4))
    reads, writes = by_tensor(count)
    assert reads == {name: value for name, value in modelled.reads.items() if value}
    assert writes == modelled.writes
    assert count.atomic_bytes == 0


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("case", GRADIENT_CASES, ids=str)
def test_backward_counts_as_modelled(case: Case) -> None:
    from lit_eff.kernels.attention import attention

    q, k, v = (tensor.requires_grad_() for tensor in case.tensors(torch.float32))
    out, lse = attention(q, k, v, return_lse=True, **case.arguments())
    with count_traffic() as launches:
        torch.autograd.backward([out, lse], [torch.randn_like(out), torch.randn_like(lse)])
    shape = shape_of(case)
    models = [
        traffic_model.delta_traffic(shape, lse_gradient=True),
        traffic_model.key_gradient_traffic(shape, tile_table.key_gradient_tiles(case.head_dim, 4)),
        traffic_model.query_gradient_traffic(shape, tile_table.query_gradient_tiles(case.head_dim, 4)),
    ]
    for count, modelled in zip(launches, models, strict=True):
        reads, writes = by_tensor(count)
        assert reads == {name: value for name, value in modelled.reads.items() if value}, count.kernel
        assert writes == modelled.writes, count.kernel
        assert count.atomic_bytes == 0


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
        ({"head_dim": 200}, "outside 16 to 128"),
        ({"kv_heads": 3}, "not a multiple"),
        ({"causal": False, "window": 4}, "needs causal"),
    ],
)
def test_bad_requests_are_named(change: dict[str, object], message: str) -> None:
    arguments = {"batch": 1, "heads": 4, "kv_heads": 2, "queries": 8, "head_dim": 32, "causal": True} | change
    with pytest.raises(UserError, match=message):
        count_forward(**arguments)
