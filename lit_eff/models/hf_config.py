"""How our config reads in Hugging Face's Llama, Mistral, Qwen, GPT-2 and BERT formats, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lit_eff.errors import UserError
from lit_eff.models.config import ModelConfig

Task = Literal["lm", "classify"]
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
FAMILIES = (*LLAMA_LIKE, "gpt2", "bert")


def config_from_hf(hf: Mapping[str, Any], task: Task) -> ModelConfig:
    """Our config for their ``config.json``, without exits.

    Raises:
        UserError: a family or a setting that this model does not have, named.
    """
    family = hf.get("model_type")
    if family not in FAMILIES:
        raise UserError(f"Hugging Face model type is {family!r}; expected one of {list(FAMILIES)}")
    if family == "gpt2":
        shape = _gpt2_from_hf(hf)
    elif family == "bert":
        shape = _bert_from_hf(hf, task)
    else:
        shape = _llama_from_hf(family, hf)
    if task == "classify":
        shape |= {"labels": _label_count(hf), "pooling": "first" if family == "bert" else "last"}
        shape |= {"tied": False, "pooler": family == "bert", "output_bias": family == "bert"}
    return ModelConfig(**shape)


def _require(hf: Mapping[str, Any], key: str, allowed: tuple[Any, ...], default: Any) -> Any:
    value = hf.get(key, default)
    if value not in allowed:
        raise UserError(f"Hugging Face setting {key} is {value!r}; expected one of {list(allowed)}")
    return value


def _label_count(hf: Mapping[str, Any]) -> int:
    return int(hf.get("num_labels") or len(hf.get("id2label") or (0, 1)))


def _llama_from_hf(family: str, hf: Mapping[str, Any]) -> dict[str, Any]:
    _require(hf, "hidden_act", ("silu", "swish"), "silu")
    # transformers 5 writes rope_parameters; before, rope_theta stood beside rope_scaling.
    rope = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", None) or hf.get("rope_theta", 10_000.0)
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type", "default")
    heads = hf["num_attention_heads"]
    bias = bool(hf.get("attention_bias", False))
    head_dim = hf.get("head_dim") or (128 if family == "qwen3" else hf["hidden_size"] // heads)
    return {
        "vocab_size": hf["vocab_size"],
        "layers": hf["num_hidden_layers"],
        "model_dim": hf["hidden_size"],
        "heads": heads,
        "kv_heads": hf.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "mlp_dim": hf["intermediate_size"],
        "context": hf["max_position_embeddings"],
        "norm_eps": hf.get("rms_norm_eps", 1e-6),
        "rope_theta": float(theta),
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "qkv_bias": family == "qwen2" or bias,
        "attention_bias": bias and family != "qwen2",
        "mlp_bias": bool(hf.get("mlp_bias", False)),
        "qk_norm": family == "qwen3",
        "tied": bool(hf.get("tie_word_embeddings", False)),
        "window": _window(family, hf),
        "init_std": hf.get("initializer_range", 0.02),
    }


def _window(family: str, hf: Mapping[str, Any]) -> int | None:
    window = hf.get("sliding_window")
    if window is None or family == "llama":
        return None
    if family == "mistral":
        return int(window)
    if not hf.get("use_sliding_window", False):
        return None
    kinds = set(hf.get("layer_types") or ())
    if kinds == {"full_attention"}:
        return None
    if kinds != {"sliding_attention"} and hf.get("max_window_layers", 0) > 0:
        raise UserError(
            "Hugging Face model mixes sliding and full attention; expected one kind for all layers"
        )
    return int(window)


def _gpt2_from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
    _require(hf, "scale_attn_weights", (True,), True)
    _require(hf, "scale_attn_by_inverse_layer_idx", (False,), False)
    act = _require(hf, "activation_function", ("gelu_new", "gelu_pytorch_tanh", "gelu"), "gelu_new")
    return {
        "vocab_size": hf["vocab_size"],
        "layers": hf["n_layer"],
        "model_dim": hf["n_embd"],
        "heads": hf["n_head"],
        "mlp_dim": hf.get("n_inner") or 4 * hf["n_embd"],
        "context": hf["n_positions"],
        "norm": "layer",
        "norm_eps": hf.get("layer_norm_epsilon", 1e-5),
        "positions": "learned",
        "mlp": "gelu" if act == "gelu" else "gelu_tanh",
        "qkv_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "tied": bool(hf.get("tie_word_embeddings", True)),
        "dropout": hf.get("resid_pdrop", 0.0),
        "init_std": hf.get("initializer_range", 0.02),
    }


def _bert_from_hf(hf: Mapping[str, Any], task: Task) -> dict[str, Any]:
    _require(hf, "is_decoder", (False,), False)
    _require(hf, "position_embedding_type", ("absolute", None), None)
    act = _require(hf, "hidden_act", ("gelu", "gelu_new", "gelu_pytorch_tanh"), "gelu")
    return {
        "vocab_size": hf["vocab_size"],
        "layers": hf["num_hidden_layers"],
        "model_dim": hf["hidden_size"],
        "heads": hf["num_attention_heads"],
        "mlp_dim": hf["intermediate_size"],
        "context": hf["max_position_embeddings"],
        "norm": "layer",
        "norm_eps": hf.get("layer_norm_eps", 1e-12),
        "norm_position": "post",
        "positions": "learned",
        "mlp": "gelu" if act == "gelu" else "gelu_tanh",
        "qkv_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "causal": False,
        "token_types": hf.get("type_vocab_size") or 2,  # none at all does not exist there
        "embedding_norm": True,
        "head_transform": task == "lm",
        "output_bias": task == "lm",
        "tied": bool(hf.get("tie_word_embeddings", True)),
        "dropout": hf.get("hidden_dropout_prob", 0.0),
        "init_std": hf.get("initializer_range", 0.02),
    }


def family_of(config: ModelConfig) -> str:
    """The Hugging Face family that computes what ``config`` does.

    Raises:
        UserError: none does; the setting in the way is named.
    """
    for family in FAMILIES:
        try:
            back = config_from_hf(config_to_hf(config, family), "classify" if config.labels else "lm")
        except UserError:
            continue
        differing = [key for key, value in _computed(config).items() if _computed(back)[key] != value]
        if not differing:
            return family
    raise UserError(
        f"no Hugging Face family among {list(FAMILIES)} computes this model "
        f"(norm={config.norm}, positions={config.positions}, mlp={config.mlp}, window={config.window}, "
        f"softcaps={config.attention_softcap}, {config.logit_softcap}); export another format"
    )


def _computed(config: ModelConfig) -> dict[str, Any]:
    """What decides the full model's output in eval mode, with defaults filled in."""
    values = config.to_dict()
    for key in ("exits", "dropout", "init_std"):
        del values[key]
    values |= {"kv_heads": config.n_kv_heads, "head_dim": config.head_size, "mlp_dim": config.mlp_size}
    values["rotary_dim"] = config.rotary
    values["window"] = None if (config.window or 0) >= config.context else config.window
    if config.positions == "learned":  # settings that nothing reads
        values |= {"rope_theta": 0.0, "rope_scaling": None}
    if not config.labels:
        values |= {"pooling": "first", "pooler": False}
    else:
        values |= {"tied": False, "head_transform": False}
    return values


