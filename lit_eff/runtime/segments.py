"""A transformer cut at its exits, and one sequence that runs each piece no earlier than it must.

Between one exit and the next lies a *segment*: segment ``e`` is the layers from exit ``e - 1`` to exit ``e``.
A token that leaves at a shallow exit owes the deeper segments its keys and values. The *KV policy* says how
they come to be:

- ``deferred``: its hidden state waits at that border. The next token that goes deeper runs the segment over
  everything waiting there and itself in one call. Never more work than the full model's.
- ``recompute``: tokens that left since the last full pass are fed again from the embeddings, beside the
  newest token, until a pass goes all the way (Chen et al. 2024, EE-LLM, section 4.1). Nothing but tokens
  needs to be kept; more work.
- ``exact``: the deeper segments run at once, and the token is still the early exit's. Saves nothing: the
  oracle that the others are held against.
- ``propagate``: each layer skipped takes keys and values of the hidden state that the token left with
  (Schuster et al. 2022, CALM, section 3.4). The least work, and another text.

The first three give every slot the keys and values of the full model, hence the same text. Prompts run in
full but for their last token, which is the first to leave early; under ``deferred`` they wait like others.

Early exit and self-speculation are two schedules over the same queues.

Shapes: T tokens of one call, C model dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lit_eff.runtime.exit_rule import KVPolicy

Hidden = NDArray[Any]


class SegmentRunner(Protocol):
    """What decoding needs from an engine. Batch of one; hidden states are NumPy arrays ``(T, C)``.

    Attributes:
        exit_layers: layers run at each exit, shallow to deep; the last is the whole model.
        vocab_size: V.
        context: the most slots a state holds.
    """

    @property
    def exit_layers(self) -> tuple[int, ...]: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def context(self) -> int: ...

    def new_state(self) -> Any:
        """An empty KV cache of one sequence, independent of every other state."""
        ...

    def embed(self, tokens_T: NDArray[np.int64], start: int) -> Hidden:
        """Hidden states ``(T, C)`` of tokens at positions ``start .. start + T - 1``."""
        ...

    def run_segment(self, state: Any, e: int, hidden_TC: Hidden, start: int) -> Hidden:
        """Segment ``e`` over tokens at slots ``start ..``, writing their keys and values.

        Each token attends to the slots up to its own. What stands at slots ``>= start`` is overwritten and
        never read, so rolling back is starting lower.
        """
        ...

    def head(self, e: int, hidden_TC: Hidden) -> NDArray[np.float32]:
        """Logits ``(T, V)`` of exit ``e``."""
        ...

    def exit_score(self, hidden_TC: Hidden) -> NDArray[np.float32]:
        """The exit classifier's log-odds ``(T,)`` that hidden states at any exit may leave there.

        Raises:
            UserError: the model has no exit classifier.
        """
        ...

    def propagate(self, state: Any, e: int, hidden_TC: Hidden, start: int) -> None:
        """Keys and values of the layers of segment ``e >= 1`` at slots ``start ..``, all of ``hidden_TC``.

        Raises:
            UserError: where a bundle was exported without this.
        """
        ...


class SegmentedSequence:
    """The tokens of one sequence, how far each segment has got, and the hidden states waiting in between.

    Attributes:
        tokens: prompt and output, the newest last. Append to it; shorten it with :meth:`truncate` only.
        exit_layers: the runner's.
        entered_C: what the segment run last was given of the newest token: its embedding or its hidden state
            at the exit before.
        layer_launches: layers called so far.
        layer_tokens: the sum over those calls of the tokens in them: layers x tokens computed.
    """

    def __init__(
        self, runner: SegmentRunner, prompt_tokens: Iterable[int], policy: KVPolicy = "deferred"
    ) -> None:
        self.tokens = list(prompt_tokens)
        self.layer_launches = 0
        self.layer_tokens = 0
        self.exit_layers = runner.exit_layers
        self._runner = runner
        self._state = runner.new_state()
        layers = self.exit_layers
        self._segment_layers = [stop - start for start, stop in zip((0, *layers[:-1]), layers, strict=True)]
        self._done = [0] * len(layers)  # slots each segment has run
        # _waiting[e] holds the inputs of segment e for slots _done[e] .. _done[e - 1] - 1; those of segment 0
        # are the embeddings of tokens[_done[0]:], computed when it runs.
        self._waiting: list[list[Hidden]] = [[] for _ in layers]
        self._policy = policy
        self._prompt_first = policy in ("recompute", "propagate")
        self.entered_C: Hidden = np.empty(0)

    def run(self, e: int) -> Hidden:
        """Segment ``e`` over all that waits for it; their hidden states at exit ``e``, oldest first.

        Running ``0 .. e`` in order brings every token to exit ``e``, so the last row is the newest token's.
        """
        if self._prompt_first:
            self._prompt_first = False
            self._run_prompt()
        start = self._done[e]
        if e == 0:
            inputs_TC = self._runner.embed(np.asarray(self.tokens[start:], np.int64), start)
        else:
            waiting = self._waiting[e]
            inputs_TC = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
            waiting.clear()
        self.entered_C = inputs_TC[-1]
        hidden_TC = self._runner.run_segment(self._state, e, inputs_TC, start)
        self._done[e] += len(inputs_TC)
        self.layer_launches += self._segment_layers[e]
        self.layer_tokens += self._segment_layers[e] * len(inputs_TC)
        if e + 1 < len(self._waiting):
            self._waiting[e + 1].append(hidden_TC)
        return hidden_TC

    def _run_prompt(self) -> None:
        """All tokens but the newest through the whole model."""
        newest = self.tokens.pop()
        if self.tokens:
            for e in range(len(self.exit_layers)):
                self.run(e)
        self.tokens.append(newest)

    def leave(self, e: int) -> None:
        """Settle, by the policy, what the newest token owes the segments after ``e``, where it leaves."""
        deeper = range(e + 1, len(self.exit_layers))
        if self._policy == "exact":
            for segment in deeper:
                self.run(segment)
        elif self._policy == "propagate" and deeper:
            (hidden_1C,) = self._waiting[deeper[0]]
            self._waiting[deeper[0]] = []
            for segment in deeper:
                self._runner.propagate(self._state, segment, hidden_1C, self._done[segment])
                self._done[segment] += 1
        elif self._policy == "recompute":
            # Back to where the last full pass ended: segment 0 will embed all tokens since.
            self._done = [self._done[-1]] * len(self._done)
            self._waiting = [[] for _ in self._waiting]

    def head(self, e: int, hidden_TC: Hidden) -> NDArray[np.float32]:
        """Logits of exit ``e``."""
        return self._runner.head(e, hidden_TC)

    def exit_score(self, hidden_TC: Hidden) -> NDArray[np.float32]:
        """The exit classifier's score of hidden states."""
        return self._runner.exit_score(hidden_TC)

    def truncate(self, length: int) -> None:
        """Forget the tokens from ``length`` on: rejected drafts. Their cache slots will be overwritten."""
        del self.tokens[length:]
        for e, done in enumerate(self._done):
            if self._waiting[e]:
                rows_TC = np.concatenate(self._waiting[e])[: max(0, length - done)]
                self._waiting[e] = [rows_TC] if len(rows_TC) else []
            self._done[e] = min(done, length)
