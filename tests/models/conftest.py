"""Small models that every test file builds on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lit_eff.models.config import ExitConfig, ModelConfig
from lit_eff.models.transformer import Transformer

VOCABULARY = 61

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"kv_heads": 2, "tied": False},
    "qwen": {"kv_heads": 2, "qk_norm": True},
    "gpt2": {
        "norm": "layer",
        "positions": "learned",
        "mlp": "gelu_tanh",
        "qkv_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "bert": {
        "norm": "layer",
        "norm_position": "post",
        "positions": "learned",
        "mlp": "gelu",
        "qkv_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "causal": False,
        "token_types": 2,
        "embedding_norm": True,
        "head_transform": True,
        "output_bias": True,
    },
}


@pytest.fixture
def make_model() -> Callable[..., Transformer]:
    """``make_model(family, exits=(1, 2), head="shared", **settings)``: 3 layers, and weights that matter."""

    def make(
        family: str = "llama",
        exits: tuple[int, ...] = (1, 2),
        head: str = "shared",
        classifier: bool = False,
        **settings: Any,
    ) -> Transformer:
        torch.manual_seed(0)
        backend = settings.pop("attention_backend", "auto")
        values = {"layers": 3, "model_dim": 32, "heads": 4, "mlp_dim": 48, "context": 64, "init_std": 0.2}
        values |= FAMILIES[family] | settings
        config = ModelConfig(vocab_size=VOCABULARY, exits=ExitConfig(exits, head, classifier), **values)  # type: ignore[arg-type]
        return Transformer(config, attention_backend=backend).eval()

    return make


@pytest.fixture(name="tokens_BT")
def some_tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, VOCABULARY, (3, 20), generator=generator)
