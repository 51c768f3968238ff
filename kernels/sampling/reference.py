"""Sampling and acceptance in plain PyTorch: what runs on a CPU, and gives the kernels' very bits.

The semantics are defined in ``lit_eff/runtime/fixed_point.py`` and ``trees.py``; kernels and runtime share no
code, and tests hold all forms to the same cases.

Shapes: N rows, B sequences, V vocabulary, H histories, M nodes, R parents, J draws, D depth.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lit_eff.kernels.sampling.tree import Tree

FRACTION_BITS, WEIGHT_BITS = 20, 44
DEAD = WEIGHT_BITS << FRACTION_BITS
EXP2_COEFFICIENTS = (1488522236, 515882469, 119193747, 20652244, 2856024, 319744, 24275)
LARGEST_FLOAT32 = torch.finfo(torch.float32).max
ONE = 1 << 62
WORD = 0xFFFFFFFF
PURPOSES = {"target": 0, "draft": 1}
ACCEPT = 2


def random_word(seed: int, position: int, purpose: int, slot: int) -> int:
    """Philox4x32-10 in the layout of ``lit_eff/runtime/random_numbers.py``."""
    c0, c1, c2, c3 = position & WORD, position >> 32 & WORD, purpose, slot
    k0, k1 = seed & WORD, seed >> 32 & WORD
    for _ in range(10):
        product0, product2 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = product2 >> 32 ^ c1 ^ k0, product2 & WORD, product0 >> 32 ^ c3 ^ k1, product0 & WORD
        k0, k1 = k0 + 0x9E3779B9 & WORD, k1 + 0xBB67AE85 & WORD
    return c1 << 32 | c0


def distances(z_NV: Tensor, temperature_N: Tensor) -> Tensor:
    """How far logits lie below the largest, int64, in steps of 2^-20 of a factor of two."""
    largest_N1 = z_NV.amax(1, keepdim=True)
    greedy_N1 = (temperature_N == 0)[:, None]
    divisor_N1 = torch.where(greedy_N1, 1.0, temperature_N[:, None])
    factor_N1 = torch.full_like(divisor_N1, math.log2(math.e)) / divisor_N1  # a scalar would multiply
    below_NV = ((largest_N1 - z_NV) * factor_N1.clamp(max=LARGEST_FLOAT32)).clamp(max=WEIGHT_BITS)
    sampled_NV = (below_NV * 2**FRACTION_BITS + 0.5).to(torch.int64)
    return torch.where(greedy_N1, torch.where(z_NV == largest_N1, 0, DEAD), sampled_NV)


def weights_of(distances_NV: Tensor) -> Tensor:
    """2^(44 - distance), rounded down, int64."""
    x_NV = (distances_NV & (2**FRACTION_BITS - 1)) << (32 - FRACTION_BITS)
    y_NV = torch.full_like(x_NV, EXP2_COEFFICIENTS[-1])
    for coefficient in EXP2_COEFFICIENTS[-2::-1]:
        y_NV = coefficient - (y_NV * x_NV >> 32)
    mantissa_NV = 2**31 - (y_NV * x_NV >> 32)
    shifted_NV = mantissa_NV << (WEIGHT_BITS - 31) >> (distances_NV >> FRACTION_BITS)
    return torch.where(distances_NV < DEAD, shifted_NV, 0)


def kept_weights(
    logits_NV: Tensor,
    temperature_N: Tensor,
    top_k_N: Tensor | None,
    top_p_N: Tensor | None,
    min_p_N: Tensor | None,
) -> Tensor:
    """Integer weights (N, V) of the processed distribution."""
    z_NV = logits_NV.float()
    sound_N = z_NV.amax(1).isfinite()
    z_NV = torch.where(sound_N[:, None], z_NV, 0.0)
    distances_NV = distances(z_NV, temperature_N)
    weights_NV = weights_of(distances_NV)
    order_NV = distances_NV.argsort(dim=1, stable=True)
    sorted_NV = weights_NV.gather(1, order_NV)
    rank_NV = torch.arange(z_NV.shape[1], device=z_NV.device)[None]
    keep_NV = sorted_NV > 0
    if top_k_N is not None:
        keep_NV &= (rank_NV < top_k_N[:, None]) | (top_k_N <= 0)[:, None]
    keep_NV &= (rank_NV < 1) | (temperature_N != 0)[:, None]
    if top_p_N is not None:
        sums_NV = torch.where(keep_NV, sorted_NV, 0).cumsum(1)
        goal_N = (top_p_N.double() * sums_NV[:, -1].double()).to(torch.int64).clamp(min=1)
        before_NV = sums_NV - torch.where(keep_NV, sorted_NV, 0)
        keep_NV &= (before_NV < goal_N[:, None]) | (top_p_N >= 1)[:, None]
    if min_p_N is not None:
        keep_NV &= sorted_NV >= (min_p_N * 2.0**WEIGHT_BITS).to(torch.int64)[:, None]
    keep_NV &= sound_N[:, None]
    return torch.zeros_like(weights_NV).scatter(1, order_NV, torch.where(keep_NV, sorted_NV, 0))


def draw_token(weights_V: Tensor, word: int) -> int:
    """The token at ``word * total / 2^64`` of the cumulative weights; -1 where all weights are 0."""
    cumulative_V = weights_V.cumsum(0)
    total = int(cumulative_V[-1])
    return int((cumulative_V <= (word * total >> 64)).sum()) if total else -1


def sample_reference(
    logits_NV: Tensor,
    temperature_N: Tensor,
    top_k_N: Tensor | None,
    top_p_N: Tensor | None,
    min_p_N: Tensor | None,
    seed_N: Tensor,
    position_N: Tensor,
    draws: int,
    purpose: int,
) -> tuple[Tensor, Tensor]:
    """Arguments and results as of the operator."""
    weights_NV = kept_weights(logits_NV, temperature_N, top_k_N, top_p_N, min_p_N)
    token_NJ = logits_NV.new_empty((len(weights_NV), draws), dtype=torch.int64)
    for n, left_V in enumerate(weights_NV.clone()):
        for j in range(draws):
            token = draw_token(left_V, random_word(int(seed_N[n]), int(position_N[n]), purpose, j))
            token_NJ[n, j] = token
            if token >= 0:
                left_V[token] = 0
    taken_NJ = weights_NV.gather(1, token_NJ.clamp(min=0)) * (token_NJ >= 0)
    totals_N1 = weights_NV.sum(1, keepdim=True)
    return token_NJ, (taken_NJ.float().log2() - totals_N1.float().log2()) * math.log(2)


def probabilities(weights: Tensor, total: int) -> Tensor:
    """Weights of a total as multiples of 2^-62."""
    return (weights.double() * (float(ONE) / float(total))).to(torch.int64)


def accept_tree_reference(
    target_NV: Tensor,
    draft_NV: Tensor | None,
    drafts_BM: Tensor,
    tree: Tree,
    temperature_B: Tensor,
    top_k_B: Tensor | None,
    top_p_B: Tensor | None,
    min_p_B: Tensor | None,
    seed_B: Tensor,
    position_B: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Kept nodes (B, D), -1 behind them, how many (B,), and the tokens after them (B,)."""
    batch = drafts_BM.shape[0]

    def weights(rows_NV: Tensor) -> Tensor:
        each = rows_NV.shape[0] // batch
        parameters = (temperature_B, top_k_B, top_p_B, min_p_B)
        spread = (None if one is None else one.repeat_interleave(each) for one in parameters)
        return kept_weights(rows_NV, *spread).view(batch, each, -1)  # type: ignore[arg-type]

    kept_BD = torch.full((batch, tree.depth), -1, device=drafts_BM.device)
    count_B = torch.zeros(batch, dtype=torch.int32, device=drafts_BM.device)
    next_B = torch.empty(batch, dtype=torch.int64, device=drafts_BM.device)
    if batch == 0:
        return kept_BD, count_B, next_B
    target_BUV = weights(target_NV)
    draft_BRV = None if draft_NV is None else weights(draft_NV)
    for b in range(batch):
        where = (int(seed_B[b]), int(position_B[b]))
        draft_RV = None if draft_BRV is None else draft_BRV[b]
        nodes, token = _accept(target_BUV[b], draft_RV, drafts_BM[b].tolist(), tree, *where)
        kept_BD[b, : len(nodes)] = torch.tensor(nodes, dtype=torch.int64)
        count_B[b], next_B[b] = len(nodes), token
    return kept_BD, count_B, next_B


