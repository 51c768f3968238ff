"""Tiny causal language models of every family and head kind, with weights far from their initial values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lit_eff.export.onnx_model import write_graphs
from lit_eff.models.checkpoint import LoadedCheckpoint, weights_sha256
from lit_eff.models.config import ExitConfig, HeadKind, ModelConfig
from lit_eff.models.transformer import Transformer
from lit_eff.runtime.onnx_runner import OnnxRunner

ALL_BIASES = {"qkv_bias": True, "attention_bias": True, "mlp_bias": True, "output_bias": True}
LEARNED = {"norm": "layer", "positions": "learned", **ALL_BIASES}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"kv_heads": 2, "mlp_dim": 86, "tied": False},
    "llama3_scaling": {
        "mlp_bias": True,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "qwen2": {"kv_heads": 1, "qkv_bias": True, "head_dim": 8, "rope_theta": 1e6},
    "qwen3": {"kv_heads": 2, "qk_norm": True, "head_dim": 24, "norm_eps": 1e-3},
    "gpt2": {"mlp": "gelu_tanh", **LEARNED},
    "window": {"window": 9, "kv_heads": 2},
    "softcaps": {"attention_softcap": 2.0, "logit_softcap": 3.0},
    "partial_rotary": {"norm": "layer", "mlp": "gelu", "rotary_dim": 4},
    "post_norm": {
        "mlp": "gelu",
        "norm_position": "post",
        "embedding_norm": True,
        "head_transform": True,
        **LEARNED,
    },
}


def tiny_model(family: str = "llama", head: HeadKind = "shared", **changes: Any) -> Transformer:
    """Four layers with exits after the first and the third. Norm weights and biases are random too."""
    settings = {"vocab_size": 97, "layers": 4, "model_dim": 64, "heads": 4, "context": 160}
    config = ModelConfig(**{**settings, **FAMILIES[family], "exits": ExitConfig((1, 3), head), **changes})
    torch.manual_seed(0)
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def onnx_runner(model: Transformer, folder: Path, threads: int = 1, *, propagate: bool = False) -> OnnxRunner:
    folder.mkdir(exist_ok=True)
    graphs = write_graphs(model, folder, propagate=propagate)
    return OnnxRunner(folder, graphs, context=model.config.context, threads=threads)


def loaded(model: Transformer | None = None, **changes: Any) -> LoadedCheckpoint:
    """What ``load_checkpoint`` would return for this model."""
    model = model or tiny_model()
    values: dict[str, Any] = {
        "model": model,
        "tokenizer_json": '{"version": "1.0"}',
        "recipe": {"decoding": {"mode": "lossless", "draft_length": 3}, "export": {"formats": ["torch"]}},
        "metadata": {
            "recipe_name": "tiny",
            "overrides": ["trainer.max_steps=20"],
            "git_commit": "0" * 40,
            "split_hashes": {"train": "1" * 64},
        },
        "weights_sha256": weights_sha256(model),
    }
    return LoadedCheckpoint(**{**values, **changes})
