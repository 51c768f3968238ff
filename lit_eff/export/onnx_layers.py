"""Transformer layers as ONNX nodes, read off the torch modules: norms, attention over a cache, MLPs.

Inside a graph the hidden state is ``(N, C)`` with N = B * T, so that projections are Gemm nodes with their
bias, and ONNX Runtime packs each weight once. Attention is ONNX Runtime's GroupQueryAttention: rotary
embedding, grouped heads, sliding window, softcap and the in-place cache in one node.

Shapes: B batch, T tokens of a row, N tokens of one call, S cache slots, H query heads, K key/value heads,
D head dim, C model dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lit_eff.errors import UserError
from lit_eff.export.onnx_graph import CONTRIB, Array, Graph
from lit_eff.models.block import Attention, Block
from lit_eff.models.config import ModelConfig
from lit_eff.models.layers import MLP, rotary_table

HEAD_MULTIPLE = 16  # what GroupQueryAttention's rotary embedding asks of the head and rotary dims
# Wider heads make MLAS cut the product of queries and keys differently for short and for long caches: a row's
# bits would depend on its neighbours.
MAX_HEAD_DIM = 128


def array(tensor: Tensor) -> Array:
    """A parameter in float32, the type all graphs compute in."""
    values: Array = tensor.detach().to("cpu", torch.float32).numpy()
    return values


@dataclass(frozen=True)
class HeadLayout:
    """A head's dimensions spread over a size that ONNX Runtime takes, the rest being zeros.

    Zero weights give zero queries and keys, which add nothing to a score. Rotary embedding pairs dimension
    i with i + rotary / 2, so the two halves of the rotated part are spread apart.

    Attributes:
        size, rotary: after padding; ``rotary`` is 0 without rotary embedding.
        places: where each original dimension goes.
    """

    size: int
    rotary: int
    places: tuple[int, ...]

    @classmethod
    def of(cls, config: ModelConfig) -> HeadLayout:
        """Raises UserError for heads too wide to be row-invariant."""
        original = config.rotary if config.positions == "rope" else 0
        half, rest = original // 2, config.head_size - original
        rotary = _round_up(original)
        size = _round_up(rotary + rest)
        if size > MAX_HEAD_DIM:
            raise UserError(
                f"head dim {config.head_size}: the ONNX format takes at most {MAX_HEAD_DIM}, beyond which "
                "ONNX Runtime's result for a token depends on its neighbours; use --format torch or hf"
            )
        places = [*range(half), *range(rotary // 2, rotary // 2 + half), *range(rotary, rotary + rest)]
        return cls(size, rotary, tuple(places))

    def spread(self, values: Array, axis: int = 0) -> Array:
        """``heads * D`` to ``heads * size`` along ``axis``, with zeros between."""
        values = np.moveaxis(values, axis, 0)
        heads = len(values) // len(self.places)
        padded = np.zeros((heads, self.size, *values.shape[1:]), np.float32)
        padded[:, list(self.places)] = values.reshape(heads, len(self.places), *values.shape[1:])
        return np.moveaxis(padded.reshape(heads * self.size, *values.shape[1:]), 0, axis)


def _round_up(size: int) -> int:
    return -(-size // HEAD_MULTIPLE) * HEAD_MULTIPLE


class CacheInputs:
    """What attention reads beside the hidden state: the ``(B, T)`` shape, the lengths, the rotary tables.

    The graph gains the inputs ``last_slot``, int32 ``(B,)``: slot of each row's last token, and ``total``,
    int32 scalar: slots in use after the call.

    Args:
        hidden: the graph's input ``(B, T, C)``.
        slots: the most slots a cache may have.
    """

    def __init__(self, graph: Graph, hidden: str, config: ModelConfig, slots: int) -> None:
        self.layout = HeadLayout.of(config)
        self.batch_shape = graph.node("Shape", hidden, start=0, end=2)
        self.last_slot = graph.input("last_slot", np.int32, ["B"])
        self.total = graph.input("total", np.int32, [])
        self.tables: tuple[str, ...] = ()
        if config.positions == "rope":
            padded_SR = np.zeros((2, slots, self.layout.rotary // 2), np.float32)
            tables = rotary_table(config, torch.arange(slots)[None], torch.float32)
            for padded, table in zip(padded_SR, tables, strict=True):
                padded[:, : config.rotary // 2] = array(table)[0, :, 0]
            self.tables = tuple(graph.weight(padded) for padded in padded_SR)


def linear(graph: Graph, x: str, weight: Array, bias: Array | None) -> str:
    """``x @ weight.T + bias``; weight ``(out, in)`` as torch keeps it."""
    biases = () if bias is None else (graph.weight(bias),)
    return graph.node("Gemm", x, graph.weight(weight), *biases, transB=1)


def dense(graph: Graph, x: str, module: nn.Linear) -> str:
    """A whole Linear module."""
    return linear(graph, x, array(module.weight), None if module.bias is None else array(module.bias))


def norm(graph: Graph, x: str, module: nn.Module) -> str:
    """RMSNorm, LayerNorm or nothing."""
    if isinstance(module, nn.Identity):
        return x
    if isinstance(module, nn.RMSNorm):
        return graph.node("RMSNormalization", x, graph.weight(array(module.weight)), epsilon=module.eps)
    assert isinstance(module, nn.LayerNorm)
    weights = graph.weight(array(module.weight)), graph.weight(array(module.bias))
    return graph.node("LayerNormalization", x, *weights, epsilon=module.eps)


def mlp(graph: Graph, x: str, module: MLP) -> str:
    """SwiGLU or GELU. Gate and up are one product here."""
    if module.kind != "swiglu":
        approximate = "tanh" if module.kind == "gelu_tanh" else "none"
        return dense(
            graph, graph.node("Gelu", dense(graph, x, module.up), approximate=approximate), module.down
        )
    weight = np.concatenate([array(module.gate.weight), array(module.up.weight)])
    has_bias = module.up.bias is not None
    bias = np.concatenate([array(module.gate.bias), array(module.up.bias)]) if has_bias else None
    gate, up = graph.split(linear(graph, x, weight, bias), [module.up.out_features] * 2)
    silu = graph.node("QuickGelu", gate, domain=CONTRIB, alpha=1.0)  # x * sigmoid(x)
    return dense(graph, graph.node("Mul", silu, up), module.down)


def attention(graph: Graph, x: str, module: Attention, config: ModelConfig, cache: CacheInputs) -> str:
    """Attention of one layer. Its cache is ``past_k_INDEX`` before, ``present_k_INDEX`` after."""
    layout, heads, kv_heads = cache.layout, module.heads, module.kv_heads
    bias = None if module.qkv.bias is None else layout.spread(array(module.qkv.bias))
    qkv = linear(graph, x, layout.spread(array(module.qkv.weight)), bias)
    if module.q_norm is None or module.k_norm is None:
        inputs = [_batched(graph, qkv, (heads + 2 * kv_heads) * layout.size, cache), "", ""]
    else:
        sizes = [count * layout.size for count in (heads, kv_heads, kv_heads)]
        q, k, v = graph.split(qkv, sizes)
        q, k = _head_norm(graph, q, module.q_norm, layout), _head_norm(graph, k, module.k_norm, layout)
        inputs = [_batched(graph, part, size, cache) for part, size in zip((q, k, v), sizes, strict=True)]

    attended = _attend(graph, inputs, module, config, cache, heads)
    rows = graph.node("Reshape", attended, graph.integers([-1, heads * layout.size]))
    bias = None if module.output.bias is None else array(module.output.bias)
    return linear(graph, rows, layout.spread(array(module.output.weight), axis=1), bias)


def propagate(graph: Graph, x: str, module: Block, config: ModelConfig, cache: CacheInputs) -> None:
    """Keys and values of one layer of tokens that left before it, from the hidden state that they left with.

    The operator that writes them attends too, here with queries of zero, and what comes out is dropped.
    """
    attention, layout = module.attention, cache.layout
    width, first = attention.kv_heads * layout.size, attention.heads * attention.head_dim
    x = x if module.post_norm else norm(graph, x, module.attention_norm)
    bias = None if attention.qkv.bias is None else layout.spread(array(attention.qkv.bias)[first:])
    kv = linear(graph, x, layout.spread(array(attention.qkv.weight)[first:]), bias)
    k, v = graph.split(kv, [width] * 2)
    if attention.k_norm is not None:
        k = _head_norm(graph, k, attention.k_norm, layout)
    k, v = (_batched(graph, part, width, cache) for part in (k, v))
    queries = graph.node("Mul", v, graph.weight(np.zeros(1, np.float32)))
    _attend(graph, [queries, k, v], attention, config, cache, attention.kv_heads)


def block(graph: Graph, x: str, module: Block, config: ModelConfig, cache: CacheInputs) -> str:
    """One layer, its norms before the residual branches or after them."""
    if module.post_norm:
        x = graph.node("Add", x, attention(graph, x, module.attention, config, cache))
        x = norm(graph, x, module.attention_norm)
        return norm(graph, graph.node("Add", x, mlp(graph, x, module.mlp)), module.mlp_norm)
    normed = norm(graph, x, module.attention_norm)
    x = graph.node("Add", x, attention(graph, normed, module.attention, config, cache))
    return graph.node("Add", x, mlp(graph, norm(graph, x, module.mlp_norm), module.mlp))


def _attend(
    graph: Graph, inputs: list[str], module: Attention, config: ModelConfig, cache: CacheInputs, heads: int
) -> str:
    """GroupQueryAttention of packed or separate projections ``(B, T, ...)``, over the cache in place."""
    shape: list[str | int] = ["B", module.kv_heads, "S", cache.layout.size]
    pasts = [graph.input(f"past_{kind}_{module.index:03d}", np.float32, shape) for kind in "kv"]
    presents = [name.replace("past", "present") for name in pasts]
    attended = f"attended_{module.index:03d}"
    graph.nodes(
        "GroupQueryAttention",
        (*inputs, *pasts, cache.last_slot, cache.total, *cache.tables),
        [attended, *presents],
        domain=CONTRIB,
        num_heads=heads,
        kv_num_heads=module.kv_heads,
        scale=1.0 / math.sqrt(config.head_size),
        softcap=config.attention_softcap,
        local_window_size=config.window,
        do_rotary=int(bool(cache.tables)),
    )
    for name in presents:
        graph.output(name, name, shape)
    return attended


def _head_norm(graph: Graph, x: str, module: nn.RMSNorm, layout: HeadLayout) -> str:
    """RMSNorm over each head. The mean runs over the padded size: scale and eps make up for its zeros."""
    assert module.eps is not None
    filled = len(layout.places) / layout.size
    scale = layout.spread(array(module.weight)) * np.float32(math.sqrt(filled))
    heads = graph.node("Reshape", x, graph.integers([0, -1, layout.size]))
    return graph.node("RMSNormalization", heads, graph.weight(scale), epsilon=module.eps * filled)


def _batched(graph: Graph, x: str, width: int, cache: CacheInputs) -> str:
    """``(N, ...)`` to ``(B, T, width)``."""
    shape = graph.node("Concat", cache.batch_shape, graph.integers([width]), axis=0)
    return graph.node("Reshape", x, shape)