def _accept(
    target_UV: Tensor, draft_RV: Tensor | None, drafts: list[int], tree: Tree, seed: int, position: int
) -> tuple[list[int], int]:
    """One sequence."""
    places = {parent: place for place, parent in enumerate(tree.families)}
    kept: list[int] = []
    while True:
        parent = kept[-1] if kept else -1
        left_V = target_UV[parent + 1]
        children = tree.families.get(parent, [])
        q_V = draft_RV[places[parent]].clone() if draft_RV is not None and children else None
        for slot, node in enumerate(children):
            token, total = drafts[node], int(left_V.sum())
            if not 0 <= token < len(left_V) or total == 0 or (q_V is not None and q_V[token] == 0):
                continue
            p_V = probabilities(left_V, total)
            test_V = None if q_V is None else probabilities(q_V, int(q_V.sum()))
            chance = ONE if test_V is None else int(test_V[token])
            word = random_word(seed, position + len(kept), ACCEPT, slot)
            if word * chance >> 64 < int(p_V[token]):
                kept.append(node)
                break
            if q_V is None or test_V is None:
                residual_V = left_V.clone()
                residual_V[token] = 0
            else:
                residual_V = (p_V - test_V).clamp(min=0)
                q_V[token] = 0
            if residual_V.any():
                left_V = residual_V
        else:
            return kept, draw_token(left_V, random_word(seed, position + len(kept), PURPOSES["target"], 0))


