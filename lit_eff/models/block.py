"""One transformer layer: attention and MLP on a residual stream, pre-norm (GPT, Llama) or post-norm (BERT).

Shapes: B batch, T query length, S key slots, H query heads, K kv heads, D head dim, C model dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_eff.models.attention_backend import AttentionPlan, attend
from lit_eff.models.cache import KVCache
from lit_eff.models.config import ModelConfig
from lit_eff.models.layers import MLP, make_norm, rotate


@dataclass(frozen=True)
class LayerInputs:
    """What the layers of one forward pass share, prepared once: rotary table, attention plan, cache."""

    plan: AttentionPlan
    cos: Tensor | None
    sin: Tensor | None
    cache: KVCache | None
    starts_B: Tensor | None
    key_slots: int | None


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) with one fused projection for q, k and v."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.heads, self.kv_heads, self.head_dim = config.heads, config.n_kv_heads, config.head_size
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv = nn.Linear(config.model_dim, width, bias=config.qkv_bias)
        self.output = nn.Linear(self.heads * self.head_dim, config.model_dim, bias=config.attention_bias)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else None

    def forward(self, x_BTC: Tensor, inputs: LayerInputs) -> Tensor:
        q, k, v = self.project(x_BTC, inputs)
        if inputs.cache is not None:
            assert inputs.starts_B is not None
            inputs.cache.write(self.index, k, v, inputs.starts_B)
            k, v = inputs.cache.view(self.index, inputs.key_slots)
            k, v = k.to(q.dtype), v.to(q.dtype)
        out_BTHD = attend(q, k, v, inputs.plan)
        out_BTC: Tensor = self.output(out_BTHD.flatten(2))
        return out_BTC

    def project(self, x_BTC: Tensor, inputs: LayerInputs) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, T, H, D), k and v (B, T, K, D), with biases, norms and positions applied."""
        qkv = self.qkv(x_BTC).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
            q, k = self.q_norm(q), self.k_norm(k)
            if inputs.cos is not None and inputs.sin is not None:
                q, k = rotate(q, inputs.cos, inputs.sin), rotate(k, inputs.cos, inputs.sin)
            return q, k, v
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        if inputs.cos is not None and inputs.sin is not None:
            qk = rotate(qk, inputs.cos, inputs.sin)
        q, k = qk.split([self.heads, self.kv_heads], dim=2)
        return q, k, v

    def keys_values(self, x_BTC: Tensor, cos: Tensor | None, sin: Tensor | None) -> tuple[Tensor, Tensor]:
        """k and v alone, each (B, T, K, D), with biases, norms and positions applied."""
        first = self.heads * self.head_dim
        bias = None if self.qkv.bias is None else self.qkv.bias[first:]
        kv = F.linear(x_BTC, self.qkv.weight[first:], bias)
        k, v = kv.view(*kv.shape[:2], -1, self.head_dim).chunk(2, dim=2)
        if self.k_norm is not None:
            k = self.k_norm(k)
        if cos is not None and sin is not None:
            k = rotate(k, cos, sin)
        return k, v


class Block(nn.Module):
    """A layer. Dropout (a probability, training only) acts on what each half adds to the residual stream."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.post_norm = config.norm_position == "post"
        self.dropout = config.dropout
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, index)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, hidden_BTC: Tensor, inputs: LayerInputs, keep_B: Tensor | None = None) -> Tensor:
        """Next hidden state (B, T, C). Rows whose ``keep_B`` is 0 pass unchanged (layer dropout)."""
        x = hidden_BTC
        if self.post_norm:
            x = self.attention_norm(x + self._drop(self.attention(x, inputs)))
            x = self.mlp_norm(x + self._drop(self.mlp(x)))
        else:
            x = x + self._drop(self.attention(self.attention_norm(x), inputs))
            x = x + self._drop(self.mlp(self.mlp_norm(x)))
        if keep_B is not None:
            x = torch.where(keep_B[:, None, None] != 0, x, hidden_BTC)
        return x

    def keys_values(
        self, hidden_BTC: Tensor, cos: Tensor | None, sin: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What this layer's cache would hold of tokens that entered it as ``hidden_BTC``."""
        x_BTC = hidden_BTC if self.post_norm else self.attention_norm(hidden_BTC)
        return self.attention.keys_values(x_BTC, cos, sin)

    def _drop(self, x_BTC: Tensor) -> Tensor:
        return F.dropout(x_BTC, self.dropout, self.training) if self.dropout else x_BTC
