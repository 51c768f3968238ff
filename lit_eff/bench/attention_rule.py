"""The rule that decides whether attention is right, on one generated case.

Rule: the error against the exact result (float32 arithmetic; float64 for float32 inputs) is at most twice
that of PyTorch's own arithmetic in the inputs' dtype, and a little. Two runs give the same bits, and elements
that no kernel wrote show, for memory starts as NaN.

Without a GPU the kernels must have been imported with TRITON_INTERPRET=1; bfloat16 becomes float16 there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lit_eff.bench.attention_cached_cases import CachedCase
from lit_eff.bench.attention_cases import AttentionCase, AttentionInputs
from lit_eff.bench.checks import Outcome, outcome_of
from lit_eff.bench.interpreted import rows_alike

SMALL = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-3}  # of the largest element, if above 1
Case = AttentionCase | CachedCase


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty yields NaN in deterministic mode."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses that mode
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def compare(name: str, got: Tensor, plain: Tensor, exact: Tensor, dtype: torch.dtype) -> list[str]:
    """Faults of one tensor by the rule above; ``plain`` is PyTorch's own result in ``dtype``."""
    if got.shape != exact.shape:
        return [f"{name} has shape {tuple(got.shape)}, not {tuple(exact.shape)}"]
    if got.numel() == 0:
        return []
    wide = exact.dtype
    finite = exact.isfinite()
    if not torch.equal(got[~finite].to(wide), exact[~finite]):  # a log-sum-exp of nothing is -inf
        return [f"{name} is not {exact[~finite][0]:.0f} where it should be"]
    if not got[finite].isfinite().all():
        return [f"{name} has {int((~got[finite].isfinite()).sum())} elements that are not finite"]
    if not finite.any():
        return []
    true = exact[finite]
    error = float((got[finite].to(wide) - true).abs().max())
    yardstick = float((plain[finite].to(wide) - true).abs().nan_to_num(nan=0.0, posinf=0.0).max())
    allowed = 2 * yardstick + SMALL[dtype] * max(1.0, float(true.abs().max()))
    return [] if error <= allowed else [f"{name} is off by {error:.2e}, allowed {allowed:.2e}"]


def same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(
        torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        for a, b in zip(first, second, strict=True)
    )


def _run(
    function: Callable[..., Any], inputs: AttentionInputs, dtype: torch.dtype | None = None, **more: Any
) -> dict[str, Tensor]:
    """Output, log-sum-exp and all gradients, for inputs cast to ``dtype``."""
    names = ["q", "k", "v"]
    leaves = [(x if dtype is None else x.to(dtype)).detach().requires_grad_() for x in inputs.tensors]
    options = dict(inputs.options)
    if "sinks" in options:
        sinks = options["sinks"] if dtype is None else options["sinks"].to(dtype)
        options["sinks"] = sinks.detach().requires_grad_()
        leaves.append(options["sinks"])
        names.append("sinks")
    out, lse = function(*leaves[:3], return_lse=True, **options, **more)
    outputs, gradients = [out], [inputs.dout.reshape(out.shape).to(out.dtype)]
    if inputs.dlse is not None:
        seen = lse.isfinite()
        outputs.append(lse[seen])
        gradients.append(inputs.dlse.reshape(lse.shape)[seen].to(lse.dtype))
    found = torch.autograd.grad(outputs, leaves, gradients, allow_unused=True)
    result = {"out": out.detach(), "lse": lse.detach()}
    for name, leaf, gradient in zip(names, leaves, found, strict=True):
        result[f"d{name}"] = torch.zeros_like(leaf) if gradient is None else gradient
    return result


def check_case(case: AttentionCase, device: str) -> Outcome:
    """Output, log-sum-exp and gradients of one case on every path that takes it, on a GPU twice each."""
    from lit_eff.kernels import attention as room
    from lit_eff.kernels.attention.paths import use_path

    inputs = case.inputs(device)
    ours: Callable[..., Any] = room.attention
    reference: Callable[..., Any] = room.attention_reference
    if case.packed:
        ours, reference = room.attention_varlen, room.attention_varlen_reference
        inputs.tensors = [x[0] for x in inputs.tensors]
        if inputs.dlse is not None:
            inputs.dlse = inputs.dlse[0]
    dtype = inputs.tensors[0].dtype
    wide = torch.float64 if dtype == torch.float32 else torch.float32
    plain = _run(reference, inputs, accumulate=dtype)
    exact = _run(reference, inputs, wide, accumulate=wide)
    # The Hopper kernels take more calls forward than backward, so they cannot be forced on both.
    paths = [None, "portable"] if _path_of(inputs) == "hopper" else [None]
    faults = []
    for path in paths:
        with use_path(path), poisoned_memory():
            first = _run(ours, inputs)
            second = _run(ours, inputs) if device == "cuda" else first
        found = [] if same_bits([*first.values()], [*second.values()]) else ["two runs differ in bits"]
        for name, true in exact.items():
            found += compare(name, first[name], plain[name], true, dtype)
        faults += [f"{path} path: {each}" if path else each for each in found]
    return Outcome(case.name, tuple(faults))


