"""Parameters and floating-point operations, by arithmetic on the config.

Shapes: C model dim, H query heads, K kv heads, D head dim, M MLP width, V vocabulary (or labels).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lit_eff.models.config import ModelConfig


def parameter_count(model: nn.Module, *, embeddings: bool = True, trainable: bool = False) -> int:
    """Parameters of ``model``, shared ones once."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if (embeddings or not name.startswith("embeddings.")) and (parameter.requires_grad or not trainable)
    )


def flops_per_token(config: ModelConfig, context: int, exits: Sequence[int] | None = None) -> float:
    """Forward operations a token in a sequence of ``context`` tokens; a multiply-add counts as two.

    Counts every matrix product of the layers up to the deepest exit in ``exits`` (default all exits), scores
    and weighted values of the pairs that attention sees, and the heads of the exits asked for (once a
    sequence, not a token, in a classifier). Norms, activations and the embedding look-up are left out, as is
    usual (PaLM, Chowdhery et al. 2022, appendix B). A training step costs three times as much.
    """
    exit_layers = config.exit_layers
    asked = range(len(exit_layers)) if exits is None else sorted(set(exits))
    layer = 2.0 * (attention_weights(config) + mlp_weights(config))
    layer += 4.0 * config.heads * config.head_size * mean_visible_keys(config, context)
    heads = sum(2.0 * head_weights(config, exit_index) for exit_index in asked)
    return exit_layers[asked[-1]] * layer + heads / (context if config.labels else 1)


def mean_visible_keys(config: ModelConfig, context: int) -> float:
    """Keys that a query sees, averaged over the positions of a sequence of ``context`` tokens."""
    if not config.causal:
        return context
    window = min(config.window or context, context)
    # The first `window` queries see 1, 2, .. `window` keys; the others see `window`.
    return (window * (window + 1) / 2 + (context - window) * window) / context


def attention_weights(config: ModelConfig) -> int:
    """Elements of one layer's projections of attention."""
    width = (2 * config.heads + 2 * config.n_kv_heads) * config.head_size
    return config.model_dim * width


def mlp_weights(config: ModelConfig) -> int:
    """Elements of one layer's MLP."""
    return (3 if config.mlp == "swiglu" else 2) * config.model_dim * config.mlp_size


def head_weights(config: ModelConfig, exit_index: int) -> int:
    """Elements that the head of an exit reads: output matrix, transform and MLP block where it has them."""
    weights = config.model_dim * (config.labels or config.vocab_size)
    if config.pooler if config.labels else config.head_transform:
        weights += config.model_dim**2
    intermediate = exit_index < len(config.exit_layers) - 1
    if intermediate and config.exits.head == "mlp":
        weights += mlp_weights(config)
    return weights
