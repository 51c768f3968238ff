"""Attention on a GPU: the Triton kernels' errors and times beside PyTorch's fused attention, in one run.

Run as ``python -m lit_eff.bench.attention --output results.json``; torch, Triton and an NVIDIA GPU suffice.
FLOPs: forward 4 B H T^2 D, half of it when causal; backward 2.5 times the forward. Times are medians, the L2
cache flushed between runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lit_eff.errors import UserError
from lit_eff.files import atomic_path
from lit_eff.kernels.attention import attention, attention_reference, supports, visible_keys
from lit_eff.profiling.devices import driver_version, find_device

TOKENS = 16_384  # a batch, whatever the length
WIDTH = 2_048  # heads times head dim
PEERS = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION}


@dataclass(frozen=True)
class Check:
    """One correctness case: batch, queries, keys, heads, kv heads, head dim, and the mask arguments."""

    name: str
    sizes: tuple[int, int, int, int, int, int]
    options: dict[str, Any]
    documents: int = 0
    starts: tuple[int, ...] | None = None


CHECKS = (
    Check("full", (2, 1024, 1024, 8, 8, 64), {}),
    Check("causal", (2, 1024, 1024, 8, 8, 128), {"causal": True}),
    Check("causal, ragged, grouped", (2, 777, 1111, 8, 2, 128), {"causal": True}),
    Check("head dim 16", (2, 300, 300, 4, 4, 16), {"causal": True}),
    Check("head dim 80", (2, 513, 513, 4, 4, 80), {"causal": True}),
    Check("window", (1, 1500, 1500, 4, 1, 96), {"causal": True, "window": 300}),
    Check("softcap", (2, 600, 600, 4, 2, 64), {"causal": True, "softcap": 20.0}),
    Check("documents", (2, 900, 900, 4, 2, 64), {"causal": True}, documents=5),
    Check("cache", (4, 8, 2048, 8, 2, 128), {}, starts=(0, 100, 2000, 2040)),
)


@dataclass(frozen=True)
class Error:
    """Greatest absolute errors against float32 (float64 for float32 inputs), ours and PyTorch's."""

    case: str
    dtype: str
    tensor: str
    ours: float
    torchs: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.ours <= self.allowed  # False for NaN


@dataclass(frozen=True)
class Timing:
    """Median milliseconds and TFLOP/s of one implementation at one shape; None where it does not run."""

    implementation: str
    head_dim: int
    length: int
    causal: bool
    forward_ms: float | None
    backward_ms: float | None
    forward_tflops: float | None
    backward_tflops: float | None
    note: str = ""


def _gradients(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], dout: Tensor, **arguments: Any
) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = function(*leaves, **arguments)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout.to(out.dtype))]


def _torch_low_precision(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, **arguments: Any) -> Tensor:
    """PyTorch's attention in the inputs' dtype: fused where it can, else the plain products."""
    if arguments.get("softcap") is not None:
        return attention_reference(q_BTHD, k_BSKD, v_BSKD, accumulate=q_BTHD.dtype, **arguments)  # type: ignore[return-value]
    mask_BTS = visible_keys(q_BTHD.shape[1], k_BSKD.shape[1], device=q_BTHD.device, **arguments)
    group = q_BTHD.shape[2] // k_BSKD.shape[2]
    k_BHSD, v_BHSD = (x.repeat_interleave(group, dim=2).transpose(1, 2) for x in (k_BSKD, v_BSKD))
    mask = None if mask_BTS is None else mask_BTS[:, None]
    return F.scaled_dot_product_attention(q_BTHD.transpose(1, 2), k_BHSD, v_BHSD, mask).transpose(1, 2)


def check(case: Check, dtype: torch.dtype) -> list[Error]:
    """Errors of output and gradients; allowed is twice PyTorch's own and a little."""
    batch, queries, keys, heads, kv_heads, head_dim = case.sizes
    generator = torch.Generator("cuda").manual_seed(0)
    sizes = [(queries, heads)] + 2 * [(keys, kv_heads)]
    tensors = [
        torch.randn(batch, rows, count, head_dim, device="cuda", generator=generator).to(dtype)
        for rows, count in sizes
    ]
    dout = torch.randn(batch, queries, heads, head_dim, device="cuda", generator=generator).to(dtype)
    arguments = dict(case.options)
    if case.documents:
        ids = torch.randint(0, case.documents, (batch, queries), device="cuda", generator=generator)
        arguments["documents_BT"] = ids.sort(dim=1).values
    if case.starts is not None:
        arguments["starts_B"] = torch.tensor(case.starts, device="cuda")
    wide = torch.float64 if dtype == torch.float32 else torch.float32
    got = _gradients(attention, tensors, dout, **arguments)  # type: ignore[arg-type]
    torchs = _gradients(_torch_low_precision, tensors, dout, **arguments)
    exact = _gradients(
        attention_reference,  # type: ignore[arg-type]
        [tensor.to(wide) for tensor in tensors],
        dout,
        accumulate=wide,
        **arguments,
    )
    small = 1e-5 if dtype == torch.float32 else 1e-3
    errors = []
    for name, ours, theirs, true in zip(("out", "dq", "dk", "dv"), got, torchs, exact, strict=True):
        error, yardstick = (float((x - true).abs().max()) for x in (ours, theirs))
        errors.append(
            Error(case.name, str(dtype).removeprefix("torch."), name, error, yardstick, 2 * yardstick + small)
        )
    return errors


