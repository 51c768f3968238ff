"""Segment runners in plain NumPy whose cache makes mistakes visible: unwritten and stale slots are NaN.

Shapes: T tokens of one call, C model dim, V vocabulary, S slots, L layers.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lit_eff.errors import UserError
from lit_eff.runtime.text import TextEngine


class Recorder:
    """Counts the work: (segment, first slot, tokens) of every call."""

    def __init__(self) -> None:
        self.segment_calls: list[tuple[int, int, int]] = []
        self.head_calls: list[tuple[int, int]] = []
        self.propagate_calls: list[tuple[int, int, int]] = []

    def exit_score(self, hidden_TC: NDArray[Any]) -> NDArray[np.float32]:
        raise UserError("this model has no exit classifier")  # what the protocol says of such a model

    def propagate(self, state: Any, e: int, hidden_TC: NDArray[Any], start: int) -> None:
        raise UserError("this bundle cannot propagate hidden states")


class TinyTransformer(Recorder):
    """A random causal transformer of one head. Rows are computed one by one, so bits don't depend on T."""

    def __init__(
        self,
        exit_layers: tuple[int, ...] = (1, 2, 4),
        vocab_size: int = 7,
        context: int = 24,
        *,
        seed: int = 0,
        deep_scale: float = 0.6,
    ) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.exit_layers, self.vocab_size, self.context = exit_layers, vocab_size, context
        self.dim, layers = 12, exit_layers[-1]
        self.embedding_VC = rng.normal(size=(vocab_size, self.dim))
        self.position_SC = 0.7 * rng.normal(size=(context, self.dim))
        self.attention_L4CC = rng.normal(size=(layers, 4, self.dim, self.dim)) / np.sqrt(self.dim)
        self.mlp_LCC = rng.normal(size=(layers, self.dim, self.dim)) / np.sqrt(self.dim)
        # Layers beyond the first exit change less, so that early exits sometimes agree with the last.
        self.scale_L = np.where(np.arange(layers) < exit_layers[0], 1.0, deep_scale)
        self.unembedding_CV = rng.normal(size=(self.dim, vocab_size))
        self.score_C = 0.5 * rng.normal(size=self.dim)

    def new_state(self) -> NDArray[np.float64]:
        return np.full((self.exit_layers[-1], 2, self.context, self.dim), np.nan)

    def embed(self, tokens_T: NDArray[np.int64], start: int) -> NDArray[Any]:
        assert tokens_T.dtype == np.int64
        assert start + len(tokens_T) <= self.context, "a token beyond the context was run"
        return self.embedding_VC[tokens_T] + self.position_SC[start : start + len(tokens_T)]

    def run_segment(self, state: NDArray[Any], e: int, hidden_TC: NDArray[Any], start: int) -> NDArray[Any]:
        self.segment_calls.append((e, start, len(hidden_TC)))
        first = self.exit_layers[e - 1] if e else 0
        rows = []
        for layer in range(first, self.exit_layers[e]):
            state[layer, :, start:] = np.nan  # whatever a rollback left behind is gone
        for offset, hidden_C in enumerate(hidden_TC):
            slot = start + offset
            for layer in range(first, self.exit_layers[e]):
                q_CC, k_CC, v_CC, o_CC = self.attention_L4CC[layer]
                normed_C = hidden_C / np.sqrt(np.mean(hidden_C**2) + 1e-6)
                state[layer, 0, slot], state[layer, 1, slot] = normed_C @ k_CC, normed_C @ v_CC
                keys_SC, values_SC = state[layer, :, : slot + 1]
                assert not np.isnan(keys_SC).any(), (
                    f"layer {layer} read a slot below {slot} that holds no token"
                )
                scores_S = keys_SC @ (normed_C @ q_CC) / np.sqrt(self.dim)
                weights_S = np.exp(scores_S - scores_S.max())
                hidden_C = hidden_C + self.scale_L[layer] * ((weights_S / weights_S.sum()) @ values_SC @ o_CC)
                hidden_C = hidden_C + self.scale_L[layer] * np.tanh(hidden_C @ self.mlp_LCC[layer])
            rows.append(hidden_C)
        return np.stack(rows)

    def head(self, e: int, hidden_TC: NDArray[Any]) -> NDArray[np.float32]:
        self.head_calls.append((e, len(hidden_TC)))
        rows = [hidden_C / np.sqrt(np.mean(hidden_C**2)) @ self.unembedding_CV for hidden_C in hidden_TC]
        return np.stack(rows).astype(np.float32)

    def exit_score(self, hidden_TC: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray([hidden_C @ self.score_C for hidden_C in hidden_TC], np.float32)

    def propagate(self, state: NDArray[Any], e: int, hidden_TC: NDArray[Any], start: int) -> None:
        self.propagate_calls.append((e, start, len(hidden_TC)))
        for layer in range(self.exit_layers[e - 1], self.exit_layers[e]):
            _, k_CC, v_CC, _ = self.attention_L4CC[layer]
            for offset, hidden_C in enumerate(hidden_TC):
                normed_C = hidden_C / np.sqrt(np.mean(hidden_C**2) + 1e-6)
                state[layer, 0, start + offset] = normed_C @ k_CC
                state[layer, 1, start + offset] = normed_C @ v_CC

    def states(self, tokens: list[int]) -> list[NDArray[Any]]:
        """The newest token's embedding and its hidden states at every exit, from one fresh pass."""
        state, rows = self.new_state(), [self.embed(np.asarray(tokens, np.int64), 0)]
        for e in range(len(self.exit_layers)):
            rows.append(self.run_segment(state, e, rows[-1], 0))
        return [hidden_TC[-1] for hidden_TC in rows]

    def full_logits(self, tokens: list[int], e: int) -> NDArray[np.float32]:
        """Logits ``(T, V)`` of exit ``e`` from one pass over ``tokens`` in a fresh state: the reference."""
        state = self.new_state()
        hidden_TC = self.embed(np.asarray(tokens, np.int64), 0)
        for segment in range(e + 1):
            hidden_TC = self.run_segment(state, segment, hidden_TC, 0)
        return self.head(e, hidden_TC)


class PrefixModel(Recorder):
    """Logits looked up by exit and the whole prefix, so joint distributions can be enumerated exactly.

    Each segment keeps the tokens it has seen as its cache and reads the prefix back from there: a wrong,
    stale or missing slot changes (or breaks) the look-up. Much faster than a transformer: for many trials.
    """

    def __init__(
        self, exits: int = 3, vocab_size: int = 3, context: int = 5, *, seed: int = 0, spread: float = 1.2
    ) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.exit_layers = tuple(2 * e + 2 for e in range(exits))
        self.vocab_size, self.context = vocab_size, context
        size = (vocab_size + 1) ** context
        shared = rng.normal(size=(size, vocab_size))
        own = rng.normal(size=(exits, size, vocab_size))
        self.table_EPV = (spread * (shared + own)).astype(np.float32)
        self.weight_S = (vocab_size + 1.0) ** np.arange(context)

    def prefix_code(self, tokens: tuple[int, ...]) -> int:
        return int(sum((token + 1) * self.weight_S[slot] for slot, token in enumerate(tokens)))

    def logits(self, e: int, tokens: tuple[int, ...]) -> NDArray[np.float32]:
        return np.asarray(self.table_EPV[e, self.prefix_code(tokens)])

    def new_state(self) -> NDArray[np.float64]:
        return np.full((len(self.exit_layers), self.context), np.nan)

    def embed(self, tokens_T: NDArray[np.int64], start: int) -> NDArray[Any]:
        own_T = (tokens_T + 1) * self.weight_S[start : start + len(tokens_T)]
        return np.stack([own_T, np.zeros_like(own_T)], axis=1)

    def run_segment(self, state: NDArray[Any], e: int, hidden_TC: NDArray[Any], start: int) -> NDArray[Any]:
        self.segment_calls.append((e, start, len(hidden_TC)))
        stop = start + len(hidden_TC)
        state[e, start:stop] = hidden_TC[:, 0]
        state[e, stop:] = np.nan
        prefix_T = np.cumsum(state[e, :stop])[start:]
        assert not np.isnan(prefix_T).any(), f"segment {e} read a slot below {start} that holds no token"
        return np.stack([hidden_TC[:, 0], prefix_T], axis=1)

    def head(self, e: int, hidden_TC: NDArray[Any]) -> NDArray[np.float32]:
        self.head_calls.append((e, len(hidden_TC)))
        return np.asarray(self.table_EPV[e, hidden_TC[:, 1].astype(np.int64)])


def segment_sizes(exit_layers: tuple[int, ...]) -> list[int]:
    """Layers in each segment."""
    return [stop - start for start, stop in pairwise((0, *exit_layers))]


class ScriptRunner(Recorder):
    """Says what it is told: after slot ``s`` the full model's next token is ``script[s]``.

    The early exits agree but for every third slot, so drafts are both kept and rejected.
    """

    def __init__(self, script: list[int], vocab_size: int, exits: int = 3) -> None:
        super().__init__()
        self.exit_layers = tuple(range(1, exits + 1))
        self.vocab_size, self.context, self.script = vocab_size, len(script), script

    def new_state(self) -> None:
        return None

    def embed(self, tokens_T: NDArray[np.int64], start: int) -> NDArray[Any]:
        return np.arange(start, start + len(tokens_T))[:, None]

    def run_segment(self, state: None, e: int, hidden_TC: NDArray[Any], start: int) -> NDArray[Any]:
        self.segment_calls.append((e, start, len(hidden_TC)))
        return hidden_TC

    def head(self, e: int, hidden_TC: NDArray[Any]) -> NDArray[np.float32]:
        self.head_calls.append((e, len(hidden_TC)))
        logits_TV = np.zeros((len(hidden_TC), self.vocab_size), np.float32)
        for row, slot in enumerate(hidden_TC[:, 0]):
            wrong = e < len(self.exit_layers) - 1 and slot % 3 == 2
            logits_TV[row, (self.script[slot] + wrong) % self.vocab_size] = 8.0
        return logits_TV


SAMPLE_TEXT = "The naïve café owner said: “Das ist schön!” 日本語, 👩‍👩‍👧 and 🎉. The end of the text."


@cache
def byte_tokenizer(vocab_size: int = 300) -> Tokenizer:
    """A byte-level BPE like the one the toolkit trains: ``<|endoftext|>`` begins every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SAMPLE_TEXT] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    return tokenizer


def scripted_engine(continuation: str, *, prompt: str = "", **settings: Any) -> TextEngine:
    """An engine that continues ``prompt`` with ``continuation`` and then ends the text."""
    tokenizer = byte_tokenizer()
    before = tokenizer.encode(prompt).ids
    script = [0] * (len(before) - 1) + tokenizer.encode(continuation, add_special_tokens=False).ids + [0] * 8
    return TextEngine(ScriptRunner(script, tokenizer.get_vocab_size()), tokenizer, **settings)
