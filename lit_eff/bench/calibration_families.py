"""Simulated losses with known true risks, for the calibration benchmark and its tests.

Shapes: T trials, n sequences, K candidates from conservative to bold, E early exits, N tokens, V vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LAYERS = 12


def savings(candidates: int) -> Floats:
    """Layers saved by each of K candidates, evenly spread over what 12 layers with a first exit allow."""
    return np.linspace(0.0, LAYERS - 1.0, candidates)


def risks(candidates: int) -> Floats:
    """Their true risks: the square of the saving, as the last layers saved cost most; 0.5 at the boldest."""
    return 0.5 * np.linspace(0.0, 1.0, candidates) ** 2


# All candidates of a sequence share its difficulty, as thresholds on one text do.
def binary(risk_K: Floats, trials: int, n: int, rng: np.random.Generator) -> Floats:
    """0/1 losses, ``(T, n, K)``."""
    return (rng.random((trials, n, 1)) < risk_K).astype(np.float64)


def shares(risk_K: Floats, trials: int, n: int, rng: np.random.Generator) -> Floats:
    """Shares of 16 tokens after a divergence somewhere, mean 17/32; else nothing: ``(T, n, K)``."""
    share = rng.integers(1, 17, (trials, n, 1)) / 16
    return np.where(rng.random((trials, n, 1)) < risk_K * 32 / 17, share, 0.0)


def smooth(risk_K: Floats, trials: int, n: int, rng: np.random.Generator) -> Floats:
    """Every sequence loses a little: uniform from 0 to twice the risk, ``(T, n, K)``."""
    return 2.0 * risk_K * rng.random((trials, n, 1))


FAMILIES: dict[str, Callable[[Floats, int, int, np.random.Generator], Floats]] = {
    "binary": binary,
    "shares": shares,
    "smooth": smooth,
}


@dataclass(frozen=True)
class Tokens:
    """A text's tokens, each with a confidence at every early exit and whether that exit is right.

    Attributes:
        confidence, right: ``(n, N, E)``.
        layers: run at each exit, ``(E,)``.
    """

    confidence: Floats
    right: NDArray[np.bool_]
    layers: Floats

    def part(self, first: int, end: int) -> Tokens:
        """Texts ``first`` to ``end``."""
        return Tokens(self.confidence[first:end], self.right[first:end], self.layers)

    def measure(self, thresholds_VE: Floats) -> tuple[Floats, Floats]:
        """Share of wrong tokens, ``(n, V)``, and layers saved per token, ``(V,)``: each leaves by the
        first exit that is sure."""
        at_the_end = np.zeros_like(self.right[..., :1])
        wrong = np.concatenate([~self.right, at_the_end], axis=-1)
        layers = np.append(self.layers, LAYERS)
        losses, saved = [], []
        for threshold_E in thresholds_VE:
            leaves = self.confidence >= threshold_E
            exit_nN = np.where(leaves.any(axis=-1), leaves.argmax(axis=-1), len(self.layers))
            losses.append(np.take_along_axis(wrong, exit_nN[..., None], axis=-1)[..., 0].mean(axis=1))
            saved.append(LAYERS - layers[exit_nN].mean())
        return np.stack(losses, axis=1), np.array(saved)


def tokens(n: int, rng: np.random.Generator, *, uneven: bool, length: int = 32) -> Tokens:
    """n texts of ``length`` tokens and three exits; a text's tokens are alike, easier ones right earlier.

    ``uneven``: the first exit claims far more than it knows, and at random, as shallow heads do, so that one
    threshold for all is too bold for the first or too shy for the others. Otherwise a confidence means the
    same at each exit, the probability of being right, and one threshold is as good as several.
    """
    layers = np.array([3.0, 6.0, 9.0])
    difficulty = rng.beta(2, 2, (n, 1)) + 0.5 * rng.normal(size=(n, length))
    logit = 4 * (layers / LAYERS - 0.9 * difficulty[..., None])
    right = rng.random(logit.shape) < _sigmoid(logit)
    if not uneven:
        return Tokens(_sigmoid(logit), right, layers)
    noise = np.array([2.0, 0.0, 0.0]) * rng.normal(size=logit.shape)
    return Tokens(_sigmoid(logit + noise) ** np.array([0.1, 1.0, 1.0]), right, layers)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))
