"""Which exit each of many sequences takes at one step, and its greedy token: the batched form of
:func:`lit_eff.runtime.decode.generate`'s step.

Shapes: P sequences, R rows of hidden states that they share, E early exits, C model dim, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_eff.decoding.confidence import hidden_saturation, of_logits
from lit_eff.errors import UserError
from lit_eff.models.transformer import Transformer
from lit_eff.runtime.confidence import LOGIT_MEASURES, READS_NO_LOGITS, Measure, patience

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
HEAD_ROWS = 256  # rows of logits held at a time


def leave(
    model: Transformer, states_RC: list[Tensor], row_P: Ints, limits_PE: Floats, measure: Measure
) -> tuple[Ints, Ints]:
    """Each sequence's next token and the exit it comes from, int64 ``(P,)`` both.

    A head is read only for rows where a sequence may leave, and for a measure that reads no logits only where
    one does.

    Args:
        states_RC: embeddings, then the hidden states at every exit, the last being the full model.
        row_P: each sequence's row.
        limits_PE: threshold of each early exit; infinite where it is not asked.

    Raises:
        UserError: where logits or confidences are not finite, or the model has no exit classifier to ask.
    """
    token_P, exit_P = np.empty_like(row_P), np.empty_like(row_P)
    predicted_P, streak_P = np.full_like(row_P, -1), np.zeros_like(row_P)
    inside_P = np.arange(len(row_P))  # those that have not left yet
    last = len(states_RC) - 2
    for e in range(last + 1):
        asking = inside_P if e == last else inside_P[np.isfinite(limits_PE[inside_P, e])]
        if not asking.size:
            continue
        rows, place = np.unique(row_P[asking], return_inverse=True)
        here_RC, before_RC = (
            x[torch.from_numpy(rows).to(model.device)] for x in (states_RC[e + 1], states_RC[e])
        )
        best_R: Ints | None = None
        if e == last or measure not in READS_NO_LOGITS:
            best_R, confidence_R = _read(model, here_RC, e, measure)
        elif measure == "hidden_saturation":
            confidence_R = _finite(hidden_saturation(here_RC, before_RC), e)
        else:
            confidence_R = _finite(model.exit_score(here_RC).sigmoid(), e)
        if e == last:
            leaves = np.full(len(asking), True)
        else:
            confidence_P = confidence_R[place]
            if measure == "patience":
                assert best_R is not None
                stays = best_R[place] == predicted_P[asking]
                streak_P[asking] = np.where(stays, streak_P[asking] + 1, 0)
                predicted_P[asking] = best_R[place]
                confidence_P = patience(streak_P[asking], last)
            leaves = confidence_P >= limits_PE[asking, e]
        if best_R is None:
            read = np.unique(place[leaves])
            best_R = np.empty(len(rows), np.int64)
            best_R[read] = _read(model, here_RC[torch.from_numpy(read).to(model.device)], e, measure)[0]
        token_P[asking[leaves]], exit_P[asking[leaves]] = best_R[place[leaves]], e
        inside_P = np.setdiff1d(inside_P, asking[leaves], assume_unique=True)
    return token_P, exit_P


def _read(model: Transformer, hidden_RC: Tensor, e: int, measure: Measure) -> tuple[Ints, Floats]:
    """Greedy token and, by a measure of logits, confidence of each row at exit ``e``."""
    best, certain = [], []
    for part_RC in torch.split(hidden_RC, HEAD_ROWS):
        logits_RV = model.logits(part_RC, e)
        top_R, best_R = logits_RV.max(dim=-1)
        best.append(best_R)
        # Of the other measures nothing but whether the logits are finite is looked at.
        certain.append(top_R if measure not in LOGIT_MEASURES else of_logits(logits_RV, measure))
    return torch.cat(best).cpu().numpy(), _finite(torch.cat(certain), e)


def _finite(confidence_R: Tensor, e: int) -> Floats:
    values: Floats = confidence_R.float().cpu().numpy()
    if not np.isfinite(values).all():
        raise UserError(f"the model yields logits that are not finite at exit {e}; was its training stable?")
    return values
