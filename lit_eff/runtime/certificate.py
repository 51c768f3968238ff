"""The certificate ``exits.json``: exit thresholds, the guarantee they carry, and what they were measured on.

A runtime takes its exit rule from here and refuses a certificate made for other weights or another tokenizer.
The file carries a digest of its own content, which catches hand edits and corruption (not forgery).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from lit_eff.errors import UserError
from lit_eff.files import atomic_path
from lit_eff.runtime.claim import sentence
from lit_eff.runtime.exit_rule import ExitRule, Measure
from lit_eff.runtime.metrics import CALLABLE, METRICS

FORMAT_VERSION = 1
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


def tokenizer_sha256(tokenizer_json: str | None) -> str | None:
    """SHA-256 of a tokenizer's JSON, equal to that of a ``tokenizer.json`` holding it; ``None`` for none."""
    return None if tokenizer_json is None else hashlib.sha256(tokenizer_json.encode()).hexdigest()


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # What older files lack stays out of the content where it is unknown: their digest stays the same.
    @model_serializer(mode="wrap")
    def _without_unknown(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        optional = {name for name, field in type(self).model_fields.items() if field.default is None}
        content: dict[str, Any] = handler(self)
        return {name: value for name, value in content.items() if value is not None or name not in optional}


class Candidate(_Strict):
    """One threshold of the grid as measured on the calibration split.

    Attributes:
        threshold: shared by all early exits.
        risk: mean over sequences of the loss.
        p_value: of the null hypothesis "the true risk exceeds delta".
        certified: whether the procedure rejected that hypothesis.
        layers_per_token: as in :class:`Measured`.
        risk_interval: lower and upper bound of the true risk; each holds with probability ``1 - epsilon``,
            for this candidate and by itself; ``None``: not recorded.
    """

    threshold: Probability
    risk: Probability
    p_value: Probability
    certified: bool
    layers_per_token: float
    risk_interval: tuple[Probability, Probability] | None = None


class Measured(_Strict):
    """What the selected thresholds did on one split.

    Attributes:
        split_sha256: hash of the whole split the prompts came from.
        sequences: prompts, each from its own document.
        risk: mean over sequences of the loss.
        layers_per_token: mean layers launched for a token, which is the layer it left at. The time of one
            sequence follows this number.
        computed_layers_per_token: mean layers in fact computed for a token by the end of the continuation:
            under the deferred KV policy a token's skipped layers run with the next token that goes deeper, in
            the same launch.
        exit_shares: share of tokens that left at each of ``exit_layers``; ``None``: not recorded.
    """

    split_sha256: Sha256
    sequences: Annotated[int, Field(ge=1)]
    risk: Probability
    layers_per_token: float
    computed_layers_per_token: float
    exit_shares: tuple[Probability, ...] | None = None


class Certificate(_Strict):
    """``P(risk <= delta) >= 1 - epsilon`` for the thresholds here, over the draw of calibration sequences.

    Attributes:
        certifies: what the loss of a sequence compares. Of a language model: ``textual_consistency``, the
            continuation with early exits and the full model's; ``risk_consistency``, how much further from
            the document's own tokens the first is than the second, at least 0. Of a classifier:
            ``disagreement``, 1 where the label is not the full model's; ``error``, 1 where it is wrong and
            the full model's right.
        metric: dissimilarity of two continuations, a name in :mod:`lit_eff.runtime.metrics` or a function
            ``package.module:function``; ``zero_one`` of two labels.
        delta, epsilon: the levels of the guarantee.
        procedure, p_value: names in ``lit_eff.calibration``.
        candidates: the grid, most conservative first, in the order fixed before measuring.
        selected: index of the chosen candidate; ``None``: none could be certified, never exit.
        exit_layers: layers run at each exit, the last being the whole model.
        thresholds: one per early exit (all but the last); ``None`` (``never`` in the file) never exits there.
        measure, decay, horizon: confidence measure and threshold schedule, as in :class:`ExitRule`.
        kv_policy: how keys and values of skipped layers come to be; ``None`` of a classifier.
        dtype: of the computation that was measured.
        batch_rule: ``per_sequence``: what a sequence does depends on its own tokens only.
        prompt_length: tokens; ``None``: prompts of any length, as they were logged, or whole sequences to
            classify.
        continuation_length: tokens; 1, the label, of a classifier.
        calibration, test: the same quantities on two disjoint splits; only the first was used to select.
        train_sha256: hash of the training split; ``None``: not known to be disjoint from the other two.
        weights_sha256, tokenizer_sha256: of the model this was measured on.
    """

    format_version: Literal[1] = 1
    certifies: Literal["textual_consistency", "risk_consistency", "disagreement", "error"] = (
        "textual_consistency"
    )
    metric: str = "token_disagreement"
    delta: Level
    epsilon: Level
    procedure: str
    p_value: str
    candidates: tuple[Candidate, ...]
    selected: Annotated[int, Field(ge=0)] | None
    exit_layers: tuple[int, ...]
    thresholds: tuple[Threshold, ...]
    measure: Measure
    decay: float | None
    horizon: int
    kv_policy: Literal["deferred"] | None
    dtype: str
    batch_rule: Literal["per_sequence"] = "per_sequence"
    prompt_length: int | None
    continuation_length: int
    calibration: Measured
    test: Measured
    train_sha256: Sha256 | None
    weights_sha256: Sha256
    tokenizer_sha256: Sha256 | None

    @model_validator(mode="after")
    def _holds_together(self) -> Certificate:
        early_exits = len(self.exit_layers) - 1
        if len(self.thresholds) != early_exits:
            raise ValueError(f"thresholds has {len(self.thresholds)} entries for {early_exits} early exits")
        if self.selected is None:
            shared = None
            if any(candidate.certified for candidate in self.candidates):
                raise ValueError("selected is null although a candidate is certified")
        else:
            if self.selected >= len(self.candidates) or not self.candidates[self.selected].certified:
                raise ValueError(f"selected is {self.selected}, which is not a certified candidate")
            shared = self.candidates[self.selected].threshold
        if set(self.thresholds) - {shared}:
            raise ValueError("thresholds differ from those of the selected candidate")
        if self.classifies:
            whole = (self.metric, self.kv_policy, self.prompt_length, self.continuation_length)
            if whole != ("zero_one", None, None, 1):
                raise ValueError(f"{self.certifies} is of a classifier, and other fields are of a text")
        elif self.metric not in METRICS and not CALLABLE.match(self.metric):
            raise ValueError(f"metric is {self.metric!r}, neither a known one nor package.module:function")
        elif self.kv_policy is None:
            raise ValueError(f"kv_policy is null for {self.certifies}")
        elif self.certifies == "risk_consistency" and self.prompt_length is None:
            raise ValueError("prompt_length is null for risk_consistency, whose references follow prompts")
        splits = [self.train_sha256, self.calibration.split_sha256, self.test.split_sha256]
        if len(set(splits)) < len(splits):
            raise ValueError(
                "the train, calibration and test splits must be disjoint, and two have the same hash"
            )
        return self

    @property
    def classifies(self) -> bool:
        """Whether this is about a classifier's labels rather than a language model's text."""
        return self.certifies in ("disagreement", "error")

    def exit_rule(self) -> ExitRule:
        """The rule a runtime decodes with; one that never exits where nothing could be certified."""
        return ExitRule(
            measure=self.measure, thresholds=self.thresholds, decay=self.decay, horizon=self.horizon
        )

    @property
    def sha256(self) -> str:
        """Digest of the content, which the file carries."""
        return _digest(self.model_dump(mode="json"))

    def check(self, *, weights_sha256: str, tokenizer_sha256: str | None) -> None:
        """Refuse a model this certificate was not made for.

        Raises:
            UserError: naming what differs.
        """
        pairs = (
            ("weights", self.weights_sha256, weights_sha256),
            ("tokenizer", self.tokenizer_sha256, tokenizer_sha256),
        )
        for name, certified, given in pairs:
            if certified != given:
                raise UserError(
                    f"the certificate was made for {name} {_short(certified)} and this model has "
                    f"{_short(given)}; run `lit-eff calibrate` on this model"
                )

    def check_writes(self) -> None:
        """Refuse a classifier's certificate where text is to be written.

        Raises:
            UserError: for one of ``disagreement`` or ``error``.
        """
        if self.classifies:
            raise UserError(
                f"the certificate is of a classifier ({self.certifies}), whose exits no engine runs yet; "
                "generate, serve, verify and calibrate --update take language models"
            )

    def sentence(self) -> str:
        """The guarantee in one plain sentence."""
        return sentence(self)

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        content = self.model_dump(mode="json")
        with atomic_path(path) as temporary:
            document = {**content, "content_sha256": _digest(content)}
            temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Read and check a file.

        Raises:
            UserError: naming the file and the field that is missing, unknown, wrong or was altered.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"no certificate at {path}; `lit-eff calibrate` writes one") from None
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read certificate {path}: {error}") from None
        if not isinstance(content, dict):
            raise UserError(f"certificate {path} holds {type(content).__name__}; expected an object")
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"certificate {path}: format_version is {version!r}; this lit_eff reads {FORMAT_VERSION}; "
                "upgrade lit_eff or calibrate again"
            )
        digest = content.pop("content_sha256", None)
        try:
            certificate = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "content"
            raise UserError(f"certificate {path}: {field}: {first['msg']}") from None
        if digest != _digest(content):
            raise UserError(f"certificate {path}: content_sha256 does not match: the file was altered")
        return certificate


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _short(sha256: str | None) -> str:
    return "none" if sha256 is None else f"sha256 {sha256[:12]}"
