"""Exit heads: from the hidden state after some layer to the vector that an output matrix reads, or a score.

Shapes: B batch, T length, C model dim, V vocabulary or labels; ``...`` any leading dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_eff.models.config import HeadKind, ModelConfig
from lit_eff.models.layers import MLP, make_norm

SCORE_EPS = 1e-6


class HeadTransform(nn.Module):
    """BERT's masked-LM transform (dense, GELU, norm), or its pooler before a classifier (dense, tanh)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.model_dim, config.model_dim)
        self.norm = None if config.labels else make_norm(config)
        self.approximate = "tanh" if config.mlp == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is None:
            return torch.tanh(self.dense(x))
        out: Tensor = self.norm(F.gelu(self.dense(x), approximate=self.approximate))
        return out


class HeadBlock(nn.Module):
    """A residual MLP in front of an exit's norm (EE-LLM's MLP head, Chen et al. 2024)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mlp(self.norm(x))
        return out


class Head(nn.Module):
    """The parts one head owns; a part that is ``None`` is read from the final head.

    The final head owns all: norm, transform if the config has one, output matrix unless tied to the
    embedding. An intermediate one owns what :class:`~lit_eff.models.config.ExitConfig` says for its kind.
    """

    def __init__(self, config: ModelConfig, kind: HeadKind | None = None) -> None:
        """``kind`` is an intermediate exit's kind; ``None`` makes the final head."""
        super().__init__()
        final = kind is None
        owns_output = final or kind == "linear"
        self.block = HeadBlock(config) if kind == "mlp" else None
        # A post-norm layer ends with a norm already, so that family's final head has none (BERT).
        self.norm = nn.Identity() if final and config.norm_position == "post" else make_norm(config)
        has_transform = config.pooler if config.labels else config.head_transform
        self.transform = HeadTransform(config) if owns_output and has_transform else None
        width = config.labels or config.vocab_size
        self.output: nn.Linear | None = None
        self.bias: nn.Parameter | None = None
        if final and config.tied and not config.labels:
            self.bias = nn.Parameter(torch.zeros(width)) if config.output_bias else None
        elif owns_output:
            self.output = nn.Linear(config.model_dim, width, bias=config.output_bias)


def exit_score(hidden: Tensor, classifier: nn.Linear) -> Tensor:
    """``w . h / rms(h) + b`` with rms(h) = sqrt(mean(h^2) + 1e-6): (..., C) to (...), at least float32.

    The linear classifier of CALM (Schuster et al. 2022, section 3.5) and BERxiT (Xin et al. 2021), which all
    exits share; dividing by rms(h) lets depth change the state's direction alone, not its scale.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    weight_1C, bias_1 = classifier.weight.to(wide), classifier.bias.to(wide)
    with torch.autocast(hidden.device.type, enabled=False):
        normed = F.rms_norm(hidden.to(wide), hidden.shape[-1:], eps=SCORE_EPS)
        return F.linear(normed, weight_1C, bias_1)[..., 0]


def pool(hidden_BTC: Tensor, pooling: str, documents_BT: Tensor | None) -> Tensor:
    """One vector per row, (B, C): of the ``first`` token, the ``last`` real one, or the ``mean`` of those.

    Real tokens are those with ``documents_BT >= 0``; without documents, all are.
    """
    if pooling == "first":
        return hidden_BTC[:, 0]
    if documents_BT is None:
        return hidden_BTC[:, -1] if pooling == "last" else hidden_BTC.mean(dim=1)
    real_BT = documents_BT >= 0
    if pooling == "last":
        index_T = torch.arange(real_BT.shape[1], device=real_BT.device)
        last_B = (real_BT * index_T).amax(dim=1)
        return hidden_BTC[torch.arange(real_BT.shape[0], device=real_BT.device), last_B]
    weights_BT = real_BT.to(hidden_BTC.dtype)
    return (hidden_BTC * weights_BT[:, :, None]).sum(dim=1) / weights_BT.sum(dim=1, keepdim=True).clamp_min(1)
