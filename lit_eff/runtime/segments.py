"""A transformer cut at its exits, and one sequence that runs each piece no earlier than it must.

Between one exit and the next lies a *segment*: segment ``e`` is the layers from exit ``e - 1`` to exit ``e``.
A token that stops at a shallow exit leaves its hidden state waiting at that boundary. The next token that
goes deeper runs the segment over everything waiting there and itself in one call, so every key and value in
the cache is the one the full model would have computed (the *deferred* policy: exact, and never more work
than the full model). Early exit and self-speculation are two schedules over the same queues.

Shapes: T tokens of one call, C model dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

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


class DeferredSequence:
    """The tokens of one sequence, how far each segment has got, and the hidden states waiting in between.

    Attributes:
        tokens: prompt and output, the newest last. Append to it; shorten it with :meth:`truncate` only.
        exit_layers: the runner's.
        layer_launches: layers called so far.
        layer_tokens: the sum over those calls of the tokens in them: layers x tokens computed.
    """

    def __init__(self, runner: SegmentRunner, prompt_tokens: Iterable[int]) -> None:
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

    def run(self, e: int) -> Hidden:
        """Segment ``e`` over all that waits for it; their hidden states at exit ``e``, oldest first.

        Running ``0 .. e`` in order brings every token to exit ``e``, so the last row is the newest token's.
        """
        start = self._done[e]
        if e == 0:
            inputs_TC = self._runner.embed(np.asarray(self.tokens[start:], np.int64), start)
        else:
            waiting = self._waiting[e]
            inputs_TC = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
            waiting.clear()
        hidden_TC = self._runner.run_segment(self._state, e, inputs_TC, start)
        self._done[e] += len(inputs_TC)
        self.layer_launches += self._segment_layers[e]
        self.layer_tokens += self._segment_layers[e] * len(inputs_TC)
        if e + 1 < len(self._waiting):
            self._waiting[e + 1].append(hidden_TC)
        return hidden_TC

    def head(self, e: int, hidden_TC: Hidden) -> NDArray[np.float32]:
        """Logits of exit ``e``."""
        return self._runner.head(e, hidden_TC)

    def truncate(self, length: int) -> None:
        """Forget the tokens from ``length`` on: rejected drafts. Their cache slots will be overwritten."""
        del self.tokens[length:]
        for e, done in enumerate(self._done):
            if self._waiting[e]:
                rows_TC = np.concatenate(self._waiting[e])[: max(0, length - done)]
                self._waiting[e] = [rows_TC] if len(rows_TC) else []
            self._done[e] = min(done, length)
