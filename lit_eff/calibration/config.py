"""What to calibrate: the ``calibration`` section of a recipe."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lit_eff.calibration.inputs import check_levels
from lit_eff.calibration.p_values import P_VALUES
from lit_eff.calibration.procedures import PROCEDURES, SPLIT
from lit_eff.errors import UserError, nearest

# Conservative to bold, finer where confident tokens crowd.
DEFAULT_THRESHOLDS: tuple[float, ...] = (
    *(0.995, 0.99, 0.98, 0.97, 0.95, 0.925, 0.9, 0.875, 0.85, 0.8, 0.75, 0.7),
    *(0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1),
)
CLASSIFIER_RISKS = ("disagreement", "error")
# Those of lit_eff.runtime.metrics, which this torch-free room does not import.
METRICS = ("token_disagreement", "exact_match", "edit_distance", "rouge_l", "chrf", "bleu")
FUNCTION = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")


@dataclass(frozen=True)
class CalibrationConfig:
    """Calibrate one threshold, shared by all early exits.

    Everything here is fixed before calibration data is seen; choosing the measure, the decay or the grid by
    looking at the certificate and calibrating again on the same split voids the guarantee.

    Attributes:
        risk: what early exits may lose. Of a language model: ``textual_consistency``, how far its
            continuation is from the full model's; ``risk_consistency``, how much further from the document's
            own next tokens than the full model's is. Of a classifier: ``disagreement`` with the full model's
            label, or ``error``: a wrong label where the full model's is right.
        metric: dissimilarity of two continuations of a language model: of tokens ``token_disagreement``,
            ``exact_match``, ``edit_distance``; of text ``rouge_l``, ``chrf``, ``bleu`` (one minus the score)
            or a function of two texts, ``package.module:function``.
        delta: the risk that must not be exceeded, as a mean over sequences.
        epsilon: the probability with which the guarantee may fail.
        sequences, test_sequences: prompts, each the start of its own document of that split; documents to
            classify.
        prompt_length: tokens; ``None``: prompts of any length, which logged traffic has. A classifier reads
            whole documents, and leaves both lengths unread.
        continuation_length: tokens.
        thresholds: the grid, from the most conservative (largest) to the boldest, in [0, 1].
        measure: confidence measure of :class:`lit_eff.runtime.exit_rule.ExitRule`.
        decay: CALM's tau, with the continuation length as its horizon; ``None``: constant thresholds.
        batch_size: prompts decoded together; memory grows with it times the number of thresholds.
        kv_policy: how keys and values of skipped layers come to be.
        p_value, procedure: names in :data:`lit_eff.calibration.P_VALUES` and ``PROCEDURES``.

    Raises:
        UserError: naming the setting that is out of range.
    """

    risk: Literal["textual_consistency", "risk_consistency", "disagreement", "error"] = "textual_consistency"
    metric: str = "token_disagreement"
    delta: float = 0.1
    epsilon: float = 0.05
    sequences: int = 500
    test_sequences: int = 500
    prompt_length: int | None = 32
    continuation_length: int = 16
    thresholds: tuple[float, ...] = DEFAULT_THRESHOLDS
    measure: Literal["softmax_response", "max_probability", "entropy"] = "softmax_response"
    decay: float | None = None
    batch_size: int = 64
    kv_policy: Literal["deferred"] = "deferred"
    p_value: str = "hoeffding_bentkus"
    procedure: str = "fixed_sequence"

    def __post_init__(self) -> None:
        try:
            check_levels(self.delta, self.epsilon)
        except UserError as error:
            raise UserError(f"calibration.{error}") from None
        for name in ("sequences", "test_sequences", "prompt_length", "continuation_length", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"calibration.{name} is {getattr(self, name)}; expected a positive integer")
        grid = list(self.thresholds)
        if not grid or grid != sorted(set(grid), reverse=True) or not 0.0 <= grid[-1] <= grid[0] <= 1.0:
            raise UserError(
                f"calibration.thresholds is {grid}; expected decreasing numbers in [0, 1], "
                "most conservative first"
            )
        if self.decay is not None and self.decay < 0:
            raise UserError(
                f"calibration.decay is {self.decay}; expected a number of at least 0, or null for none"
            )
        for name, options in (("p_value", P_VALUES), ("procedure", PROCEDURES)):
            value = getattr(self, name)
            if value not in options:
                raise UserError(f"calibration.{name} is {value!r}{nearest(value, options)}")
        if self.procedure == SPLIT:
            raise UserError(
                f"calibration.procedure is {SPLIT!r}, which learns an order on another split; one "
                "shared threshold has its order: use fixed_sequence"
            )
        self._check_loss()

    @property
    def classifies(self) -> bool:
        """Whether the risk is a classifier's."""
        return self.risk in CLASSIFIER_RISKS

    @property
    def reference_length(self) -> int:
        """Tokens of a document read beyond the prompt."""
        return self.continuation_length if self.risk == "risk_consistency" else 0

    def _check_loss(self) -> None:
        if self.metric not in METRICS and not FUNCTION.match(self.metric):
            raise UserError(
                f"calibration.metric is {self.metric!r}{nearest(self.metric, METRICS)}; or a function of "
                "your own, package.module:function"
            )
        if self.classifies and self.metric != "token_disagreement":
            raise UserError(
                f"calibration.metric is {self.metric!r}, of text, and calibration.risk {self.risk!r} is of "
                "labels; leave the metric out"
            )
        if self.classifies and self.decay is not None:
            raise UserError(
                f"calibration.decay is {self.decay}, a schedule over generated tokens, and a classifier "
                "generates none; set it to null"
            )
        if self.p_value == "binomial" and not self.classifies and self.metric != "exact_match":
            raise UserError(
                f"calibration.p_value is 'binomial', for losses that can only be 0 or 1, and "
                f"{self.metric} is in between; use wsr or hoeffding_bentkus, or metric exact_match"
            )
