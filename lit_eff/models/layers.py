"""Norms, rotary positions and MLPs.

Shapes: B batch, T query length, D head dim, C model dim.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_eff.models.config import ModelConfig


def make_norm(config: ModelConfig, size: int | None = None) -> nn.Module:
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm with bias, over the last dimension."""
    size = size or config.model_dim
    if config.norm == "rms":
        return nn.RMSNorm(size, eps=config.norm_eps)
    return nn.LayerNorm(size, eps=config.norm_eps)


class MLP(nn.Module):
    """SwiGLU ``down(silu(gate x) * up x)`` (Shazeer 2020), or ``down(gelu(up x))`` exact or tanh (GPT-2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.mlp
        # Two matrices for gate and up: splitting one fused output costs more on a CPU than a second product.
        if self.kind == "swiglu":
            self.gate = nn.Linear(config.model_dim, config.mlp_size, bias=config.mlp_bias)
        self.up = nn.Linear(config.model_dim, config.mlp_size, bias=config.mlp_bias)
        self.down = nn.Linear(config.mlp_size, config.model_dim, bias=config.mlp_bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        if self.kind == "swiglu":
            inner = F.silu(self.gate(x_BTC)) * self.up(x_BTC)
        else:
            approximate = "tanh" if self.kind == "gelu_tanh" else "none"
            inner = F.gelu(self.up(x_BTC), approximate=approximate)
        out_BTC: Tensor = self.down(inner)
        return out_BTC


@torch.no_grad()
def init_weights(module: nn.Module, std: float) -> None:
    """Normal weights of standard deviation ``std``, zero biases and unit norms, in all of ``module``."""
    for part in module.modules():
        if isinstance(part, nn.RMSNorm | nn.LayerNorm):
            part.reset_parameters()
            continue
        for name, parameter in part.named_parameters(recurse=False):
            if name == "bias":
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=std)


def inverse_frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """Rotary angular frequencies, float32 (rotary_dim / 2,), radians per position (Su et al. 2021).

    ``config.rope_scaling`` follows Hugging Face's keys: ``linear`` (Chen et al. 2023) divides every frequency
    by ``factor``; ``llama3`` (Llama 3.1) divides only wavelengths longer than the original context, with a
    smooth ramp between.
    """
    scaling = tuple(sorted((config.rope_scaling or {}).items()))
    return _inverse_frequencies(config.rotary, config.rope_theta, scaling, device)


@functools.lru_cache(maxsize=32)  # one copy to a device per model, not one per forward pass
def _inverse_frequencies(
    dim: int, theta: float, scaling_items: tuple[tuple[str, Any], ...], device: torch.device
) -> Tensor:
    scaling = dict(scaling_items)
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    frequencies = 1.0 / theta**exponents
    kind = scaling.get("rope_type", "default")
    if kind == "linear":
        frequencies = frequencies / scaling["factor"]
    elif kind == "llama3":
        wavelengths = 2 * math.pi / frequencies
        original = scaling["original_max_position_embeddings"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        keep = ((original / wavelengths - low) / (high - low)).clamp(0.0, 1.0)
        frequencies = keep * frequencies + (1 - keep) * frequencies / scaling["factor"]
    return frequencies.to(device)


def rotary_table(config: ModelConfig, positions_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (B, T, 1, rotary_dim / 2), at least float32 whatever the model's dtype."""
    dtype = torch.promote_types(dtype, torch.float32)
    frequencies = inverse_frequencies(config, positions_BT.device).to(dtype)
    angles = positions_BT.to(dtype)[:, :, None, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + rotary_dim / 2) of the leading part of each head; the rest passes through."""
    half = cos.shape[-1]
    first, second = x_BTHD[..., :half], x_BTHD[..., half : 2 * half]
    turned = [first * cos - second * sin, second * cos + first * sin]
    if 2 * half < x_BTHD.shape[-1]:
        turned.append(x_BTHD[..., 2 * half :].to(turned[0].dtype))
    return torch.cat(turned, dim=-1).to(x_BTHD.dtype)
