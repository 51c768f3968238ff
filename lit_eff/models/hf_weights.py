"""How our parameter names read in Hugging Face's formats.

Each family is a list of :class:`Rule`, which both directions share: one of our tensors is some of theirs,
stacked (fused q, k, v), each perhaps transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.models.config import ModelConfig

# Theirs, and not weights of ours: masks and tables kept as buffers, heads for other tasks, tied copies.
IGNORED = (
    ".attn.bias",
    ".attn.masked_bias",
    ".rotary_emb.inv_freq",
    "embeddings.position_ids",
    "cls.seq_relationship.weight",
    "cls.seq_relationship.bias",
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
    "bert.pooler.dense.weight",
    "bert.pooler.dense.bias",
    "lm_head.weight",
)
EXIT_HEADS = "exit_heads."
EXIT_CLASSIFIER = "exit_classifier."
OUR_PREFIX = "lit_eff."  # names of ours in their files: what they have no place for, which is the exits' own


@dataclass(frozen=True)
class Rule:
    """``ours`` equals ``theirs`` stacked along the output dimension; ``transpose`` for GPT-2's Conv1D."""

    ours: str
    theirs: tuple[str, ...]
    transpose: bool = False


def rules(family: str, config: ModelConfig) -> list[Rule]:
    """Every tensor of a model without exits, ours beside theirs."""
    if family == "gpt2":
        return _gpt2_rules(config)
    return _bert_rules(config) if family == "bert" else _llama_rules(config)


def _llama_rules(config: ModelConfig) -> list[Rule]:
    found = [
        Rule("embeddings.tokens.weight", ("model.embed_tokens.weight",)),
        Rule("head.norm.weight", ("model.norm.weight",)),
    ]
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        found.append(Rule(f"{ours}attention_norm.weight", (f"{theirs}input_layernorm.weight",)))
        found.append(Rule(f"{ours}mlp_norm.weight", (f"{theirs}post_attention_layernorm.weight",)))
        for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
            qkv = tuple(f"{theirs}self_attn.{part}_proj.{kind}" for part in "qkv")
            found.append(Rule(f"{ours}attention.qkv.{kind}", qkv))
        for kind in ("weight", "bias") if config.attention_bias else ("weight",):
            found.append(Rule(f"{ours}attention.output.{kind}", (f"{theirs}self_attn.o_proj.{kind}",)))
        if config.qk_norm:
            for part in "qk":
                name = f"{part}_norm.weight"
                found.append(Rule(f"{ours}attention.{name}", (f"{theirs}self_attn.{name}",)))
        for part in ("gate", "up", "down"):
            for kind in ("weight", "bias") if config.mlp_bias else ("weight",):
                found.append(Rule(f"{ours}mlp.{part}.{kind}", (f"{theirs}mlp.{part}_proj.{kind}",)))
    return found + _causal_output(config)


