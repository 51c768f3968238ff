"""The parts of a certificate: what was tested, in which order, and what was measured on which split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from lit_eff.runtime.confidence import Measure
from lit_eff.runtime.exit_rule import Thresholds
from lit_eff.runtime.schema import Strict

NEVER = "never"

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Level = Annotated[float, Field(gt=0.0, lt=1.0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# In the file an exit that is never taken says so in a word: a threshold of 1 would still exit under a decay.
Threshold = Annotated[
    Probability | None,
    BeforeValidator(lambda value: None if value == NEVER else value),
    PlainSerializer(lambda value: NEVER if value is None else value, when_used="json"),
]


Certifies = Literal["textual_consistency", "risk_consistency", "disagreement", "error"]


class Risk(Strict):
    """A loss whose mean over sequences is kept within delta; ``certifies`` and ``metric`` say which."""

    certifies: Certifies
    metric: str
    delta: Level


class Candidate(Strict):
    """Thresholds that were tested, as measured on the calibration split.

    Attributes:
        threshold: shared by all early exits; ``None``: each has its own.
        thresholds: one per early exit; ``None``: they share one.
        risk: mean over sequences of the loss.
        also_risks: of the certificate's further risks, in their order; ``None``: it has none.
        p_value: of the null hypothesis "the true risk exceeds delta", or any of several risks its own.
        certified: whether the procedure rejected that hypothesis.
        layers_per_token: as in :class:`Measured`.
        risk_interval: lower and upper bound of the true ``risk``; each holds with probability
            ``1 - epsilon``, for this candidate and by itself; ``None``: not recorded.
    """

    threshold: Probability | None = None
    thresholds: tuple[Threshold, ...] | None = None
    risk: Probability
    also_risks: tuple[Probability, ...] | None = None
    p_value: Probability
    certified: bool
    layers_per_token: float
    risk_interval: tuple[Probability, Probability] | None = None

    @model_validator(mode="after")
    def _has_thresholds(self) -> Candidate:
        if (self.threshold is None) == (self.thresholds is None):
            raise ValueError("expected either threshold, for all early exits, or thresholds, one for each")
        return self

    def vector(self, early_exits: int) -> Thresholds:
        """The thresholds, one per early exit; ``None`` never exits there."""
        return (self.threshold,) * early_exits if self.thresholds is None else self.thresholds

    @property
    def label(self) -> str:
        """The thresholds as a person types them: ``0.8``, or ``never, 0.8`` from shallow to deep."""
        vector = (self.threshold,) if self.thresholds is None else self.thresholds
        return ", ".join(NEVER if each is None else f"{each:g}" for each in vector)


class Learning(Strict):
    """Where the order of the candidates comes from, if they bring none of their own.

    Attributes:
        split_sha256: hash of the sequences that it was learned on.
        sequences: how many, none of them in the calibration or the test split.
        vectors: vectors of thresholds measured on them, of which the candidates are the path.
    """

    split_sha256: Sha256
    sequences: Annotated[int, Field(ge=1)]
    vectors: Annotated[int, Field(ge=1)]


class Tried(Strict):
    """A confidence measure that was tested at its share of epsilon.

    Attributes:
        layers_per_token: as in :class:`Measured`, of the boldest certified candidate on the calibration
            split; ``None``: none could be certified.
    """

    measure: Measure
    layers_per_token: float | None


class Measured(Strict):
    """What the selected thresholds did on one split.

    Attributes:
        split_sha256: hash of the whole split the prompts came from.
        sequences: prompts, each from its own document.
        risk: mean over sequences of the loss.
        also_risks: as in :class:`Candidate`.
        layers_per_token: mean layers launched for a token: the layer it left at or, under the KV policy
            ``exact``, all. The time of one sequence follows this number.
        computed_layers_per_token: mean layers in fact computed for a token by the end of the continuation:
            under ``deferred`` a token's skipped layers run with the next token that goes deeper, in the same
            launch, and under ``recompute`` all its layers do, with every token until one goes all the way.
        exit_shares: share of tokens that left at each of ``exit_layers``; ``None``: not recorded.
    """

    split_sha256: Sha256
    sequences: Annotated[int, Field(ge=1)]
    risk: Probability
    also_risks: tuple[Probability, ...] | None = None
    layers_per_token: float
    computed_layers_per_token: float
    exit_shares: tuple[Probability, ...] | None = None
