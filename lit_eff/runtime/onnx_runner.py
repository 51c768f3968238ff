"""The ONNX Runtime engine: a bundle's segments as a
:class:`~lit_eff.runtime.segments.SegmentRunner`, without torch.

**Row invariance.** What a token yields does not depend, in any bit, on how many tokens share its call, so
greedy speculation equals greedy autoregression exactly. Four things make it so, and tests hold them bitwise:

- calls are padded to a multiple of ``ROW_TILE`` rows, so no matrix product takes MLAS's one-row path, which
  adds in another order (from two rows on, MLAS walks K in blocks that depend on the weight's shape alone);
- ONNX Runtime's GroupQueryAttention takes a row's softmax over exactly the slots it may see, and its product
  with V walks the slots in blocks from slot 0 on; slots after the call's last row are never read;
- calls are cut to at most ``MAX_ROWS`` rows, so that no row count beyond the tested ones ever runs;
- a call with a result that is not finite runs again row by row: attention gives masked slots the weight 0,
  and 0 * inf would spoil the rows before the one that overflowed.

**The cache** is one static buffer per segment, bound as both past and present: attention writes the new keys
and values in place and nothing is copied. It grows by whole chunks.

Shapes: B batch (1 here), T tokens of one call, N buffers (k and v of each layer), S slots, K key/value heads,
D head dim, C model dim, V vocabulary.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lit_eff.errors import UserError
from lit_eff.runtime.manifest import OnnxGraphs

ROW_TILE = 2
MAX_ROWS = 64
CACHE_CHUNK = 128

Hidden = NDArray[np.float32]


class OnnxRunner:
    """Runs a bundle's segments. States are independent; one state is for one thread at a time.

    Attributes:
        exit_layers: layers run at each exit, shallow to deep.
        vocab_size: V.
        context: slots a state holds at most.
    """

    def __init__(self, folder: Path, graphs: OnnxGraphs, *, context: int, threads: int | None = None) -> None:
        """Loads every graph once. ``threads`` as in :meth:`Bundle.runner`."""
        if threads is not None and threads < 1:
            raise UserError(f"threads is {threads}; expected at least 1")
        threads = threads or _cores()
        sessions = {name: _session(folder / name, threads) for name in graphs.graph_files}
        self.exit_layers = tuple(segment.stop for segment in graphs.segments)
        self.context = context
        self._embed = sessions[graphs.embed]
        self._embed_inputs = {item.name for item in self._embed.get_inputs()}
        self._segments = [
            (sessions[segment.file], sessions[segment.propagate] if segment.propagate else None)
            for segment in graphs.segments
        ]
        self._heads = [[sessions[name] for name in names] for names in graphs.heads]
        self._classifier = [sessions[graphs.classifier]] if graphs.classifier else []
        self.vocab_size = int(self._heads[-1][-1].get_outputs()[0].shape[-1])

    def new_state(self) -> list[SegmentCache]:
        """An empty cache of one sequence: one part per segment."""
        return [SegmentCache(*sessions) for sessions in self._segments]

    def embed(self, tokens_T: NDArray[np.int64], start: int) -> Hidden:
        """Hidden states ``(T, C)`` of tokens at positions ``start .. start + T - 1``."""
        self._check_room(start, len(tokens_T))
        feeds = {"tokens": np.asarray(tokens_T, np.int64)[None]}
        if "positions" in self._embed_inputs:
            feeds["positions"] = np.arange(start, start + len(tokens_T))[None]
        hidden_TC: Hidden = self._embed.run(None, feeds)[0][0]
        return hidden_TC

    def run_segment(self, state: list[SegmentCache], e: int, hidden_TC: Hidden, start: int) -> Hidden:
        """Segment ``e`` over tokens at slots ``start ..``: float32 ``(T, C)``.

        Writes their keys and values over what stood there.

        Raises:
            UserError: beyond the context.
        """
        self._check_room(start, len(hidden_TC))
        outputs_TC = np.empty(hidden_TC.shape, np.float32)
        for first in range(0, len(hidden_TC), MAX_ROWS):
            rows = slice(first, first + MAX_ROWS)
            state[e].run(hidden_TC[rows], start + first, outputs_TC[rows])
        return outputs_TC

    def propagate(self, state: list[SegmentCache], e: int, hidden_TC: Hidden, start: int) -> None:
        """Keys and values of segment ``e``'s layers at slots ``start ..``, all of ``hidden_TC``.

        Raises:
            UserError: the bundle has no graphs for it.
        """
        self._check_room(start, len(hidden_TC))
        for first in range(0, len(hidden_TC), MAX_ROWS):
            state[e].propagate(hidden_TC[first : first + MAX_ROWS], start + first)

    def head(self, e: int, hidden_TC: Hidden) -> NDArray[np.float32]:
        """Logits ``(T, V)`` of exit ``e``."""
        return self._in_calls(self._heads[e], hidden_TC)

    def exit_score(self, hidden_TC: Hidden) -> NDArray[np.float32]:
        """The exit classifier's log-odds ``(T,)``.

        Raises:
            UserError: the bundle has none.
        """
        if not self._classifier:
            raise UserError(
                "this model has no exit classifier; train one with recipes/exit_classifier.yaml and export it"
            )
        return self._in_calls(self._classifier, hidden_TC)[:, 0]

    def _in_calls(self, graphs: list[ort.InferenceSession], hidden_TC: Hidden) -> NDArray[np.float32]:
        """Row-wise graphs one after the other, over at most ``MAX_ROWS`` rows at a time."""
        calls = [self._call(graphs, hidden_TC[i : i + MAX_ROWS]) for i in range(0, len(hidden_TC), MAX_ROWS)]
        return calls[0] if len(calls) == 1 else np.concatenate(calls)

    def _call(self, graphs: list[ort.InferenceSession], hidden_TC: Hidden) -> NDArray[np.float32]:
        values = np.zeros((1, _padded(len(hidden_TC)), hidden_TC.shape[1]), np.float32)
        values[0, : len(hidden_TC)] = hidden_TC
        for session in graphs:
            values = session.run(None, {"hidden": values})[0]
        return values[0, : len(hidden_TC)]

    def _check_room(self, start: int, rows: int) -> None:
        if start + rows > self.context:
            raise UserError(
                f"the sequence would hold {start + rows} tokens and the context ends at {self.context}"
            )


class SegmentCache:
    """Keys and values of one sequence in one segment, and the bound calls that read and write them."""

    def __init__(self, session: ort.InferenceSession, skipping: ort.InferenceSession | None = None) -> None:
        """``skipping`` writes keys and values alone, of tokens that left before this segment."""
        inputs = {item.name: item for item in session.get_inputs()}
        self._session, self._skipping = session, skipping
        self._model_dim = int(inputs["hidden"].shape[-1])
        self._pasts = [name for name in inputs if name.startswith("past_")]
        self._heads, self._head_dim = inputs[self._pasts[0]].shape[1], inputs[self._pasts[0]].shape[3]
        self._buffers_N1KSD = np.zeros((len(self._pasts), 1, self._heads, 0, self._head_dim), np.float32)
        # The two lengths GroupQueryAttention asks for; the graphs read them in place on every call.
        self._last_slot_B = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        self._calls: dict[tuple[ort.InferenceSession, int], _Call] = {}

    def run(self, hidden_TC: Hidden, start: int, output_TC: Hidden) -> None:
        """The segment over at most ``MAX_ROWS`` rows at slots ``start ..``."""
        rows = len(hidden_TC)
        output_TC[...] = self._call(self._session, hidden_TC, start).output[0, :rows]
        if rows > 1 and not np.isfinite(output_TC).all():
            for row in range(rows):
                self.run(hidden_TC[row : row + 1], start + row, output_TC[row : row + 1])

    def propagate(self, hidden_TC: Hidden, start: int) -> None:
        """At most ``MAX_ROWS`` rows at slots ``start ..``, which skip the segment."""
        if self._skipping is None:
            raise UserError(
                "this bundle cannot propagate hidden states: it was exported without a certificate of that "
                "KV policy; calibrate with calibration.kv_policy=propagate and export again"
            )
        self._call(self._skipping, hidden_TC, start)

    def _call(self, session: ort.InferenceSession, hidden_TC: Hidden, start: int) -> _Call:
        rows, padded = len(hidden_TC), _padded(len(hidden_TC))
        self._reserve(start + padded)
        call = self._calls.get((session, padded)) or self._bind(session, padded)
        call.hidden[0, :rows] = hidden_TC
        call.hidden[0, rows:] = 0.0
        self._total[...] = start + padded
        self._last_slot_B[0] = start + padded - 1
        session.run_with_iobinding(call.binding)
        return call

    def _reserve(self, slots: int) -> None:
        """Grow to hold ``slots``. Row bits do not depend on the capacity."""
        capacity = self._buffers_N1KSD.shape[3]
        if slots <= capacity:
            return
        grown = -(-slots // CACHE_CHUNK) * CACHE_CHUNK
        buffers = np.zeros((len(self._pasts), 1, self._heads, grown, self._head_dim), np.float32)
        buffers[:, :, :, :capacity] = self._buffers_N1KSD
        self._buffers_N1KSD = buffers
        self._calls.clear()  # they are bound to the old buffers

    def _bind(self, session: ort.InferenceSession, padded: int) -> _Call:
        hidden_1TC = np.zeros((1, padded, self._model_dim), np.float32)
        output_1TC = np.zeros_like(hidden_1TC)
        binding = session.io_binding()
        values = {"hidden": hidden_1TC, "last_slot": self._last_slot_B, "total": self._total}
        for name, array in values.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        binding.bind_ortvalue_output("output", ort.OrtValue.ortvalue_from_numpy(output_1TC))
        for name, buffer in zip(self._pasts, self._buffers_N1KSD, strict=True):
            cache = ort.OrtValue.ortvalue_from_numpy(buffer)
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(name.replace("past_", "present_"), cache)
        call = self._calls[session, padded] = _Call(binding, hidden_1TC, output_1TC)
        return call


class _Call(NamedTuple):
    """A call of one padded row count, bound to its buffers."""

    binding: ort.IOBinding
    hidden: Hidden  # (1, T, C)
    output: Hidden  # (1, T, C)


def _padded(rows: int) -> int:
    return -(-rows // ROW_TILE) * ROW_TILE


def _cores() -> int:
    """Cores this process may run on, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Every graph has its own pool, whose threads by default spin after a call, on the very cores that the
    # next graph needs (two threads on two shared cores: 10 to 40 ms a token in place of 2).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
