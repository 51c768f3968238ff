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
# Those of lit_eff.runtime, which this torch-free room does not import.
Measure = Literal[
    "softmax_response", "max_probability", "entropy", "hidden_saturation", "classifier", "patience"
]
METRICS = ("token_disagreement", "exact_match", "edit_distance", "rouge_l", "chrf", "bleu")
FUNCTION = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")


@dataclass(frozen=True)
class Risk:
    """A risk that exits must keep within delta; the attributes are those of :class:`CalibrationConfig`."""

    risk: Literal["textual_consistency", "risk_consistency", "disagreement", "error"]
    metric: str = "token_disagreement"
    delta: float = 0.1

    @property
    def classifies(self) -> bool:
        """Whether this is a classifier's."""
        return self.risk in CLASSIFIER_RISKS


@dataclass(frozen=True)
class CalibrationConfig:
    """Calibrate one threshold, shared by all early exits, or a vector of them, one an exit.

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
        also: further risks, each with its own metric and delta, which the same thresholds keep all at once.
            They cost no runs, and no share of epsilon.
        epsilon: the probability with which the guarantee may fail.
        sequences, test_sequences: prompts, each the start of its own document of that split; documents to
            classify.
        learning_sequences: as many more, on which ``split_fixed_sequence`` learns its vectors and their
            order; 0 for every other procedure. Documents of the validation split, which costs the test no
            sequence; the model knows its training documents too well for an order that saves much.
        prompt_length: tokens; ``None``: prompts of any length, which logged traffic has. A classifier reads
            whole documents, and leaves both lengths unread.
        continuation_length: tokens.
        thresholds: the grid, from the most conservative (largest) to the boldest, in [0, 1]; or a path of
            vectors in the order of their tests, one threshold an early exit, ``None`` never exiting there.
            ``split_fixed_sequence`` combines the grid's thresholds to vectors of its own.
        measure: confidence measure of :mod:`lit_eff.runtime.confidence`; or several, each run and
            tested at its share of epsilon, of which the one that saves most is certified.
        decay: CALM's tau, with the continuation length as its horizon; ``None``: constant thresholds.
        batch_size: prompts decoded together; memory grows with it times the number of thresholds.
        kv_policy: how keys and values of skipped layers come to be, see :mod:`lit_eff.runtime.segments`.
        p_value, procedure: names in :data:`lit_eff.calibration.P_VALUES` and ``PROCEDURES``.

    Raises:
        UserError: naming the setting that is out of range.
    """

    risk: Literal["textual_consistency", "risk_consistency", "disagreement", "error"] = "textual_consistency"
    metric: str = "token_disagreement"
    delta: float = 0.1
    also: tuple[Risk, ...] = ()
    epsilon: float = 0.05
    sequences: int = 500
    test_sequences: int = 500
    learning_sequences: int = 0
    prompt_length: int | None = 32
    continuation_length: int = 16
    thresholds: tuple[float | tuple[float | None, ...], ...] = DEFAULT_THRESHOLDS
    measure: Measure | tuple[Measure, ...] = "softmax_response"
    decay: float | None = None
    batch_size: int = 64
    kv_policy: Literal["deferred", "recompute", "exact", "propagate"] = "deferred"
    p_value: str = "hoeffding_bentkus"
    procedure: str = "fixed_sequence"

    def __post_init__(self) -> None:
        for name in ("sequences", "test_sequences", "prompt_length", "continuation_length", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"calibration.{name} is {getattr(self, name)}; expected a positive integer")
        self._check_thresholds()
        if not self.measures or len(set(self.measures)) < len(self.measures):
            raise UserError(
                f"calibration.measure is {list(self.measures)}; expected one confidence measure or different "
                "ones to choose among"
            )
        if self.decay is not None and self.decay < 0:
            raise UserError(
                f"calibration.decay is {self.decay}; expected a number of at least 0, or null for none"
            )
        for name, options in (("p_value", P_VALUES), ("procedure", PROCEDURES)):
            value = getattr(self, name)
            if value not in options:
                raise UserError(f"calibration.{name} is {value!r}{nearest(value, options)}")
        if self.learns != (self.learning_sequences > 0):
            raise UserError(
                f"calibration.learning_sequences is {self.learning_sequences} and calibration.procedure "
                f"{self.procedure!r}; expected a positive integer with {SPLIT}, and 0 with any other"
            )
        for index, risk in enumerate(self.risks):
            self._check_risk(risk, f"calibration.also[{index - 1}]" if index else "calibration")
        if self.classifies and self.decay is not None:
            raise UserError(
                f"calibration.decay is {self.decay}, a schedule over generated tokens, and a classifier "
                "generates none; set it to null"
            )

    @property
    def classifies(self) -> bool:
        """Whether the risk is a classifier's."""
        return self.risk in CLASSIFIER_RISKS

    @property
    def shared(self) -> tuple[float, ...]:
        """The thresholds that all early exits share; none where they are vectors."""
        return tuple(each for each in self.thresholds if not isinstance(each, tuple))

    @property
    def learns(self) -> bool:
        """Whether vectors and their order are learned."""
        return self.procedure == SPLIT

    def vectors(self, early_exits: int) -> list[tuple[float | None, ...]]:
        """The candidates, one threshold per early exit, in the order of their tests.

        Raises:
            UserError: for vectors made for another number of exits.
        """
        found = [
            threshold if isinstance(threshold, tuple) else (threshold,) * early_exits
            for threshold in self.thresholds
        ]
        for vector in found:
            if len(vector) != early_exits:
                raise UserError(
                    f"calibration.thresholds holds {list(vector)}; expected a threshold for each of "
                    f"{early_exits} early exits"
                )
        return found

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Those to choose among; one where there is no choice."""
        return self.measure if isinstance(self.measure, tuple) else (self.measure,)

    @property
    def level(self) -> float:
        """Epsilon's share of each measure."""
        return self.epsilon / len(self.measures)

    @property
    def risks(self) -> tuple[Risk, ...]:
        """``risk`` by ``metric`` within ``delta``, then ``also``."""
        return (Risk(self.risk, self.metric, self.delta), *self.also)

    @property
    def deltas(self) -> list[float]:
        return [each.delta for each in self.risks]

    @property
    def reference_length(self) -> int:
        """Tokens of a document read beyond the prompt."""
        references = any(each.risk == "risk_consistency" for each in self.risks)
        return self.continuation_length if references else 0

    def _check_thresholds(self) -> None:
        vectors = [each for each in self.thresholds if isinstance(each, tuple)]
        if vectors and not self.learns:
            expected = "vectors of numbers in [0, 1] or null, one an early exit, or no vector at all"
            values = [each for vector in vectors for each in vector if each is not None]
            sound = not self.shared and all(vectors)
        else:
            expected = "decreasing numbers in [0, 1], most conservative first"
            values = list(self.shared)
            sound = not vectors and bool(values) and values == sorted(set(values), reverse=True)
        if not sound or not all(0.0 <= each <= 1.0 for each in values):
            raise UserError(f"calibration.thresholds is {list(self.thresholds)}; expected {expected}")

    def _check_risk(self, risk: Risk, name: str) -> None:
        if risk.metric not in METRICS and not FUNCTION.match(risk.metric):
            raise UserError(
                f"{name}.metric is {risk.metric!r}{nearest(risk.metric, METRICS)}; or a function of "
                "your own, package.module:function"
            )
        if risk.classifies != self.classifies:
            raise UserError(
                f"{name}.risk is {risk.risk!r} and calibration.risk {self.risk!r}; one is of labels and the "
                "other of text, and no model has both"
            )
        if self.classifies and risk.metric != "token_disagreement":
            raise UserError(
                f"{name}.metric is {risk.metric!r}, of text, and calibration.risk {self.risk!r} is of "
                "labels; leave the metric out"
            )
        if self.p_value == "binomial" and not self.classifies and risk.metric != "exact_match":
            raise UserError(
                f"calibration.p_value is 'binomial', for losses that can only be 0 or 1, and "
                f"{risk.metric} is in between; use wsr or hoeffding_bentkus, or metric exact_match"
            )
        try:
            check_levels(risk.delta, self.epsilon)
        except UserError as error:
            raise UserError(f"{name}.{error}") from None
