"""How far one continuation is from another: dissimilarities in [0, 1], 0 where they are equal.

Those of token ids stand here and need NumPy at most, so a server can compute them. Those of text are in
``lit_eff.calibration.text_metrics``, which a certificate names the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Tokens = Sequence[int]
Metric = Callable[[Tokens, Tokens], float]

# A function of the user's own: (text, other text) -> dissimilarity.
CALLABLE = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")


def token_disagreement(one: Tokens, other: Tokens) -> float:
    """Share of positions whose tokens differ; both have the same length (Schuster et al. 2022, section 4)."""
    return sum(a != b for a, b in zip(one, other, strict=True)) / len(one)


def exact_match(one: Tokens, other: Tokens) -> float:
    """0 where all tokens are equal, else 1."""
    return float(tuple(one) != tuple(other))


def edit_distance(one: Tokens, other: Tokens) -> float:
    """Fewest insertions, deletions and substitutions of tokens (Levenshtein 1966) over the longer length."""
    row = list(range(len(other) + 1))  # distances from the tokens of ``one`` so far to each prefix of other
    for i, a in enumerate(one, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1] / max(len(one), len(other), 1)


TOKEN_METRICS: dict[str, Metric] = {
    "token_disagreement": token_disagreement,
    "exact_match": exact_match,
    "edit_distance": edit_distance,
}
TEXT_METRICS = ("rouge_l", "chrf", "bleu")
METRICS = (*TOKEN_METRICS, *TEXT_METRICS)
