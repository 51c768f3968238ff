"""Text in, text out: a bundle's engine and tokenizer behind one object, for command line and server."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from lit_eff.errors import UserError
from lit_eff.runtime.bundle import open_bundle
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.claim import sentence
from lit_eff.runtime.decode import FinishReason, GenerateRequest, Mode, Round, check_request, generate
from lit_eff.runtime.decoding_config import DecodingConfig, draft_exit_index
from lit_eff.runtime.detokenize import Detokenizer, StopStrings
from lit_eff.runtime.exit_rule import ExitRule, parse_thresholds
from lit_eff.runtime.sampling import SamplingParams
from lit_eff.runtime.segments import SegmentRunner

# Usual names of the token that ends a text or a turn, looked for among the tokenizer's special tokens.
END_OF_TEXT = (
    *("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"),
    *("<|eot_id|>", "<|im_end|>", "<end_of_turn>"),
)


@dataclass(frozen=True)
class TextRequest:
    """What to write.

    Attributes:
        prompt: text, or tokens taken as they are.
        max_tokens: tokens to emit at most; the context may end the text earlier.
        stop: the text ends before the first of these.
        draft_exit: layers of the exit that drafts, ``auto``, or ``None`` for the bundle's own.
        draft_length: ``None`` for the bundle's own.
    """

    prompt: str | tuple[int, ...]
    max_tokens: int = 128
    mode: Mode = "autoregressive"
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    draft_exit: int | Literal["auto"] | None = None
    draft_length: int | None = None


@dataclass(frozen=True)
class PreparedRequest:
    """A request that was checked and tokenised."""

    tokens: GenerateRequest
    stop: tuple[str, ...]


@dataclass(frozen=True)
class TextChunk:
    """What one round added.

    Attributes:
        text: new text, possibly empty: unfinished characters and possible stop strings are held back.
        completion_tokens: tokens of the text so far, the one that ended it included.
        round: how the tokens came about. It may hold tokens after the one that completed a stop string.
        finish_reason: on the last chunk only.
    """

    text: str
    completion_tokens: int
    round: Round
    finish_reason: FinishReason | None


class TextEngine:
    """Generates text. Holds nothing of a request: several may be under way, each with its own state.

    Args:
        runner: the segments.
        tokenizer: of the same model.
        name: shown to clients.
        decoding: what a request leaves open.
        certificate: of this very model (checked by the bundle).
        uncertified: an exit rule set by hand, used in place of the certificate's.

    Attributes:
        stop_tokens: tokens that end every text.
        alarm: whether the certificate's guarantee was found not to hold on the traffic.
        exits_off: whether certified mode runs every layer, since then.
    """

    def __init__(
        self,
        runner: SegmentRunner,
        tokenizer: Tokenizer,
        *,
        name: str = "lit_eff",
        decoding: DecodingConfig | None = None,
        certificate: Certificate | None = None,
        uncertified: ExitRule | None = None,
    ) -> None:
        self.runner = runner
        self.tokenizer = tokenizer
        self.name = name
        self.decoding = decoding or DecodingConfig()
        self.certificate = certificate
        self.uncertified = uncertified
        self.stop_tokens = end_tokens(tokenizer, self.decoding.stop_tokens)
        self.alarm = False
        self.exits_off = False

    @classmethod
    def open(
        cls, folder: str | Path, *, threads: int | None = None, uncertified: str | None = None
    ) -> TextEngine:
        """Open a bundle.

        Args:
            threads: of the engine; ``None`` is one per core.
            uncertified: exit thresholds set by hand, as :func:`parse_thresholds` reads them, for certified
                mode without (or in place of) a certificate.

        Raises:
            UserError: for a bundle that is damaged, holds no tokenizer or no ONNX segments, or whose
                certificate was made for another model or for a classifier.
        """
        bundle = open_bundle(folder)
        if bundle.tokenizer_json is None:
            raise UserError(f"bundle {folder} holds no tokenizer, so it cannot read or write text")
        certificate = bundle.certificate
        if certificate is not None:
            certificate.check_writes()
        exit_layers = bundle.manifest.exit_layers
        rule = None
        if uncertified is not None:
            rule = ExitRule(thresholds=parse_thresholds(uncertified, early_exits=len(exit_layers) - 1))
        return cls(
            bundle.runner(threads=threads),
            Tokenizer.from_str(bundle.tokenizer_json),
            name=Path(folder).resolve().name,
            decoding=DecodingConfig.from_dict(bundle.manifest.decoding),
            certificate=certificate,
            uncertified=rule,
        )

    @property
    def exit_rule(self) -> ExitRule:
        """The rule of certified mode.

        Raises:
            UserError: when there is neither a certificate nor a rule set by hand.
        """
        if self.uncertified is not None:
            return self.uncertified
        if self.certificate is None:
            raise UserError(
                "mode certified needs a certificate and this bundle has none; run `lit-eff calibrate` and "
                "export again, or set thresholds by hand, without any guarantee, with --uncertified"
            )
        if self.exits_off:
            return _never_exit(self.certificate)
        return self.certificate.exit_rule()

    def prepare(self, request: TextRequest) -> PreparedRequest:
        """Tokenise and check a request; nothing is computed.

        Raises:
            UserError: naming what cannot be served.
        """
        prompt = request.prompt
        if isinstance(prompt, str):
            prompt = tuple(self.tokenizer.encode(prompt).ids)
        draft_exit = 0
        if request.mode == "lossless":
            wanted = self.decoding.draft_exit if request.draft_exit is None else request.draft_exit
            draft_exit = draft_exit_index(wanted, self.runner.exit_layers)
        draft_length = self.decoding.draft_length if request.draft_length is None else request.draft_length
        tokens = GenerateRequest(
            prompt_tokens=prompt,
            max_tokens=request.max_tokens,
            mode=request.mode,
            sampling=request.sampling,
            stop_tokens=self.stop_tokens,
            draft_exit=draft_exit,
            draft_length=draft_length,
            exit_rule=self.exit_rule if request.mode == "certified" else None,
        )
        check_request(self.runner, tokens)
        StopStrings(request.stop)
        return PreparedRequest(tokens, request.stop)

    def stream(self, prepared: PreparedRequest) -> Generator[TextChunk, None, None]:
        """Generate, one chunk a round. Closing the iterator ends the work.

        The pieces join to the decoded output up to the first stop string.
        """
        detokenizer = Detokenizer(self.tokenizer, prepared.tokens.prompt_tokens)
        stops = StopStrings(prepared.stop)
        completion_tokens = 0
        with closing(generate(self.runner, prepared.tokens)) as rounds:
            for one in rounds:
                text, stopped = "", False
                for token in one.tokens:
                    completion_tokens += 1
                    piece, stopped = stops.push(detokenizer.push(token))
                    text += piece
                    if stopped:
                        break
                finish: FinishReason | None = "stop" if stopped else one.finish_reason
                if finish is not None and not stopped:
                    piece, stopped = stops.push(detokenizer.flush())
                    text += piece if stopped else piece + stops.flush()
                    finish = "stop" if stopped else finish
                yield TextChunk(text, completion_tokens, one, finish)
                if finish is not None:
                    return

    def promise(self, prepared: PreparedRequest) -> str:
        """What is known about this request's output against the full model's, in one sentence."""
        request = prepared.tokens
        if request.mode == "autoregressive":
            return "The full model's output."
        if request.mode == "lossless":
            if request.sampling.greedy:
                return "Identical to the full model's greedy output."
            return "Distributed as the full model's output."
        if self.uncertified is not None:
            return "Uncertified: the exit thresholds were set by hand and nothing is known about the output."
        assert self.certificate is not None
        if self.exits_off and request.exit_rule == _never_exit(self.certificate):
            return "The full model's output: exits are off since the monitor's alarm."
        if self.alarm:
            return (
                "The monitor's alarm was raised: the certificate's guarantee does not hold on this traffic."
            )
        if not request.sampling.greedy:
            return "The certificate covers greedy decoding; nothing is known about sampled output."
        return sentence(self.certificate)


def _never_exit(certificate: Certificate) -> ExitRule:
    return replace(certificate.exit_rule(), thresholds=(None,) * len(certificate.thresholds))


def end_tokens(tokenizer: Tokenizer, names: tuple[str, ...] | None) -> frozenset[int]:
    """Ids of the tokens that end a text: those named, or the special tokens with a usual name.

    Raises:
        UserError: for a name the tokenizer does not have.
    """
    if names is None:
        added = tokenizer.get_added_tokens_decoder()
        return frozenset(id for id, token in added.items() if token.special and token.content in END_OF_TEXT)
    ids = set()
    for name in names:
        token_id = tokenizer.token_to_id(name)
        if token_id is None:
            raise UserError(f"decoding.stop_tokens names {name!r}, which is no token of this tokenizer")
        ids.add(token_id)
    return frozenset(ids)