def _median_ms(function: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return float(do_bench(function, warmup=50, rep=150, return_mode="median"))


def time_attention(name: str, head_dim: int, length: int, causal: bool) -> Timing:
    """Time ``ours`` or one of `PEERS`, in bfloat16, forward and backward apart."""
    batch, heads = TOKENS // length, WIDTH // head_dim
    q, k, v, dout = (
        torch.randn(batch, length, heads, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(4)
    )
    leaves = [tensor.requires_grad_() for tensor in (q, k, v)]

    def forward() -> Tensor:
        if name == "ours":
            return attention(q, k, v, causal=causal)  # type: ignore[return-value]
        q_BHTD, k_BHSD, v_BHSD = (tensor.transpose(1, 2) for tensor in (q, k, v))
        with sdpa_kernel(PEERS[name]):
            return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, is_causal=causal).transpose(1, 2)

    flops = 4 * batch * heads * length**2 * head_dim / (2 if causal else 1)
    try:
        out = forward()
    except RuntimeError as error:
        return Timing(name, head_dim, length, causal, None, None, None, None, str(error).splitlines()[0])
    forward_ms = _median_ms(forward)
    backward_ms = _median_ms(lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True))
    return Timing(
        name,
        head_dim,
        length,
        causal,
        forward_ms,
        backward_ms,
        flops / forward_ms / 1e9,
        2.5 * flops / backward_ms / 1e9,
    )


def _ceilings() -> dict[str, float]:
    """What this GPU reaches in this run: a large bfloat16 product and a device copy, read and written."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return {
        "matmul_tflops": 2 * 8192**3 / _median_ms(lambda: a @ b) / 1e9,
        "copy_gb_per_second": 2 * source.numel() / _median_ms(lambda: target.copy_(source)) / 1e6,
    }


def _run_checks() -> list[Error]:
    print(f"{'case':26}{'dtype':10}{'tensor':8}{'ours':>10}{'torch':>10}{'allowed':>10}")
    errors = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for case in CHECKS:
            for each in check(case, dtype):
                errors.append(each)
                verdict = "" if each.passed else "  FAILED"
                figures = f"{each.ours:10.2e}{each.torchs:10.2e}{each.allowed:10.2e}"
                print(f"{each.case:26}{each.dtype:10}{each.tensor:8}{figures}{verdict}", flush=True)
    return errors


def _run_timings(lengths: Sequence[int]) -> list[Timing]:
    print(f"\nTFLOP/s forward / backward, bfloat16, {TOKENS} tokens, heads x dim = {WIDTH}")
    names = ["ours", *PEERS]
    print(f"{'dim, length, causal':24}" + "".join(f"{name:>20}" for name in names))
    timings = []
    for head_dim in (64, 128):
        for length in lengths:
            for causal in (False, True):
                row = [time_attention(name, head_dim, length, causal) for name in names]
                timings += row
                cells = (
                    f"{each.forward_tflops:.0f} / {each.backward_tflops:.0f}"
                    if each.forward_tflops is not None
                    else "unavailable"
                    for each in row
                )
                label = f"{head_dim}, {length}, {'yes' if causal else 'no'}"
                print(f"{label:24}" + "".join(f"{cell:>20}" for cell in cells), flush=True)
    return timings


def main(argv: Sequence[str] | None = None) -> int:
    """Check and time; returns 0, 1 if a check failed, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="lit-eff bench attention", description=__doc__)
    parser.add_argument("--output", type=Path, help="where to write the results as JSON")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[1024, 4096, 16384], help="lengths to time, in tokens"
    )
    parser.add_argument("--only", choices=["checks", "timings"], help="leave the other half out")
    arguments = parser.parse_args(argv)
    try:
        if not torch.cuda.is_available():
            raise UserError("bench attention needs an NVIDIA GPU; none is visible to torch")
        support = supports("cuda", head_dim=64, dtype=torch.bfloat16)
        if not support:
            raise UserError(f"bench attention: {support.reason}")
        wrong = [length for length in arguments.lengths if length < 1 or TOKENS % length]
        if wrong:
            raise UserError(f"--lengths {wrong[0]} does not divide {TOKENS} tokens")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    import triton

    name = torch.cuda.get_device_name()
    device = find_device(name)
    print(f"{name}, torch {torch.__version__}, triton {triton.__version__}\n")
    errors = _run_checks() if arguments.only != "timings" else []
    timings = _run_timings(arguments.lengths) if arguments.only != "checks" else []
    results = {
        "device": name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "driver": driver_version(),
        "source": "measured",
        "datasheet_bf16_tflops": device.peak("bfloat16") / 1e12 if device else None,
        "ceilings": _ceilings(),
        "checks": [asdict(each) | {"passed": each.passed} for each in errors],
        "timings": [asdict(each) for each in timings],
    }
    failed = [each for each in errors if not each.passed]
    print(f"\n{len(errors) - len(failed)} of {len(errors)} checks passed; ceilings {results['ceilings']}")
    if arguments.output is not None:
        with atomic_path(arguments.output) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {arguments.output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
