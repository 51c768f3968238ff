"""The certificate ``exits.json``: exit thresholds, the guarantee they carry, and what they were measured on.

A runtime takes its exit rule from here and refuses a certificate made for other weights or another tokenizer.
The file carries a digest of its own content, which catches hand edits and corruption (not forgery).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from lit_eff.errors import UserError
from lit_eff.files import atomic_path
from lit_eff.runtime.confidence import Measure
from lit_eff.runtime.evidence import (
    Candidate,
    Certifies,
    Learning,
    Level,
    Measured,
    Risk,
    Sha256,
    Threshold,
    Tried,
)
from lit_eff.runtime.exit_rule import ExitRule, KVPolicy, Thresholds
from lit_eff.runtime.metrics import CALLABLE, METRICS
from lit_eff.runtime.schema import Strict

FORMAT_VERSION = 1
LEARNS = "split_fixed_sequence"  # the procedure whose order is learned
OF_LABELS = ("disagreement", "error")  # what is certified of a classifier


def tokenizer_sha256(tokenizer_json: str | None) -> str | None:
    """SHA-256 of a tokenizer's JSON, equal to that of a ``tokenizer.json`` holding it; ``None`` for none."""
    return None if tokenizer_json is None else hashlib.sha256(tokenizer_json.encode()).hexdigest()


class Certificate(Strict):
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
        also: further risks that the same thresholds keep, all at once; ``None``: there is one alone.
        procedure, p_value: names in ``lit_eff.calibration``.
        candidates: the grid or a path of vectors, most conservative first, in the order fixed before
            measuring.
        selected: index of the chosen candidate; ``None``: none could be certified, never exit.
        exit_layers: layers run at each exit, the last being the whole model.
        thresholds: one per early exit (all but the last); ``None`` (``never`` in the file) never exits there.
        measure, decay, horizon: confidence measure and threshold schedule, as in :class:`ExitRule`.
        tried: the confidence measures that ``measure`` was chosen among, each tested at :attr:`level`;
            ``None``: there was no choice.
        kv_policy: how keys and values of skipped layers come to be; ``None`` of a classifier.
        dtype: of the computation that was measured.
        batch_rule: ``per_sequence``: what a sequence does depends on its own tokens only.
        prompt_length: tokens; ``None``: prompts of any length, as they were logged, or whole sequences to
            classify.
        continuation_length: tokens; 1, the label, of a classifier.
        calibration, test: the same quantities on two disjoint splits; only the first was used to select.
        learning: where a learned order of the candidates comes from; ``None``: it was there before any data.
        train_sha256: hash of the training split; ``None``: not known to be disjoint from the others.
        weights_sha256, tokenizer_sha256: of the model this was measured on.
    """

    format_version: Literal[1] = 1
    certifies: Certifies = "textual_consistency"
    metric: str = "token_disagreement"
    delta: Level
    also: tuple[Risk, ...] | None = None
    epsilon: Level
    procedure: str
    p_value: str
    candidates: tuple[Candidate, ...]
    selected: Annotated[int, Field(ge=0)] | None
    exit_layers: tuple[int, ...]
    thresholds: tuple[Threshold, ...]
    measure: Measure
    tried: tuple[Tried, ...] | None = None
    decay: float | None
    horizon: int
    kv_policy: KVPolicy | None
    dtype: str
    batch_rule: Literal["per_sequence"] = "per_sequence"
    prompt_length: int | None
    continuation_length: int
    calibration: Measured
    test: Measured
    learning: Learning | None = None
    train_sha256: Sha256 | None
    weights_sha256: Sha256
    tokenizer_sha256: Sha256 | None

    @model_validator(mode="after")
    def _holds_together(self) -> Certificate:
        early_exits = len(self.exit_layers) - 1
        if len(self.thresholds) != early_exits:
            raise ValueError(f"thresholds has {len(self.thresholds)} entries for {early_exits} early exits")
        for index, candidate in enumerate(self.candidates):
            if len(candidate.vector(early_exits)) != early_exits:
                raise ValueError(f"candidate {index} has thresholds for other than {early_exits} early exits")
        if self.selected is None:
            expected: Thresholds = (None,) * early_exits
            if any(candidate.certified for candidate in self.candidates):
                raise ValueError("selected is null although a candidate is certified")
        else:
            if self.selected >= len(self.candidates) or not self.candidates[self.selected].certified:
                raise ValueError(f"selected is {self.selected}, which is not a certified candidate")
            expected = self.candidates[self.selected].vector(early_exits)
        if self.thresholds != expected:
            raise ValueError("thresholds differ from those of the selected candidate")
        if self.tried is not None and self.measure not in [one.measure for one in self.tried]:
            raise ValueError(f"measure is {self.measure!r}, which is not among those tried")
        if (self.procedure == LEARNS) != (self.learning is not None):
            raise ValueError(f"procedure {self.procedure} and learning contradict each other")
        for risk in self.risks:
            self._check_risk(risk)
        measured = [each.also_risks for each in self.candidates]
        for also_risks in (*measured, self.calibration.also_risks, self.test.also_risks):
            if len(also_risks or ()) != len(self.risks) - 1:
                raise ValueError(f"also_risks is {also_risks} for {len(self.risks) - 1} further risks")
        splits = [self.train_sha256, self.calibration.split_sha256, self.test.split_sha256]
        if self.learning is not None:
            splits.append(self.learning.split_sha256)
        if len(set(splits)) < len(splits):
            raise ValueError(
                "the train, learning, calibration and test splits must be disjoint, and two have the same "
                "hash"
            )
        return self

    def _check_risk(self, risk: Risk) -> None:
        if risk.certifies in OF_LABELS or self.classifies:
            whole = (risk.metric, self.kv_policy, self.prompt_length, self.continuation_length)
            if whole != ("zero_one", None, None, 1) or risk.certifies not in OF_LABELS:
                raise ValueError(f"{risk.certifies} is of a classifier, and other fields are of a text")
        elif risk.metric not in METRICS and not CALLABLE.match(risk.metric):
            raise ValueError(f"metric is {risk.metric!r}, neither a known one nor package.module:function")
        elif self.kv_policy is None:
            raise ValueError(f"kv_policy is null for {risk.certifies}")
        elif risk.certifies == "risk_consistency" and self.prompt_length is None:
            raise ValueError("prompt_length is null for risk_consistency, whose references follow prompts")

    @property
    def risks(self) -> tuple[Risk, ...]:
        """All that is certified: ``certifies`` by ``metric`` within ``delta``, then ``also``."""
        return (
            Risk(certifies=self.certifies, metric=self.metric, delta=self.delta),
            *(self.also or ()),
        )

    @property
    def classifies(self) -> bool:
        """Whether this is about a classifier's labels rather than a language model's text."""
        return self.certifies in OF_LABELS

    @property
    def level(self) -> float:
        """What each measure's test may err by: epsilon, shared among the measures tried (Bonferroni)."""
        return self.epsilon / len(self.tried or (self.measure,))

    @property
    def vectors(self) -> bool:
        """Whether the candidates are vectors of thresholds rather than shared ones."""
        return any(candidate.thresholds is not None for candidate in self.candidates)

    def exit_rule(self) -> ExitRule:
        """The rule a runtime decodes with; one that never exits where nothing could be certified."""
        return ExitRule(
            measure=self.measure,
            thresholds=self.thresholds,
            decay=self.decay,
            horizon=self.horizon,
            kv_policy=self.kv_policy or "deferred",
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
