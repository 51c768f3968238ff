"""The public functions: checks, then the operators. Nothing waits for the device.

Shapes: N rows, B sequences, V vocabulary, G draft length, M nodes, R parents, J draws, D depth, H histories.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_eff.errors import UserError, nearest
from lit_eff.kernels.device import TRITON_INSTALLED, device_obstacle
from lit_eff.kernels.sampling.plan import MAX_VOCABULARY
from lit_eff.kernels.sampling.reference import (
    PURPOSES,
    accept_tree_reference,
    processed_logits_reference,
    sample_reference,
)
from lit_eff.kernels.sampling.tree import Tree

if TRITON_INSTALLED:
    from lit_eff.kernels.sampling import operator

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
Number = Tensor | float | int | None


class Sample(NamedTuple):
    """Tokens, int64, and their natural log-probabilities in the processed distribution, float32: (N, J)."""

    token_NJ: Tensor
    logprob_NJ: Tensor


class Acceptance(NamedTuple):
    """What is kept of a tree of drafts, and the target's own token after it."""

    kept_BD: Tensor  # int64: kept nodes from the root on, -1 behind them
    count_B: Tensor  # int32: how many
    next_B: Tensor  # int64


def sample(
    logits_NV: Tensor,
    *,
    temperature: Number,
    seed: Tensor,
    position: Tensor,
    top_k: Number = None,
    top_p: Number = None,
    min_p: Number = None,
    draws: int = 1,
    purpose: str = "target",
) -> Sample:
    """Draw each row's next token from its processed distribution, on the device.

    The order of processing is that of Hugging Face's and vLLM's samplers: bias and penalties (first, by
    :func:`processed_logits`), temperature, top-k, top-p of what top-k left, min-p. What is drawn is a
    function of the row's logits, parameters, seed and position alone, the same bits on every device, beside
    any neighbours and in any place: weights are integers (``lit_eff/runtime/fixed_point.py`` defines them),
    random numbers are counted, not carried (``random_numbers.py``).

    Args:
        logits_NV: float16, bfloat16 or float32; at most 524,287 tokens.
        temperature: at least 0, one for all or float32 (N,); 0 is greedy: the largest logit, the lowest
            index among equals.
        seed: int64 (N,), at least 0.
        position: int64 (N,), the place in its sequence of the token to draw.
        top_k: one for all or int32 (N,); 0 is off.
        top_p: in (0, 1], one for all or float32 (N,); 1 is off.
        min_p: in [0, 1], one for all or float32 (N,); 0 is off.
        draws: J tokens a row, without replacement: a drafter's children of one node.
        purpose: ``target`` or ``draft``: the two draw other numbers at one position.

    Returns:
        `Sample`. A row whose largest logit is not finite, or that has a NaN, yields -1; so do draws that
        find nothing left.

    Raises:
        UserError: naming the argument that does not fit. Values in tensors are not looked at: that would
            make the host wait.

    Source: top-k Fan et al. 2018, top-p Holtzman et al. 2020, min-p Nguyen et al. 2024.
    """
    name = "sample"
    check_logits(name, "logits_NV", logits_NV, 2, logits_NV)
    if purpose not in PURPOSES:
        raise UserError(f"{name}: unknown purpose {purpose!r}{nearest(purpose, tuple(PURPOSES))}")
    if not 1 <= draws <= 64:
        raise UserError(f"{name}: draws is {draws}; expected 1 to 64")
    parameters = checked_parameters(name, logits_NV, temperature, top_k, top_p, min_p, seed, position)
    run = operator.sample if runs_kernels(name, logits_NV) else sample_reference
    return Sample(*run(side_by_side(logits_NV), *parameters, draws, PURPOSES[purpose]))


