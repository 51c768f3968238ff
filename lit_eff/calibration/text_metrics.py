"""A metric by its name: of tokens, of text by torchmetrics, or a function of the user's own.

Metrics of text decode the tokens first, without special tokens, and compare one sequence with one other.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer

from lit_eff.errors import UserError, require
from lit_eff.runtime.metrics import TEXT_METRICS, TOKEN_METRICS, Metric, Tokens

OfText = Callable[[str, str], float]


def find_metric(name: str, tokenizer_json: str | None) -> Metric:
    """A dissimilarity of two continuations of token ids, in [0, 1].

    Args:
        name: a name in :mod:`lit_eff.runtime.metrics`, or ``package.module:function``, which is imported and
            called with two texts: the continuation, and the one that it is held against.
        tokenizer_json: of the model.

    Raises:
        UserError: for a function that cannot be imported, or text without a tokenizer. The metric itself
            raises it for a function that returns anything but a number in [0, 1], 0 for equal texts.
    """
    if name in TOKEN_METRICS:
        return TOKEN_METRICS[name]
    if tokenizer_json is None:
        known = ", ".join(TOKEN_METRICS)
        raise UserError(
            f"calibration.metric is {name!r}, of text, and the model has no tokenizer; use {known}"
        )
    tokenizer = Tokenizer.from_str(tokenizer_json)
    of_text = _torchmetric(name) if name in TEXT_METRICS else _checked(name, _imported(name))

    def metric(one: Tokens, other: Tokens) -> float:
        return of_text(tokenizer.decode(list(one)), tokenizer.decode(list(other)))

    return metric


def _torchmetric(name: str) -> OfText:
    """``1 - score`` of torchmetrics; 0 for equal texts, where short ones have too few n-grams to score 1."""
    require("torchmetrics", "train")
    from torchmetrics.functional.text import bleu_score, chrf_score, rouge_score

    def rouge_l(one: str, other: str) -> Any:
        return rouge_score(one, other, rouge_keys="rougeL")["rougeL_fmeasure"]

    scores: dict[str, Callable[[str, str], Any]] = {
        "rouge_l": rouge_l,
        "chrf": lambda one, other: chrf_score([one], [[other]], n_word_order=0),
        # Smoothed (Lin & Och 2004), as BLEU of a single sentence must be.
        "bleu": lambda one, other: bleu_score([one], [[other]], smooth=True),
    }
    score = scores[name]

    def difference(one: str, other: str) -> float:
        # Scores are float32, which may round to a little over 1.
        return 0.0 if one == other else min(1.0, max(0.0, 1.0 - float(score(one, other))))

    return difference


def _imported(name: str) -> OfText:
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise UserError(
            f"calibration.metric {name!r} cannot be imported ({error}); install it or add its folder to "
            "PYTHONPATH"
        ) from None
    if not callable(function):
        raise UserError(f"calibration.metric is {name!r}, and module {module} has no function {attribute}")
    found: OfText = function
    return found


def _checked(name: str, function: OfText) -> OfText:
    def checked(one: str, other: str) -> float:
        value = float(function(one, other))
        if not 0.0 <= value <= 1.0:
            raise UserError(f"metric {name} returned {value}; expected a dissimilarity in [0, 1]")
        if one == other and value != 0.0:
            raise UserError(
                f"metric {name} returned {value} for two equal texts; expected a dissimilarity, 0 there"
            )
        return value

    return checked