def config_to_hf(config: ModelConfig, family: str) -> dict[str, Any]:
    """Their ``config.json`` for our config, as one family would have it (see :func:`family_of`)."""
    hf: dict[str, Any] = {
        "model_type": family,
        "architectures": [architecture(family, config)],
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.init_std,
    }
    if config.labels:
        hf["id2label"] = {str(index): f"LABEL_{index}" for index in range(config.labels)}
        hf["label2id"] = {f"LABEL_{index}": index for index in range(config.labels)}
    activation = "gelu" if config.mlp == "gelu" else "gelu_new"
    if family == "gpt2":
        return hf | {
            "n_layer": config.layers,
            "n_embd": config.model_dim,
            "n_head": config.heads,
            "n_inner": config.mlp_size,
            "n_positions": config.context,
            "activation_function": activation,
            "layer_norm_epsilon": config.norm_eps,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": 0.0,
        }
    hf |= {
        "num_hidden_layers": config.layers,
        "hidden_size": config.model_dim,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_size,
        "max_position_embeddings": config.context,
    }
    if family == "bert":
        return hf | {
            "hidden_act": activation,
            "layer_norm_eps": config.norm_eps,
            "type_vocab_size": config.token_types,
            "hidden_dropout_prob": config.dropout,
            "attention_probs_dropout_prob": 0.0,
        }
    hf |= {
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}
        | (config.rope_scaling or {}),
        "sliding_window": config.window,
    }
    if family == "llama":
        hf |= {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    elif family in ("qwen2", "qwen3") and config.window is not None:
        hf |= {"use_sliding_window": True, "max_window_layers": 0}
    if family == "qwen3":
        hf["attention_bias"] = config.attention_bias
    return hf


def architecture(family: str, config: ModelConfig) -> str:
    """The class name that Hugging Face's ``architectures`` holds."""
    name = {"gpt2": "GPT2", "bert": "Bert"}.get(family, family.capitalize())
    if config.labels:
        return f"{name}ForSequenceClassification"
    return {"gpt2": "GPT2LMHeadModel", "bert": "BertForMaskedLM"}.get(family, f"{name}ForCausalLM")