def accept_tree(
    target_logits: Tensor,
    draft_logits: Tensor | None,
    drafts: Tensor,
    tree: Tree,
    *,
    temperature: Number,
    seed: Tensor,
    position: Tensor,
    top_k: Number = None,
    top_p: Number = None,
    min_p: Number = None,
) -> Acceptance:
    """Keep a path of drafted tokens and draw the token after it, so that all are distributed as the target's.

    A parent's children are tested in the order of their nodes; the parameters, per sequence, shape the
    target's distribution and the draft's alike, and the draft's is the very one that `sample` drew from.

    Args:
        target_logits: (B, M + 1, V): after the last token before the drafts, then after each node.
        draft_logits: (B, R, V), of each parent in the order of nodes, the root's first, in the target's
            dtype: what its children were drawn from with ``sample(..., draws=J, purpose="draft")``. None when
            drafts were not drawn at random but chosen by a rule that looks at no random number.
        drafts: int64 (B, M); -1 where there is none.
        tree: the shape, the same for all sequences; a path to a draft that is there leads over such.
        temperature, seed, top_k, top_p, min_p: as of `sample`, one a sequence.
        position: int64 (B,), the place of the root's children in their sequence.

    Returns:
        `Acceptance`; greedy, it is agreement with the target's own greedy tokens. ``next_B`` is -1 where the
        target's row is broken.

    Raises:
        UserError: naming the argument that does not fit.

    Source: recursive rejection, SpecInfer (Miao et al. 2023), Sequoia (Chen et al. 2024); of a chain,
    algorithm 1 of Leviathan et al. 2023. The definition is ``lit_eff/runtime/trees.py``.
    """
    name = "accept_tree"
    check_logits(name, "target_logits", target_logits, 3, target_logits)
    batch, rows, vocabulary = target_logits.shape
    nodes, parents = len(tree.parents), len(tree.families)
    if rows != nodes + 1 or tuple(drafts.shape) != (batch, nodes) or drafts.dtype != torch.int64:
        raise UserError(
            f"{name}: for a tree of {nodes} nodes expected target_logits (B, {nodes + 1}, V) and drafts "
            f"int64 (B, {nodes}); got {tuple(target_logits.shape)} and {drafts.dtype} {tuple(drafts.shape)}"
        )
    if drafts.device != target_logits.device:
        raise UserError(f"{name}: drafts are on {drafts.device}, the logits on {target_logits.device}")
    if draft_logits is not None:
        check_logits(name, "draft_logits", draft_logits, 3, target_logits)
        if tuple(draft_logits.shape) != (batch, parents, vocabulary):
            raise UserError(
                f"{name}: draft_logits must be {(batch, parents, vocabulary)}, a row for each parent; got "
                f"{tuple(draft_logits.shape)}"
            )
    parameters = checked_parameters(name, target_logits, temperature, top_k, top_p, min_p, seed, position)
    target_NV = side_by_side(target_logits.reshape(-1, vocabulary))
    if nodes == 0:
        run = operator.sample if runs_kernels(name, target_logits) else sample_reference
        token_B1, _ = run(target_NV, *parameters, 1, PURPOSES["target"])
        none = drafts.new_zeros(batch, dtype=torch.int32)
        return Acceptance(drafts.new_empty((batch, 0)), none, token_B1[:, 0])
    draft_NV = None if draft_logits is None else side_by_side(draft_logits.reshape(-1, vocabulary))
    if not runs_kernels(name, target_logits):
        return Acceptance(*accept_tree_reference(target_NV, draft_NV, drafts, tree, *parameters))
    return Acceptance(
        *operator.accept_tree(target_NV, draft_NV, drafts.contiguous(), list(tree.parents), *parameters)
    )


def accept_chain(
    target_logits: Tensor,
    draft_logits: Tensor | None,
    drafts: Tensor,
    *,
    temperature: Number,
    seed: Tensor,
    position: Tensor,
    top_k: Number = None,
    top_p: Number = None,
    min_p: Number = None,
) -> tuple[Tensor, Tensor]:
    """How many of G drafts are kept, int32 (B,), and the target's own token after them, int64 (B,).

    `accept_tree` of a chain: target_logits (B, G + 1, V), draft_logits (B, G, V) or None, drafts (B, G) with
    -1 behind a sequence's last. With G = 0 the token is `sample`'s.
    """
    found = accept_tree(
        target_logits, draft_logits, drafts, Tree.chain(drafts.shape[-1]),
        temperature=temperature, seed=seed, position=position, top_k=top_k, top_p=top_p, min_p=min_p,
    )  # fmt: skip
    return found.count_B, found.next_B


def processed_logits(
    logits_NV: Tensor,
    *,
    history: Tensor | None = None,
    bias: Tensor | None = None,
    counts: Tensor | None = None,
    in_prompt: Tensor | None = None,
    drafted: Tensor | None = None,
    repetition: Tensor | None = None,
    presence: Tensor | None = None,
    frequency: Tensor | None = None,
) -> Tensor:
    """Logits after bias and penalties, float32 (N, V), as ``lit_eff/runtime/sampling.py`` takes them.

    Args:
        logits_NV: float16, bfloat16 or float32.
        history: int32 or int64 (N,), which of H histories is a row's; by default row n has history n.
        bias: float32 (H, V), added first.
        counts: int32 (H, V), how often each token occurs in the output (`count_tokens` counts).
        in_prompt: bool (H, V), tokens of the prompt; read by ``repetition`` alone.
        drafted: int64 (N, D), drafted tokens that precede the row beyond its history, -1 for none.
        repetition: float32 (H,), what logits of tokens seen are divided by where positive and multiplied by
            where negative (Keskar et al. 2019); 1 is off.
        presence, frequency: float32 (H,), subtracted once, and once an occurrence, from logits of tokens in
            the output; 0 is off.

    Raises:
        UserError: naming the argument that does not fit.
    """
    name = "processed_logits"
    check_logits(name, "logits_NV", logits_NV, 2, logits_NV)
    rows, vocabulary = logits_NV.shape
    if history is None:
        histories = rows
    else:
        known = [
            each for each in (bias, counts, in_prompt, repetition, presence, frequency) if each is not None
        ]
        histories = known[0].shape[0] if known else rows
        if history.dtype not in (torch.int32, torch.int64):
            raise UserError(f"{name}: history must be int32 or int64; got {history.dtype}")
        check_beside(name, "history", history, history.dtype, (rows,), logits_NV)
    f32, wide, flat = torch.float32, (histories, vocabulary), (histories,)
    for what, tensor, dtype, shape in (
        ("bias", bias, f32, wide),
        ("counts", counts, torch.int32, wide),
        ("in_prompt", in_prompt, torch.bool, wide),
        ("repetition", repetition, f32, flat),
        ("presence", presence, f32, flat),
        ("frequency", frequency, f32, flat),
        ("drafted", drafted, torch.int64, (rows, -1)),
    ):
        if tensor is not None:
            check_beside(name, what, tensor, dtype, shape, logits_NV)
    given = (history, bias, counts, in_prompt, drafted, repetition, presence, frequency)
    packed = [None if each is None else each.contiguous() for each in given]
    run = operator.processed_logits if runs_kernels(name, logits_NV) else processed_logits_reference
    out_NV: Tensor = run(side_by_side(logits_NV), *packed)
    return out_NV


