"""The ``decoding`` section of a recipe, kept in a bundle's manifest as the defaults of whoever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lit_eff.errors import UserError, nearest
from lit_eff.runtime.decode import MODES, Mode
from lit_eff.runtime.sampling import SamplingParams


@dataclass(frozen=True)
class DecodingConfig:
    """How to decode when a request does not say.

    Attributes:
        mode: ``autoregressive``, ``certified`` (early exit under a certificate) or ``lossless``
            (self-speculation).
        draft_exit: the exit that drafts in lossless mode, as a count of layers; ``auto`` takes the early exit
            nearest to a quarter of the depth (LayerSkip's best on Llama2-7B: 8 of 32 layers).
        draft_length: tokens drafted a round; 0 is plain autoregression.
        max_tokens: tokens to emit at most.
        temperature, top_k, top_p, min_p, seed: as in :class:`SamplingParams`.
        stop_tokens: tokens, as text, that end the output; ``None``: every special token of the tokenizer that
            has one of the usual names of an end of text.

    Raises:
        UserError: naming the setting that is out of range.
    """

    mode: Mode = "autoregressive"
    draft_exit: int | Literal["auto"] = "auto"
    draft_length: int = 4
    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop_tokens: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"unknown decoding.mode {self.mode!r}{nearest(self.mode, MODES)}")
        if self.draft_length < 0:
            raise UserError(f"decoding.draft_length is {self.draft_length}; expected at least 0")
        if self.max_tokens < 1:
            raise UserError(f"decoding.max_tokens is {self.max_tokens}; expected at least 1")
        try:
            self.sampling  # noqa: B018  (its own checks)
        except UserError as error:
            raise UserError(f"decoding.{error}") from None

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p, seed=self.seed
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DecodingConfig:
        """From plain JSON or YAML types; raises UserError for a key this version does not know."""
        for key in values:
            if key not in cls.__dataclass_fields__:
                raise UserError(f"unknown decoding setting {key!r}{nearest(key, cls.__dataclass_fields__)}")
        stop_tokens = values.get("stop_tokens")
        return cls(**{**values, "stop_tokens": None if stop_tokens is None else tuple(stop_tokens)})


def draft_exit_index(draft_exit: int | Literal["auto"], exit_layers: tuple[int, ...]) -> int:
    """The exit index of :attr:`DecodingConfig.draft_exit` in a model with these exits.

    Raises:
        UserError: when no early exit stands after that many layers.
    """
    early = exit_layers[:-1]
    if not early:
        raise UserError("drafting needs an early exit, and this model has none")
    if draft_exit == "auto":
        return min(range(len(early)), key=lambda e: abs(early[e] - exit_layers[-1] / 4))
    if draft_exit not in early:
        raise UserError(f"no early exit after layer {draft_exit}; this model has them after {list(early)}")
    return early.index(draft_exit)
