"""Does what was written compute what the model computes? Measured, not assumed, on every export.

Shapes: T tokens, C model dim, V vocabulary.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.models.transformer import Transformer
from lit_eff.runtime.segments import SegmentRunner

TOLERANCE = 1e-4
TOKENS = 96


def logit_errors(model: Transformer, runner: SegmentRunner) -> tuple[float, ...]:
    """Largest absolute difference between the runner's logits and torch's float32 ones, for each exit.

    ``TOKENS`` random tokens. The runner takes the first one alone and the rest in one call, so the cache is
    read as well as written. An exit classifier's scores are compared too.

    Raises:
        UserError: for an error above ``TOLERANCE`` times the largest value (or 1, if that is larger).
    """
    exact = (
        model if all(p.dtype == torch.float32 for p in model.parameters()) else copy.deepcopy(model).float()
    )
    exact.eval()
    count = min(TOKENS, runner.context)
    tokens_T = np.random.default_rng(0).integers(0, runner.vocab_size, count)
    calls = [slice(0, 1), slice(1, count)] if count > 1 else [slice(0, 1)]
    state = runner.new_state()
    hidden_TC = np.concatenate([runner.embed(tokens_T[call], call.start) for call in calls])
    errors = []
    with torch.inference_mode():
        expected = exact(torch.from_numpy(tokens_T)[None].to(exact.device))
        for e, layer in enumerate(runner.exit_layers):
            rows = [runner.run_segment(state, e, hidden_TC[call], call.start) for call in calls]
            hidden_TC = np.concatenate(rows)
            logits_TV = exact.logits(expected[e], e)[0]
            errors.append(_error(f"logits after layer {layer}", runner.head(e, hidden_TC), logits_TV))
            if exact.exit_classifier is not None:
                score_T = exact.exit_score(expected[e])[0]
                _error(f"exit scores after layer {layer}", runner.exit_score(hidden_TC), score_T)
    return tuple(errors)


def _error(what: str, values: NDArray[np.float32], exact: Tensor) -> float:
    """The largest absolute difference; raises UserError above the tolerance."""
    expected = exact.cpu().numpy()
    error = float(np.abs(values - expected).max())
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not error <= allowed:  # NaN fails too
        raise UserError(
            f"the exported {what} differ from torch's by {error:.2e} (allowed {allowed:.2e}); nothing was "
            "written. Please report the model configuration"
        )
    return error