def runs_kernels(name: str, logits: Tensor) -> bool:
    """Whether Triton takes the call; False leaves it to the reference, which gives the same bits.

    Raises:
        UserError: on a GPU that Triton has no kernels for, or without Triton.
    """
    if logits.device.type == "cpu":
        return TRITON_INSTALLED and operator.INTERPRETED
    if fault := device_obstacle(logits.device):
        raise UserError(f"{name} cannot run: {fault}")
    return True


def side_by_side(rows_NV: Tensor) -> Tensor:
    """The same rows, with a row's elements side by side."""
    return rows_NV if rows_NV.stride(1) == 1 or rows_NV.shape[1] == 1 else rows_NV.contiguous()


def check_logits(name: str, what: str, logits: Tensor, dimensions: int, beside: Tensor) -> None:
    """Dimensions, dtype, sizes; dtype and device as those of ``beside``."""
    if logits.ndim != dimensions or logits.dtype not in DTYPES:
        raise UserError(
            f"{name}: {what} must be floating point of {dimensions} dimensions; got {logits.dtype} "
            f"{tuple(logits.shape)}"
        )
    if not 1 <= logits.shape[-1] <= MAX_VOCABULARY:
        raise UserError(f"{name}: a vocabulary of {logits.shape[-1]}; expected 1 to {MAX_VOCABULARY}")
    if logits.dtype != beside.dtype or logits.device != beside.device:
        raise UserError(
            f"{name}: {what} is {logits.dtype} on {logits.device}, expected {beside.dtype} on {beside.device}"
        )


def check_beside(
    name: str, what: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], beside: Tensor
) -> None:
    """One dtype and shape (-1 for any size), on the device of ``beside``."""
    fits = tensor.ndim == len(shape) and all(b in (-1, a) for a, b in zip(tensor.shape, shape, strict=True))
    if not fits or tensor.dtype != dtype:
        wanted = ", ".join("D" if size < 0 else str(size) for size in shape)
        raise UserError(
            f"{name}: {what} must be {dtype} ({wanted}); got {tensor.dtype} {tuple(tensor.shape)}"
        )
    if tensor.device != beside.device:
        raise UserError(f"{name}: {what} is on {tensor.device}, the logits on {beside.device}")


def checked_parameters(
    name: str,
    logits: Tensor,
    temperature: Number,
    top_k: Number,
    top_p: Number,
    min_p: Number,
    seed: Tensor,
    position: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor, Tensor]:
    """One value a row or sequence, contiguous; None for what is off for all."""
    count = logits.shape[0]

    def spread(what: str, value: Number, dtype: torch.dtype, off: float, valid: str) -> Tensor | None:
        if isinstance(value, Tensor):
            check_beside(name, what, value, dtype, (count,), logits)
            return value.contiguous()
        if value is None or value == off:
            return None
        low, high = {"top_k": (1, 2**31 - 1), "top_p": (1e-30, 1.0)}.get(what, (0.0, 1.0))
        if not low <= value <= high:
            raise UserError(f"{name}: {what} is {value}; expected {valid}")
        return torch.full((count,), value, dtype=dtype, device=logits.device)

    if temperature is None or (not isinstance(temperature, Tensor) and not 0 <= temperature < float("inf")):
        raise UserError(
            f"{name}: temperature is {temperature}; expected a number of at least 0 (0 is greedy)"
        )
    if not isinstance(temperature, Tensor):
        temperature = torch.full((count,), temperature, dtype=torch.float32, device=logits.device)
    check_beside(name, "temperature", temperature, torch.float32, (count,), logits)
    check_beside(name, "seed", seed, torch.int64, (count,), logits)
    check_beside(name, "position", position, torch.int64, (count,), logits)
    return (
        temperature.contiguous(),
        spread("top_k", top_k, torch.int32, 0, "a positive count, or 0 for all tokens"),
        spread("top_p", top_p, torch.float32, 1, "a number in (0, 1]"),
        spread("min_p", min_p, torch.float32, 0, "a number in [0, 1]"),
        seed.contiguous(),
        position.contiguous(),
    )
