"""The public function: checks, then the operator.

Shapes: N rows, C model dim, V vocabulary, S scale groups.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lit_eff.errors import UserError, nearest
from lit_eff.kernels.confidence.reference import (
    MEASURES,
    NEVER,
    ExitConfidence,
    exit_confidence_reference,
)
from lit_eff.kernels.device import TRITON_INSTALLED
from lit_eff.kernels.linear.interface import (
    check_norm,
    check_product,
    check_vector,
    runs_products,
)
from lit_eff.kernels.linear.reference import Norm

if TRITON_INSTALLED:
    from lit_eff.kernels.confidence import operator
    from lit_eff.kernels.linear.operator import flat_norm

NAME = "exit_confidence"


def exit_confidence(
    hidden_NC: Tensor,
    weight_VC: Tensor,
    *,
    bias: Tensor | None = None,
    norm: Norm | None = None,
    scales: Tensor | None = None,
    softcap: float | None = None,
    thresholds: Tensor | float | None = None,
    measure: str = "softmax_response",
) -> ExitConfidence:
    """Token, confidence and whether to exit, of each row, in one pass over the output matrix: no logits.

    The token is the argmax of the logits that `skinny_linear` gives in float32 for the same arguments, and
    everything is row-invariant like it: the same bits whatever the rows beside it. For inference only.

    On a CPU the plain reference runs instead, which promises no bits.

    Args:
        hidden_NC: hidden states, float16, bfloat16 or float32, any strides.
        weight_VC: the output matrix, in the same dtype; or int8, with ``scales``.
        bias: (V,), floating point.
        norm: normalise the hidden states first (the model's last norm).
        scales: (V,) or (V, S) float32, as in `skinny_linear`.
        softcap: logits become ``softcap * tanh(logits / softcap)``.
        thresholds: one float32 a row, or one for all; a row exits when its confidence reaches its own.
            ``NEVER`` (infinity), or None for all rows, is never reached; 1 can be.
        measure: which confidence is compared: ``softmax_response`` (the gap between the two largest
            probabilities), ``max_probability``, or ``entropy`` (1 - H / ln V).

    Returns:
        `ExitConfidence`: token, top probability, gap, entropy in nats, log-sum-exp, exit flag; (N,) each. Of
        equal logits the lowest token is taken.

    Raises:
        UserError: naming the argument that does not fit, before anything runs.

    Source: confidence measures of CALM (Schuster et al. 2022); the semantics are those of
    ``lit_eff/runtime/exit_rule.py``. Blocks are joined as in the online softmax (Milakov &
    Gimelshein 2018).
    """
    if scales is not None and scales.ndim == 1:
        scales = scales[:, None]
    check_product(NAME, hidden_NC, weight_VC, scales, None)
    check_norm(NAME, hidden_NC, norm)
    check_vector(NAME, "bias", bias, weight_VC.shape[0], hidden_NC)
    if softcap is not None and not 0 < softcap < math.inf:
        raise UserError(f"{NAME}: softcap {softcap} must be positive and finite, or None for no cap")
    if measure not in MEASURES:
        raise UserError(f"{NAME}: unknown measure {measure!r}{nearest(measure, MEASURES)}")
    limit_N = checked_thresholds(thresholds, hidden_NC)
    if not runs_products(NAME, hidden_NC):
        return exit_confidence_reference(
            hidden_NC, weight_VC, bias=bias, norm=norm, scales=scales, softcap=softcap, thresholds=limit_N,
            measure=measure,
        )  # fmt: skip
    return ExitConfidence(
        *operator.exit_confidence(
            hidden_NC, weight_VC, scales, *flat_norm(norm), bias, softcap, limit_N, measure
        )
    )


def checked_thresholds(thresholds: Tensor | float | None, hidden_NC: Tensor) -> Tensor:
    """One float32 a row, contiguous."""
    rows = hidden_NC.shape[0]
    if isinstance(thresholds, Tensor):
        if tuple(thresholds.shape) != (rows,) or thresholds.dtype != torch.float32:
            raise UserError(
                f"{NAME}: thresholds must be float32 ({rows},), one a row; got {thresholds.dtype} "
                f"{tuple(thresholds.shape)}"
            )
        if thresholds.device != hidden_NC.device:
            raise UserError(f"{NAME}: thresholds are on {thresholds.device}, the rows on {hidden_NC.device}")
        return thresholds.contiguous()
    limit = NEVER if thresholds is None else float(thresholds)
    if not (0.0 <= limit <= 1.0 or limit == NEVER):
        raise UserError(f"{NAME}: threshold {limit} is outside [0, 1]; use None (or NEVER) for never exiting")
    return torch.full((rows,), limit, dtype=torch.float32, device=hidden_NC.device)
