"""A causal language model as ONNX graphs: embeddings, the segments between its exits, and the exits' heads.

Shapes: B batch, T tokens of a row, N tokens of one call, C model dim, V vocabulary.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from lit_eff.errors import UserError
from lit_eff.export.onnx_graph import Graph, WeightFile
from lit_eff.export.onnx_layers import (
    CacheInputs,
    HeadLayout,
    array,
    block,
    dense,
    linear,
    mlp,
    norm,
    propagate,
)
from lit_eff.models.block import Block
from lit_eff.models.config import ModelConfig
from lit_eff.models.heads import SCORE_EPS, Head
from lit_eff.models.transformer import Transformer
from lit_eff.runtime.manifest import OnnxGraphs, Segment
from lit_eff.runtime.onnx_runner import MAX_ROWS

WEIGHTS = "weights.bin"


def check_supported(config: ModelConfig) -> None:
    """Raises UserError naming what the ONNX segments cannot hold."""
    unsupported = {
        "model.labels (a classifier)": config.labels > 0,
        "model.causal false": not config.causal,
        "model.token_types": config.token_types > 0,
    }
    for what, present in unsupported.items():
        if present:
            raise UserError(f"{what}: the ONNX format holds causal language models; use --format torch or hf")
    HeadLayout.of(config)


def write_graphs(model: Transformer, folder: Path, *, propagate: bool = False) -> OnnxGraphs:
    """Write the graphs and the one weight file they share into an existing folder.

    Args:
        propagate: also those that the KV policy of this name needs.

    Returns:
        What was written; no logit errors are measured yet.

    Raises:
        UserError: for a model the format cannot hold.
    """
    check_supported(model.config)
    writer = _Writer(model, folder)
    return OnnxGraphs(
        embed=writer.embed(),
        segments=writer.segments(propagate),
        heads=writer.heads(),
        max_logit_error=(),
        classifier=writer.classifier(),
    )


class _Writer:
    """The graphs of one model, each written as soon as it is built."""

    def __init__(self, model: Transformer, folder: Path) -> None:
        self._model, self._config, self._folder = model, model.config, folder
        self._weights = WeightFile(folder / WEIGHTS)

    def embed(self) -> str:
        """``tokens`` (and ``positions`` where learned), int64 ``(B, T)``, to ``output`` ``(B, T, C)``."""
        graph, module = Graph(self._weights), self._model.embeddings
        tokens = graph.input("tokens", np.int64, ["B", "T"])
        hidden = graph.node("Gather", graph.weight(array(module.tokens.weight)), tokens)
        if module.positions is not None:
            positions = graph.input("positions", np.int64, ["B", "T"])
            learned = graph.node("Gather", graph.weight(array(module.positions.weight)), positions)
            hidden = graph.node("Add", hidden, learned)
        if module.norm is not None:
            hidden = norm(graph, hidden, module.norm)
        graph.output(hidden, "output", ["B", "T", self._config.model_dim])
        return self._save(graph, "embed.onnx")

    def segments(self, with_propagate: bool) -> tuple[Segment, ...]:
        """``hidden`` ``(B, T, C)``, the lengths and some layers' past, to ``output`` and their present."""
        segments = []
        for e, (start, stop) in enumerate(pairwise((0, *self._config.exit_layers))):
            graph, x, cache = self._cached_graph()
            for module in self._blocks(start, stop):
                x = block(graph, x, module, self._config, cache)
            name = self._save_rows(graph, x, self._config.model_dim, f"segment_{e}.onnx")
            skipped = self._propagate(e, start, stop) if with_propagate and e else None
            segments.append(Segment(start=start, stop=stop, file=name, propagate=skipped))
        return tuple(segments)

    def _propagate(self, e: int, start: int, stop: int) -> str:
        """Called like the segment, whose cache it shares: its ``output`` is ``hidden`` as it came."""
        graph, x, cache = self._cached_graph()
        for module in self._blocks(start, stop):
            propagate(graph, x, module, self._config, cache)
        return self._save_rows(graph, x, self._config.model_dim, f"propagate_{e}.onnx")

    def _cached_graph(self) -> tuple[Graph, str, CacheInputs]:
        graph, x = self._rows_graph()
        # A call's padding rows may stand past the end of the context.
        return graph, x, CacheInputs(graph, "hidden", self._config, slots=self._config.context + MAX_ROWS)

    def _blocks(self, start: int, stop: int) -> list[Block]:
        return [module for module in self._model.blocks[start:stop] if isinstance(module, Block)]

    def heads(self) -> tuple[tuple[str, ...], ...]:
        """For each exit the graphs to run, from ``hidden`` ``(B, T, C)`` to logits ``(B, T, V)``.

        An output matrix that exits share is in one graph: where only the norms differ, they have graphs of
        their own before it.
        """
        exits, kind = len(self._config.exit_layers), self._config.exits.head
        if kind == "shared" or exits == 1:
            return ((self._head(exits - 1, "head.onnx"),),) * exits
        if kind == "linear":
            return tuple((self._head(e, f"head_{e}.onnx"),) for e in range(exits))
        graph, x = self._rows_graph()
        logits = self._logits(graph, x, exits - 1)
        output = self._save_rows(graph, logits, self._config.vocab_size, "head_output.onnx")
        names = []
        for e in range(exits):
            graph, x = self._rows_graph()
            normed = self._normed(graph, x, e)
            names.append(self._save_rows(graph, normed, self._config.model_dim, f"head_norm_{e}.onnx"))
        return tuple((name, output) for name in names)

    def classifier(self) -> str | None:
        """``Transformer.exit_score``: ``hidden`` ``(B, T, C)`` to scores ``(B, T, 1)``."""
        if (module := self._model.exit_classifier) is None:
            return None
        graph, x = self._rows_graph()
        unit = graph.weight(np.ones(self._config.model_dim, np.float32))
        normed = graph.node("RMSNormalization", x, unit, epsilon=SCORE_EPS)
        return self._save_rows(graph, dense(graph, normed, module), 1, "exit_classifier.onnx")

    def _head(self, e: int, name: str) -> str:
        graph, x = self._rows_graph()
        logits = self._logits(graph, self._normed(graph, x, e), e)
        return self._save_rows(graph, logits, self._config.vocab_size, name)

    def _normed(self, graph: Graph, x: str, e: int) -> str:
        """``Transformer.head_norm``: MLP block, norm, transform."""
        final, is_last = self._model.head, e == len(self._config.exit_layers) - 1
        head = final if is_last or self._config.exits.head == "shared" else self._model.exit_heads[e]
        assert isinstance(head, Head)
        if head.block is not None:
            x = graph.node("Add", x, mlp(graph, norm(graph, x, head.block.norm), head.block.mlp))
        x = norm(graph, x, head.norm)
        transform = head.transform if head.transform is not None else final.transform
        if transform is None:
            return x
        assert transform.norm is not None  # only a classifier's pooler has none
        return norm(graph, graph.node("Gelu", dense(graph, x, transform.dense)), transform.norm)

    def _logits(self, graph: Graph, x: str, e: int) -> str:
        """``Transformer.project``: output matrix, bias, softcap."""
        bias, cap = self._model.head_bias(e), self._config.logit_softcap
        weight = array(self._model.head_weight(e))
        logits = linear(graph, x, weight, None if bias is None else array(bias))
        if cap is None:
            return logits
        scale = graph.weight(np.array(cap, np.float32))
        return graph.node("Mul", graph.node("Tanh", graph.node("Div", logits, scale)), scale)

    def _rows_graph(self) -> tuple[Graph, str]:
        """A new graph with the input ``hidden`` ``(B, T, C)``, and that input as ``(N, C)``."""
        graph = Graph(self._weights)
        hidden = graph.input("hidden", np.float32, ["B", "T", self._config.model_dim])
        return graph, graph.node("Reshape", hidden, graph.integers([-1, self._config.model_dim]))

    def _save_rows(self, graph: Graph, rows: str, width: int, name: str) -> str:
        """Publish ``(N, width)`` as ``output`` ``(B, T, width)`` and write the graph."""
        batch_shape = graph.node("Shape", "hidden", start=0, end=2)
        shape = graph.node("Concat", batch_shape, graph.integers([width]), axis=0)
        graph.output(graph.node("Reshape", rows, shape), "output", ["B", "T", width])
        return self._save(graph, name)

    def _save(self, graph: Graph, name: str) -> str:
        graph.save(self._folder / name)
        return name
