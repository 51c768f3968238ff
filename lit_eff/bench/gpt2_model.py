"""GPT-2 by this project's own model, as a training job beside Hugging Face's: same start, data and optimizer.

What differs: the vocabulary is padded to whole tiles, the loss never holds all logits, attention is ours.
No token id reaches the padding's rows, and the loss is told where the vocabulary ends: they get no
probability and a zero gradient, and stay zero.

Shapes: B batch, T length, C model dim, N = B T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_eff.bench.gpt2_job import TrainingJob
from lit_eff.kernels.attention import supports
from lit_eff.kernels.norm import layer_norm
from lit_eff.models.attention_backend import plan_attention
from lit_eff.models.block import Block, LayerInputs
from lit_eff.models.checkpoint import model_from_state
from lit_eff.models.huggingface import from_hf
from lit_eff.models.transformer import Transformer
from lit_eff.training.losses import IGNORED, OutputHead, chunked_exit_loss

VOCABULARY_MULTIPLE = 128
TOKENS = "embeddings.tokens.weight"


def padded_transformer(theirs: nn.Module) -> Transformer:
    """Our model with the weights of a Hugging Face GPT-2, its vocabulary padded by rows of zeros."""
    model = from_hf(theirs)
    config, state = model.config, model.state_dict()
    padding = -config.vocab_size % VOCABULARY_MULTIPLE
    state[TOKENS] = F.pad(state[TOKENS], (0, 0, 0, padding))
    on_gpu = torch.cuda.is_available()
    ours = supports("cuda" if on_gpu else "cpu", head_dim=config.head_size)
    return model_from_state(
        replace(config, vocab_size=config.vocab_size + padding),
        state,
        source="the padded model",
        attention_backend="triton" if ours else "auto",
    )


def run_norm_kernels(model: Transformer, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """What `TransformerJob.hidden` gives, each addition to the residual stream one kernel with its norm."""
    positions_1T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None]
    x_BTC = model.embed(tokens_BT, positions_1T)
    plan = plan_attention(model.config, model.attention_backend.name, x_BTC)
    inputs = LayerInputs(plan, cos=None, sin=None, cache=None, starts_B=None, key_slots=None)
    added_BTC: Tensor | None = None

    def step(norm: nn.Module) -> Tensor:
        """The norm of the stream with ``added_BTC``, which goes into it."""
        nonlocal x_BTC
        assert isinstance(norm, nn.LayerNorm)
        if added_BTC is None:
            return layer_norm(x_BTC, norm.weight, norm.bias, norm.eps, out_dtype=dtype)
        normed_BTC, x_BTC = layer_norm(
            added_BTC, norm.weight, norm.bias, norm.eps, residual=x_BTC, out_dtype=dtype
        )
        return normed_BTC

    for block in model.blocks:
        assert isinstance(block, Block)
        added_BTC = block.attention(step(block.attention_norm), inputs)
        added_BTC = block.mlp(step(block.mlp_norm))
    return step(model.head.norm)


class TransformerJob(TrainingJob):
    """Our model, compiled as a whole up to the loss.

    Attributes:
        norm_kernels: `kernels.norm` in place of the norms that the compiler makes.
        chunk: tokens whose logits are held at a time; None leaves it to the loss.
    """

    norm_kernels = False
    chunk: int | None = None
    model: Transformer

    def build(self, theirs: nn.Module) -> nn.Module:
        return padded_transformer(theirs)

    def make_forward(self) -> Callable[..., Any]:
        _ = self.model.attention_backend  # chosen and logged now: that would break the graph
        return torch.compile(self.hidden, fullgraph=True) if self.compiled else self.hidden

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """What the output matrix reads, (N, C), in the dtype of the products."""
        if self.norm_kernels:
            return run_norm_kernels(self.model, tokens_BT, self.precision).flatten(0, 1)
        (x_BTC,) = self.model(tokens_BT)
        return self.model.head_norm(x_BTC, 0).flatten(0, 1).to(self.precision)

    def loss(self, tokens_BT: Tensor) -> Tensor:
        """Each token from those before it, as Hugging Face: the last of a row has no target."""
        targets_BT = F.pad(tokens_BT[:, 1:], (0, 1), value=IGNORED)
        loss, _ = chunked_exit_loss(
            [self.forward(tokens_BT)],
            [OutputHead(self.model.head_weight(0))],
            targets_BT.flatten(),
            [1.0],
            chunk=self.chunk,
            columns=self.size.vocabulary,
        )
        return loss

    def parameters(self) -> int:
        """Without the padding: operations are counted as of the same model without it."""
        padding = self.model.config.vocab_size - self.size.vocabulary
        return super().parameters() - padding * self.size.width

    def facts(self) -> dict[str, Any]:
        about = {
            "vocabulary_rows": self.model.config.vocab_size,
            "norms": "kernels" if self.norm_kernels else "compiled",
        }
        return super().facts() | about

    def _path(self) -> str | None:
        backend = self.model.attention_backend
        return super()._path() if backend.name == "triton" else f"{backend.name} ({backend.reason})"
