"""Exit confidence in plain PyTorch: the definition that the kernels are tested against.

Shapes: N rows, C model dim, V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lit_eff.kernels.linear.reference import Norm, skinny_linear_reference

MEASURES = ("softmax_response", "max_probability", "entropy")
NEVER = math.inf  # a threshold that no confidence reaches


class ExitConfidence(NamedTuple):
    """What an exit says of each row, (N,): float32, but for the token (int64) and the flag (bool)."""

    token_N: Tensor  # the largest logit's, the lowest of several
    probability_N: Tensor  # the largest
    gap_N: Tensor  # the largest probability minus the second largest
    entropy_N: Tensor  # nats
    lse_N: Tensor  # natural log-sum-exp of the logits
    exits_N: Tensor  # whether the confidence reaches the row's threshold


def confidence_of(
    measure: str, probability_N: Tensor, gap_N: Tensor, entropy_N: Tensor, vocabulary: int
) -> Tensor:
    """One of `MEASURES`, each growing with certainty: the gap, the probability, or 1 - entropy / ln V."""
    if measure == "softmax_response":
        return gap_N
    if measure == "max_probability":
        return probability_N
    return 1.0 - entropy_N / math.log(vocabulary) if vocabulary > 1 else torch.ones_like(entropy_N)


def exit_confidence_reference(
    hidden_NC: Tensor,
    weight_VC: Tensor,
    *,
    bias: Tensor | None = None,
    norm: Norm | None = None,
    scales: Tensor | None = None,
    softcap: float | None = None,
    thresholds: Tensor | float | None = None,
    measure: str = "softmax_response",
    accumulate: torch.dtype = torch.float32,
) -> ExitConfidence:
    """Logits in ``accumulate``, then what is to be known of them; floats come in ``accumulate``.

    Arguments as in :func:`lit_eff.kernels.confidence.exit_confidence`.
    """
    logits_NV = skinny_linear_reference(
        hidden_NC, weight_VC, bias=bias, norm=norm, scales=scales, out_dtype=accumulate, accumulate=accumulate
    )
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    token_N = logits_NV.argmax(dim=1)
    log_p_NV = logits_NV.log_softmax(dim=1)
    p_NV = log_p_NV.exp()
    probability_N = p_NV.gather(1, token_N[:, None])[:, 0]
    entropy_N = -torch.special.xlogy(p_NV, p_NV).sum(dim=1)
    rest_NV = p_NV.scatter(1, token_N[:, None], 0.0)
    gap_N = probability_N - rest_NV.amax(dim=1)
    limit_N = torch.as_tensor(NEVER if thresholds is None else thresholds, device=hidden_NC.device)
    confidence_N = confidence_of(measure, probability_N, gap_N, entropy_N, weight_VC.shape[0])
    return ExitConfidence(
        token_N,
        probability_N,
        gap_N,
        entropy_N,
        logits_NV.logsumexp(dim=1),
        confidence_N.float() >= limit_N.float(),
    )
