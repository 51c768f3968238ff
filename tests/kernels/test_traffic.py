"""What attention requests of HBM, beyond the catalogued cases: public calls, documents, the record."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from lit_eff.errors import UserError
from lit_eff.kernels.attention import tiles as tile_table
from lit_eff.kernels.attention.specimens import AttentionCase, dense_call, launches
from lit_eff.kernels.attention.traffic import count_forward
from lit_eff.profiling.counted import count_traffic


@pytest.mark.usefixtures("interpreter")
def test_the_public_function_launches_what_is_catalogued() -> None:
    """The same kernels with the same requests, forward and backward."""
    from lit_eff.kernels.attention import attention

    case = AttentionCase(1, 50, 60, 2, 1, 16, causal=True, documents=2, sinks=True, lse_gradient=True)
    torch.manual_seed(0)
    call, _ = dense_call(case, torch.device("cpu"), 80)
    q, k, v = (tensor.clone().requires_grad_() for tensor in (call.q_BTHD, call.k_BSKD, call.v_BSKD))
    with count_traffic() as counts:
        out, lse = attention(
            q,
            k,
            v,
            causal=True,
            documents_BT=call.documents_BT,
            key_documents_BS=call.key_documents_BS,
            sinks=call.sinks_H,
            return_lse=True,
        )
        torch.autograd.backward([out, lse], [torch.randn_like(out), torch.randn_like(lse)])
    torch.manual_seed(0)
    catalogued = launches(case, torch.device("cpu"), 80)
    assert [count.kernel for count in counts] == [each.launch.name for each in catalogued]
    assert [(count.read_bytes, count.written_bytes) for count in counts] == [
        (each.traffic.read_bytes, each.traffic.written_bytes) for each in catalogued
    ]


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