def _gpt2_rules(config: ModelConfig) -> list[Rule]:
    found = [
        Rule("embeddings.tokens.weight", ("transformer.wte.weight",)),
        Rule("embeddings.positions.weight", ("transformer.wpe.weight",)),
    ]
    norms = {"head.norm": "transformer.ln_f"}
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}.", f"transformer.h.{i}."
        norms |= {f"{ours}attention_norm": f"{theirs}ln_1", f"{ours}mlp_norm": f"{theirs}ln_2"}
        dense = {"attention.qkv": "attn.c_attn", "attention.output": "attn.c_proj"}
        dense |= {"mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
        for name, hf_name in dense.items():
            found.append(Rule(f"{ours}{name}.weight", (f"{theirs}{hf_name}.weight",), transpose=True))
            found.append(Rule(f"{ours}{name}.bias", (f"{theirs}{hf_name}.bias",)))
    for name, hf_name in norms.items():
        found += [Rule(f"{name}.{kind}", (f"{hf_name}.{kind}",)) for kind in ("weight", "bias")]
    return found + _causal_output(config)


def _causal_output(config: ModelConfig) -> list[Rule]:
    if config.labels:
        return [Rule("head.output.weight", ("score.weight",))]
    return [] if config.tied else [Rule("head.output.weight", ("lm_head.weight",))]


def _bert_rules(config: ModelConfig) -> list[Rule]:
    found = [
        Rule("embeddings.tokens.weight", ("bert.embeddings.word_embeddings.weight",)),
        Rule("embeddings.positions.weight", ("bert.embeddings.position_embeddings.weight",)),
        Rule("embeddings.types.weight", ("bert.embeddings.token_type_embeddings.weight",)),
    ]
    pairs = {"embeddings.norm": "bert.embeddings.LayerNorm"}
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}.", f"bert.encoder.layer.{i}."
        for kind in ("weight", "bias"):
            qkv = tuple(f"{theirs}attention.self.{part}.{kind}" for part in ("query", "key", "value"))
            found.append(Rule(f"{ours}attention.qkv.{kind}", qkv))
        pairs |= {
            f"{ours}attention.output": f"{theirs}attention.output.dense",
            f"{ours}attention_norm": f"{theirs}attention.output.LayerNorm",
            f"{ours}mlp.up": f"{theirs}intermediate.dense",
            f"{ours}mlp.down": f"{theirs}output.dense",
            f"{ours}mlp_norm": f"{theirs}output.LayerNorm",
        }
    if config.labels:
        pairs |= {"head.output": "classifier"}
        if config.pooler:
            pairs |= {"head.transform.dense": "bert.pooler.dense"}
    else:
        pairs["head.transform.dense"] = "cls.predictions.transform.dense"
        pairs["head.transform.norm"] = "cls.predictions.transform.LayerNorm"
        if config.tied:
            found.append(Rule("head.bias", ("cls.predictions.bias",)))
        else:
            found.append(Rule("head.output.weight", ("cls.predictions.decoder.weight",)))
            found.append(Rule("head.output.bias", ("cls.predictions.bias",)))
    for name, hf_name in pairs.items():
        found += [Rule(f"{name}.{kind}", (f"{hf_name}.{kind}",)) for kind in ("weight", "bias")]
    return found


def canonical(family: str, name: str) -> str:
    """Their name as the class with a head spells it: older files lack the prefix, or say gamma and beta."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    prefix, starts = {
        "gpt2": ("transformer.", ("wte.", "wpe.", "h.", "ln_f.")),
        "bert": ("bert.", ("embeddings.", "encoder.", "pooler.")),
    }.get(family, ("model.", ("embed_tokens.", "layers.", "norm.")))
    return prefix + name if name.startswith(starts) else name


def from_theirs(
    rules: list[Rule], theirs: Mapping[str, Tensor], family: str, source: str
) -> dict[str, Tensor]:
    """Our state dict (the exits' own if theirs holds them too), from theirs under :func:`canonical` names.

    Raises:
        UserError: a tensor of theirs is missing, or one is left over that the model does not have.
    """
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for rule in rules:
        missing = [name for name in rule.theirs if name not in theirs]
        if missing:
            raise UserError(f"{source}: tensor {missing[0]} is missing; expected a {family} model")
        parts = [theirs[name].T if rule.transpose else theirs[name] for name in rule.theirs]
        found[rule.ours] = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
        used.update(rule.theirs)
    for name, tensor in theirs.items():
        if name.startswith(OUR_PREFIX):
            found[name.removeprefix(OUR_PREFIX)] = tensor
        elif name not in used and not name.endswith(IGNORED):
            raise UserError(f"{source}: tensor {name} has no place in this model, so it would be lost")
    return found


def to_theirs(rules: list[Rule], ours: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Their state dict for ours: the inverse of :func:`from_theirs`."""
    heads, kv_heads = config.heads * config.head_size, config.n_kv_heads * config.head_size
    found: dict[str, Tensor] = {}
    for rule in rules:
        tensor = ours[rule.ours]
        fused = len(rule.theirs) > 1
        parts = torch.split(tensor, [heads, kv_heads, kv_heads]) if fused else (tensor,)
        for name, part in zip(rule.theirs, parts, strict=True):
            found[name] = (part.T if rule.transpose else part).contiguous()
    exits = (EXIT_HEADS, EXIT_CLASSIFIER)
    found |= {OUR_PREFIX + name: tensor for name, tensor in ours.items() if name.startswith(exits)}
    return found
