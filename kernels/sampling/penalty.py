"""Bias and penalties: the step before a distribution, for rows that need it.

Shapes: N rows, H histories, V vocabulary, D tokens drafted before a row.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from lit_eff.kernels.sampling.plan import plan_of
from lit_eff.profiling.launch import Launch


@triton.jit(do_not_specialize=["blocks", "drafted"])
def penalty_kernel(
    p_logits, stride, p_history, p_bias, p_counts, p_prompt, p_drafted, p_repetition, p_presence, p_frequency,
    p_out, vocabulary, blocks, drafted,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """As ``fixed_point.float32_logits``: bias in float32, penalties in float64, rounded once. Every product
    here is exact in float64, so a fused addition changes no bit.
    """
    i_n, i_v = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    o_v = i_v * BLOCK + tl.arange(0, BLOCK)
    m_v = o_v < vocabulary
    b_z = tl.load(p_logits + i_n.to(tl.int64) * stride + o_v, mask=m_v, other=0.0).to(tl.float32)
    i_h = i_n
    if p_history is not None:
        i_h = tl.load(p_history + i_n).to(tl.int32)
    o_h = i_h.to(tl.int64) * vocabulary + o_v
    if p_bias is not None:
        b_z += tl.load(p_bias + o_h, mask=m_v, other=0.0)
    b_count = tl.zeros((BLOCK,), tl.int32)
    if p_counts is not None:
        b_count = tl.load(p_counts + o_h, mask=m_v, other=0)
    if p_drafted is not None:
        for i_d in range(drafted):
            token = tl.load(p_drafted + i_n.to(tl.int64) * drafted + i_d)
            b_count += (o_v == token).to(tl.int32)
    b_wide = b_z.to(tl.float64)
    if p_repetition is not None:
        m_seen = b_count > 0
        if p_prompt is not None:
            m_seen = m_seen | (tl.load(p_prompt + o_h, mask=m_v, other=0) != 0)
        penalty = tl.load(p_repetition + i_h).to(tl.float64)
        b_wide = tl.where(m_seen, tl.where(b_wide > 0, b_wide / penalty, b_wide * penalty), b_wide)
    b_price = tl.zeros((BLOCK,), tl.float64)
    if p_presence is not None:
        b_price += tl.load(p_presence + i_h).to(tl.float64)
    if p_frequency is not None:
        b_price += tl.load(p_frequency + i_h).to(tl.float64) * b_count.to(tl.float64)
    b_wide -= tl.where(b_count > 0, b_price, 0.0)
    tl.store(p_out + i_n.to(tl.int64) * vocabulary + o_v, b_wide.to(tl.float32), mask=m_v)


@dataclass(frozen=True)
class Penalties:
    """The operator's arguments; ``history_N`` says which row of the others is whose, by default its own."""

    history_N: Tensor | None
    bias_HV: Tensor | None
    counts_HV: Tensor | None
    prompt_HV: Tensor | None
    drafted_ND: Tensor | None
    repetition_H: Tensor | None
    presence_H: Tensor | None
    frequency_H: Tensor | None


def penalty_launch(logits_NV: Tensor, penalties: Penalties, out_NV: Tensor) -> Launch:
    rows, vocabulary = logits_NV.shape
    plan = plan_of(vocabulary)
    blocks = plan.blocks(vocabulary)
    names = ("history", "bias", "counts", "prompt", "drafted", "repetition", "presence", "frequency")
    arguments = {
        "p_logits": logits_NV,
        "stride": vocabulary if rows == 1 else logits_NV.stride(0),
        **{f"p_{name}": each for name, each in zip(names, vars(penalties).values(), strict=True)},
        "p_out": out_NV,
        "vocabulary": vocabulary,
        "blocks": blocks,
        "drafted": 0 if penalties.drafted_ND is None else penalties.drafted_ND.shape[1],
        "BLOCK": plan.block,
    }
    return Launch(penalty_kernel, (rows * blocks,), arguments, plan.num_warps, 1)
