"""How certain an exit is of a token: the confidence measures. The torch form is tested against this one.

Every measure grows with certainty and lies in [0, 1], computed in float32. What each reads:

- of the exit's own logits (before temperature, penalties and truncation): ``softmax_response``, the gap
  between the two largest probabilities; ``max_probability``, the largest; ``entropy``, ``1 - H / ln V``;
- of hidden states, so that the output matrix is read only where a token leaves: ``hidden_saturation``, the
  cosine of the state here and at the exit before (the embedding, at the first), where negative 0;
  ``classifier``, the sigmoid of a trained linear layer's score;
- of the predictions of this exit and those before it: ``patience``, how many times in a row, up to here, an
  exit predicted the token that the one before it did, over the most times there could be.

Sources: Schuster et al. 2022 (CALM), section 3.5; Zhou et al. 2020 (PABEE), for patience; Xin et al. 2021
(BERxiT), whose learned exit is a ``classifier`` trained to tell right predictions.

Shapes: N tokens, V vocabulary, C model dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Measure = Literal[
    "softmax_response", "max_probability", "entropy", "hidden_saturation", "classifier", "patience"
]
MEASURES: tuple[Measure, ...] = get_args(Measure)
# Those that compute nothing from an exit's logits.
READS_NO_LOGITS: frozenset[Measure] = frozenset({"hidden_saturation", "classifier"})

Floats = NDArray[np.float32]


def _softmax(logits_NV: NDArray[Any]) -> Floats:
    logits_NV = np.asarray(logits_NV, np.float32)
    weights_NV = np.exp(logits_NV - logits_NV.max(axis=-1, keepdims=True))
    return np.asarray(weights_NV / weights_NV.sum(axis=-1, keepdims=True, dtype=np.float32))


def _max_probability(logits_NV: NDArray[Any]) -> Floats:
    return np.asarray(_softmax(logits_NV).max(axis=-1))


def _softmax_response(logits_NV: NDArray[Any]) -> Floats:
    p_NV = _softmax(logits_NV)
    best_N1 = p_NV.argmax(axis=-1)[..., None]
    top_N = np.take_along_axis(p_NV, best_N1, axis=-1)[..., 0]
    np.put_along_axis(p_NV, best_N1, -1.0, axis=-1)  # the second best is the best of what is left
    return np.asarray(top_N - np.maximum(p_NV.max(axis=-1), 0.0))


def _negative_entropy(logits_NV: NDArray[Any]) -> Floats:
    p_NV = _softmax(logits_NV)
    vocabulary = p_NV.shape[-1]
    if vocabulary == 1:
        return np.ones(p_NV.shape[:-1], np.float32)
    nats_NV = p_NV * np.log(np.where(p_NV > 0, p_NV, 1.0), dtype=np.float32)
    return np.asarray(1.0 + nats_NV.sum(axis=-1, dtype=np.float32) / np.float32(math.log(vocabulary)))


# From logits (N, V) of any float type to confidences (N,).
LOGIT_MEASURES: dict[str, Callable[[NDArray[Any]], Floats]] = {
    "softmax_response": _softmax_response,
    "max_probability": _max_probability,
    "entropy": _negative_entropy,
}


def hidden_saturation(hidden_NC: NDArray[Any], before_NC: NDArray[Any]) -> Floats:
    """Cosine of each token's hidden states at this exit and at the one before, at least 0: float32 ``(N,)``.

    Where there is an exit after every layer, those are the successive layers of CALM's measure.
    """
    here_NC, before_NC = np.asarray(hidden_NC, np.float32), np.asarray(before_NC, np.float32)
    lengths_N = np.linalg.norm(here_NC, axis=-1) * np.linalg.norm(before_NC, axis=-1)
    product_N = (here_NC * before_NC).sum(axis=-1, dtype=np.float32)
    return np.asarray(np.clip(product_N / np.maximum(lengths_N, np.float32(1e-20)), 0.0, 1.0))


def classifier(score_N: ArrayLike) -> Floats:
    """Sigmoid of the exit classifier's scores, float32 ``(N,)``."""
    # By tanh, which overflows nowhere.
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * np.asarray(score_N, np.float32)), np.float32)


def patience(streak_N: ArrayLike, early_exits: int) -> Floats:
    """Times in a row that the prediction stayed, over the most that early exits allow: float32 ``(N,)``."""
    return np.asarray(np.asarray(streak_N, np.float32) / np.float32(max(1, early_exits - 1)))