def _path_of(inputs: AttentionInputs) -> str:
    from lit_eff.kernels.attention.interface import explain

    options = dict(inputs.options)
    packing = [options.pop(name) for name in ("cu_seqlens_q", "cu_seqlens_k") if name in options]
    return explain(*inputs.tensors, *packing, **options).name


def check_cached_case(case: CachedCase, device: str) -> Outcome:
    """One case on a cache: the rule, two runs, and every row and query alone, bit for bit."""
    from lit_eff.kernels.attention.with_cache import attention_with_cache, attention_with_cache_reference

    tensors, options = case.inputs(device)
    dtype = tensors[0].dtype
    wide = torch.float64 if dtype == torch.float32 else torch.float32

    def run(function: Callable[..., Any], q: Tensor, **more: Any) -> list[Tensor]:
        return list(function(q, *tensors[1:], **options, return_lse=True, **more))

    with poisoned_memory():
        first = run(attention_with_cache, tensors[0])
        second = run(attention_with_cache, tensors[0]) if device == "cuda" else first
    plain = run(attention_with_cache_reference, tensors[0], accumulate=dtype)
    exact = run(attention_with_cache_reference, tensors[0].to(wide), accumulate=wide)
    faults = [] if same_bits(first, second) else ["two runs differ in bits"]
    for name, got, its_plain, true in zip(("out", "lse"), first, plain, exact, strict=True):
        faults += compare(name, got, its_plain, true, dtype)
    for row in range(len(case.lengths)):
        alone = _alone(attention_with_cache, tensors, options, row)
        if not same_bits([each[row] for each in first], [each[0] for each in alone]):
            faults.append(f"row {row} alone differs in bits from the same row in the batch")
    if not (case.ragged or case.tree) and case.queries > 1:
        one_query: Callable[..., Any] = attention_with_cache
        # The slots of later queries hold their keys already; a query at its own slot does not see them.
        for t in (0, case.queries - 1):
            each = one_query(
                tensors[0][:, t : t + 1], *tensors[1:3], tensors[3] + t, **options, return_lse=True
            )
            if not same_bits([first[0][:, t], first[1][:, :, t]], [each[0][:, 0], each[1][:, :, 0]]):
                faults.append(f"query {t} alone differs in bits from the same query among {case.queries}")
    return Outcome(case.name, tuple(faults))


def _alone(
    function: Callable[..., Any], tensors: Sequence[Tensor], options: dict[str, Any], row: int
) -> list[Tensor]:
    """One batch row by itself: what belongs to rows is cut, a pool of pages stays whole."""
    one = slice(row, row + 1)
    q, k, v, lengths = tensors
    mine = {name: value[one] if name[-2:] in ("BP", "TT", "_B") else value for name, value in options.items()}
    caches = (k, v) if "page_table_BP" in options else (k[one], v[one])
    return list(function(q[one], *caches, lengths[one], **mine, return_lse=True))


def check(case: Case, device: str) -> Outcome:
    """One case; whatever is raised is a fault, not the end of the run."""

    def faults() -> Sequence[str]:
        mine = case.for_interpreter() if device == "cpu" else case
        if not isinstance(mine, CachedCase):
            return check_case(mine, device).faults
        with rows_alike() if device == "cpu" else nullcontext():
            return check_cached_case(mine, device).faults

    return outcome_of(case.name, faults)


def covering(cases: Sequence[Case], count: int, most: int) -> list[Case]:
    """``count`` cases of cost ``most`` or less, families, features and dtypes by turns."""
    left = [case for case in cases if case.cost <= most]
    seen: dict[str, int] = {}
    chosen: list[Case] = []

    def familiarity(case: Case) -> float:
        words = [case.family, *case.features, case.dtype]
        return sum(seen.get(word, 0) ** 2 for word in words) / len(words) - 0.1 * len(words)

    while left and len(chosen) < count:
        case = min(left, key=familiarity)
        left.remove(case)
        chosen.append(case)
        for word in (case.family, *case.features, case.dtype):
            seen[word] = seen.get(word, 0) + 1
    return chosen
