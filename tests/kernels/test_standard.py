"""Standard attention: equal to the reference, Algorithm 0's bytes, within every device's shared memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_eff.errors import UserError
from lit_eff.kernels.attention import attention_reference
from lit_eff.kernels.attention.io_model import AttentionShape, standard_forward
from lit_eff.kernels.attention.standard import standard_attention
from lit_eff.profiling.counted import count_traffic
from lit_eff.profiling.devices import get_device
from tests.kernels.cases import Case
from tests.kernels.compiling import compile_all

CASES = [
    Case(1, 128, 128, 2, 2, 64),
    Case(2, 70, 130, 4, 2, 48, {"causal": True}),
    Case(1, 130, 70, 2, 1, 24, {"causal": True}),  # the first 60 queries see nothing
    Case(1, 100, 100, 2, 2, 32, {"causal": True, "window": 30}),
    Case(1, 90, 100, 1, 1, 16, {"window": 20, "scale": 0.5}),
    Case(1, 1, 1, 1, 1, 128, {"causal": True}),
]
LONG = Case(1, 1, 9000, 1, 1, 16)  # its rows are longer than the softmax tile


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("case", [*CASES, LONG], ids=str)
def test_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    q, k, v = case.tensors(dtype)
    exact = attention_reference(q.double(), k.double(), v.double(), accumulate=torch.float64, **case.options)
    rounded = attention_reference(q, k, v, accumulate=dtype, **case.options)
    out = standard_attention(q, k, v, **case.options)
    allowed = 2 * float((rounded - exact).abs().max()) + (1e-6 if dtype == torch.float32 else 1e-3)
    assert out.dtype == dtype
    assert float((out - exact).abs().max()) <= allowed


@pytest.mark.usefixtures("interpreter")
def test_strides_and_every_byte_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs sliced from one packed tensor; every buffer starts as NaN."""
    packed = torch.randn(2, 50, 3, 2, 40)
    q, k, v = (packed[:, :, i, :, :24] for i in range(3))
    empty, empty_like = torch.Tensor.new_empty, torch.empty_like
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *s, **o: empty(self, *s, **o).fill_(torch.nan)
    )
    monkeypatch.setattr(torch, "empty_like", lambda *a, **o: empty_like(*a, **o).fill_(torch.nan))
    out = standard_attention(q, k, v, causal=True)
    torch.testing.assert_close(out, attention_reference(q, k, v, causal=True), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("interpreter")
def test_distinct_sectors_are_algorithm_0() -> None:
    """What a perfect cache would leave of the requests is the paper's formula."""
    case = Case(1, 160, 96, 4, 2, 32)
    with count_traffic() as launches:
        standard_attention(*case.tensors(torch.float16))
    shape = AttentionShape(case.batch, case.queries, case.keys, case.heads, case.kv_heads, case.head_dim)
    formula = standard_forward(shape)
    assert sum(count.read_sector_bytes for count in launches) == formula.read_bytes
    assert sum(count.written_sector_bytes for count in launches) == formula.written_bytes


@pytest.mark.usefixtures("interpreter")
def test_no_keys_or_no_queries() -> None:
    q, k = torch.randn(1, 3, 2, 16), torch.randn(1, 5, 2, 16)
    for queries, keys in ((q, k[:, :0]), (q[:, :0], k), (q[:0], k[:0])):
        out = standard_attention(queries, keys, keys)
        assert out.shape == queries.shape
        assert not out.any()


@pytest.mark.usefixtures("interpreter")
def test_bad_input_is_named() -> None:
    q, k = torch.randn(1, 4, 3, 16), torch.randn(1, 4, 2, 16)
    with pytest.raises(UserError, match="not a multiple"):
        standard_attention(q, k, k)
    with pytest.raises(UserError, match="window 0"):
        standard_attention(q, q, q, window=0)


PROGRAM = """
import dataclasses, json, sys, torch
from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.standard import standard_launches
from lit_eff.profiling.compiled import compile_launch
for dtype, head_dim, keys, options, capability in json.loads(sys.argv[1]):
    with torch.device("meta"):
        q, k = torch.empty(4, 1000, 8, head_dim, dtype=getattr(torch, dtype)), None
        k = torch.empty(4, keys, 2, head_dim, dtype=q.dtype)
        scores = torch.empty(4, 8, 1000, keys, dtype=q.dtype)
    call = AttentionCall(q, k, k, None, None, None, 0.125, **options, softcap=None)
    for launch in standard_launches(call, scores, scores, q):
        print(json.dumps(dataclasses.asdict(compile_launch(launch, capability))))
"""


def check_budget(wanted: list[Any], cache: Path) -> None:
    smallest = get_device("L4").shared_memory_per_block
    for each in compile_all(PROGRAM, wanted, cache):
        assert each["shared_memory_bytes"] <= smallest, each
        assert each["spill_store_bytes"] == 0, each


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_fit_without_spills(capability: int, tmp_path: Path) -> None:
    causal = {"causal": True, "window": None}
    check_budget([("bfloat16", head_dim, 1024, causal, capability) for head_dim in (64, 128)], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_form_fits_without_spills(capability: int, tmp_path: Path) -> None:
    wanted = [
        (dtype, head_dim, keys, {"causal": causal, "window": window}, capability)
        for dtype in ("float16", "float32")
        for head_dim in (16, 96, 256)
        for keys, causal, window in ((1000, False, None), (10_000, True, 256))
    ]
    check_budget(wanted, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 80, 256])
def test_on_a_gpu(head_dim: int) -> None:
    case = Case(2, 300, 515, 8, 2, head_dim, {"causal": True})
    q, k, v = case.tensors(torch.bfloat16, "cuda")
    exact = attention_reference(q.float(), k.float(), v.float(), **case.options)
    rounded = attention_reference(q, k, v, accumulate=torch.bfloat16, **case.options)
    error = float((standard_attention(q, k, v, **case.options) - exact).abs().max())
    assert error <= 2 * float((rounded - exact).abs().max()) + 1e-3