def processed_logits_reference(
    logits_NV: Tensor,
    history_N: Tensor | None,
    bias_HV: Tensor | None,
    counts_HV: Tensor | None,
    prompt_HV: Tensor | None,
    drafted_ND: Tensor | None,
    repetition_H: Tensor | None,
    presence_H: Tensor | None,
    frequency_H: Tensor | None,
) -> Tensor:
    """Arguments and result as of the operator."""

    def of_row(values: Tensor) -> Tensor:
        return values if history_N is None else values[history_N.long()]

    z_NV = logits_NV.float()
    if bias_HV is not None:
        z_NV = z_NV + of_row(bias_HV)
    counts_NV = torch.zeros(z_NV.shape, dtype=torch.int64, device=z_NV.device)
    if counts_HV is not None:
        counts_NV += of_row(counts_HV)
    if drafted_ND is not None:
        counts_NV += count_tokens(drafted_ND, z_NV.shape[1])
    wide_NV = z_NV.double()
    if repetition_H is not None:
        seen_NV = counts_NV > 0
        if prompt_HV is not None:
            seen_NV |= of_row(prompt_HV)
        penalty_N1 = of_row(repetition_H).double()[:, None]
        punished_NV = torch.where(wide_NV > 0, wide_NV / penalty_N1, wide_NV * penalty_N1)
        wide_NV = torch.where(seen_NV, punished_NV, wide_NV)
    price_NV = torch.zeros_like(wide_NV)
    if presence_H is not None:
        price_NV += of_row(presence_H).double()[:, None]
    if frequency_H is not None:
        price_NV += of_row(frequency_H).double()[:, None] * counts_NV
    return (wide_NV - torch.where(counts_NV > 0, price_NV, 0.0)).float()


def count_tokens(tokens_NT: Tensor, vocabulary: int) -> Tensor:
    """How often each token occurs in each row, int32 (N, V); tokens of -1 are padding. On the device."""
    counts_NV = tokens_NT.new_zeros((tokens_NT.shape[0], vocabulary), dtype=torch.int32)
    there_NT = (tokens_NT >= 0).to(torch.int32)
    return counts_NV.scatter_add_(1, tokens_NT.clamp(min=0).long(), there_NT)
