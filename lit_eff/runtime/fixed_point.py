"""The processed distribution in whole numbers, which every device computes alike, bit for bit.

:mod:`lit_eff.runtime.sampling` says what a distribution is, in float64. Sums of floats depend on their order,
so a GPU that cuts a row otherwise than NumPy would now and then choose another token. Here a token's weight
is an integer: every step up to it is one correctly rounded float32 operation, and from there on sums are
exact in any order. What is drawn is then a function of logits, parameters and random number alone.

A token's distance X is how far it lies below the largest logit, ``(max - z) log2(e) / T`` in steps of 2^-20,
rounded; its weight is 2^(44 - X), rounded down, and 0 from 44 on. Both are as exact as a float32 softmax.
Tokens of equal distance are equals: of them the lower index comes first.

Shapes: V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lit_eff.runtime.sampling import NO_HISTORY, History, SamplingParams

Weights = NDArray[np.int64]

FRACTION_BITS = 20  # of a distance
WEIGHT_BITS = 44  # of the largest weight
DEAD = WEIGHT_BITS << FRACTION_BITS  # the distance from which weights are 0
MAX_VOCABULARY = 2**19 - 1  # so that a sum of weights stays below 2^63
# 2^-x = 1 - x (a1 - x (a2 - ...)) on [0, 1), to 2^-30: interpolated at Chebyshev nodes, times 2^31.
EXP2_COEFFICIENTS = (1488522236, 515882469, 119193747, 20652244, 2856024, 319744, 24275)
LARGEST_FLOAT32 = 3.4028234663852886e38


def float32_logits(
    logits_V: NDArray[np.floating], params: SamplingParams, history: History
) -> NDArray[np.float32]:
    """Logits ``(V,)`` after bias and penalties, in the order of ``sampling.processed_logits``.

    Bias is added in float32; penalties are taken in float64 and rounded to float32 once.
    """
    z_V = logits_V.astype(np.float32)
    for token, bias in params.logit_bias.items():
        z_V[token] += np.float32(bias)
    if not params.reads_history:
        return z_V
    counts_V = np.bincount(np.asarray(history.output, np.int64), minlength=len(z_V))
    seen_V = counts_V > 0
    seen_V[np.asarray(history.prompt, np.int64)] = True
    penalty, presence, frequency = (
        np.float64(np.float32(each))
        for each in (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
    )
    wide_V = z_V.astype(np.float64)
    wide_V = np.where(seen_V, np.where(wide_V > 0, wide_V / penalty, wide_V * penalty), wide_V)
    wide_V -= np.where(counts_V > 0, presence + frequency * counts_V, 0.0)
    return wide_V.astype(np.float32)


def distances(z_V: NDArray[np.float32], temperature: float) -> Weights:
    """Distances below the largest logit, ``DEAD`` at most; 0 for the largest alone where greedy."""
    largest = z_V.max()
    if np.float32(temperature) == 0:
        return np.where(z_V == largest, 0, DEAD).astype(np.int64)
    with np.errstate(over="ignore"):
        factor = np.minimum(
            np.float32(math.log2(math.e)) / np.float32(temperature), np.float32(LARGEST_FLOAT32)
        )
        below_V = np.minimum((largest - z_V) * factor, np.float32(WEIGHT_BITS))
    rounded_V: Weights = (below_V * np.float32(2**FRACTION_BITS) + np.float32(0.5)).astype(np.int64)
    return rounded_V


def weights_of(distances_V: Weights) -> Weights:
    """Weights of distances, int64: 2^44 at distance 0, at least 1 below ``DEAD``."""
    x_V = (distances_V & (2**FRACTION_BITS - 1)) << (32 - FRACTION_BITS)
    y_V = np.full_like(x_V, EXP2_COEFFICIENTS[-1])
    for coefficient in EXP2_COEFFICIENTS[-2::-1]:
        y_V = coefficient - (y_V * x_V >> 32)
    mantissa_V = 2**31 - (y_V * x_V >> 32)
    shift_V = np.minimum(distances_V >> FRACTION_BITS, 63)
    return np.where(distances_V < DEAD, mantissa_V << (WEIGHT_BITS - 31) >> shift_V, 0)


def kept_weights(
    logits_V: NDArray[np.floating], params: SamplingParams, history: History = NO_HISTORY
) -> Weights:
    """Integer weights ``(V,)`` of the processed distribution, 0 where truncation cut a token off.

    Parameters are rounded to float32. All weights are 0 where a logit is NaN or the largest is not finite.
    """
    z_V = float32_logits(logits_V, params, history)
    if not np.isfinite(z_V.max()):
        return np.zeros(len(z_V), np.int64)
    distances_V = distances(z_V, params.temperature)
    weights_V = weights_of(distances_V)
    order = np.argsort(distances_V, kind="stable")
    count = int((weights_V > 0).sum())
    if np.float32(params.temperature) == 0:
        count = 1
    elif params.top_k is not None:
        count = min(count, params.top_k)
    sums = np.cumsum(weights_V[order[:count]])
    if params.top_p is not None and np.float32(params.top_p) < 1:
        reach = max(1, int(np.float64(np.float32(params.top_p)) * np.float64(sums[-1])))
        count = int(np.searchsorted(sums, reach)) + 1
    kept_V = np.zeros_like(weights_V)
    kept_V[order[:count]] = weights_V[order[:count]]
    if params.min_p is not None:
        kept_V[kept_V < int(np.float32(params.min_p) * np.float32(2**WEIGHT_BITS))] = 0
    return kept_V


def draw_token(weights_V: Weights, word: int) -> int:
    """The token at ``word * total / 2^64`` of the cumulative weights; -1 where all weights are 0."""
    cumulative_V = np.cumsum(weights_V)
    if cumulative_V[-1] == 0:
        return -1
    return int(np.searchsorted(cumulative_V, word * int(cumulative_V[-1]) >> 64, side="right"))


def draw_without_replacement(weights_V: Weights, words: list[int]) -> list[int]:
    """One token a word, each from the weights without the tokens before it; -1 when none is left."""
    weights_V, tokens = weights_V.copy(), []
    for word in words:
        tokens.append(draw_token(weights_V, word))
        if tokens[-1] >= 0:
            weights_V[tokens[-1]] = 0
    return tokens
