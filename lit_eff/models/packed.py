"""A Llama-type model's weights as the decode step's kernel wants them: every layer's in one tensor.

Shapes: L layers, C model dim, M MLP inner width, D head dim, S cache slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_eff.errors import UserError
from lit_eff.kernels.decode_step import DecodeStep, Plan, Shape, Weights
from lit_eff.models.block import Block
from lit_eff.models.cache import KVCache
from lit_eff.models.config import ModelConfig
from lit_eff.models.layers import rotary_table
from lit_eff.models.transformer import Transformer


def refuse_other_families(config: ModelConfig) -> None:
    """Raises UserError, naming the trait and its value, for a model that the decode step does not compute."""
    wanted = {
        "norm": "rms",
        "norm_position": "pre",
        "positions": "rope",
        "rotary_dim": config.head_size,
        "mlp": "swiglu",
        "qkv_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "qk_norm": False,
        "causal": True,
        "window": None,
        "attention_softcap": None,
        "token_types": 0,
        "embedding_norm": False,
        "head_transform": False,
        "labels": 0,
    }
    for trait, value in wanted.items():
        found = config.rotary if trait == "rotary_dim" else getattr(config, trait)
        if found != value:
            raise UserError(
                f"the decode step is that of Llama-type models: model.{trait} is {found!r}, not {value!r}"
            )


class PackedModel:
    """The weights of ``model`` in stacks, which its parameters become views of: nothing is held twice.

    The model works as before; loading other weights into it in place changes the stacks too. Moving it to
    another device or dtype leaves the stacks behind, and so does packing it again.

    Attributes:
        shape, weights, output_VC, bias, softcap: what `DecodeStep` takes.

    Raises:
        UserError: for a model of another family, or of several dtypes.
    """

    @torch.no_grad()
    def __init__(self, model: Transformer, slots: int) -> None:
        config = model.config
        refuse_other_families(config)
        if slots < 1:
            raise UserError(f"a cache of {slots} slots; expected a positive number")
        dtypes = {parameter.dtype for parameter in model.parameters()}
        if len(dtypes) > 1:
            raise UserError(f"the model's parameters are of several dtypes: {sorted(map(str, dtypes))}")
        self.config = config
        self.shape = Shape(
            config.layers,
            config.model_dim,
            config.heads,
            config.n_kv_heads,
            config.head_size,
            config.mlp_size,
            config.vocab_size,
            config.norm_eps,
        )
        last = len(config.exit_layers) - 1
        self.output_VC, self.bias = model.head_weight(last).detach(), model.head_bias(last)
        self.softcap = config.logit_softcap
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        norms = [norm for block in blocks for norm in (block.attention_norm, block.mlp_norm)]
        angles_1S = torch.arange(slots, device=model.device)[None]
        cosines, sines = (
            each[0, :, 0].contiguous() for each in rotary_table(config, angles_1S, torch.float32)
        )
        self.weights = Weights(
            model.embeddings.tokens.weight.detach(),
            stacked([[norm] for norm in (*norms, model.head.norm)]),
            stacked([[block.attention.qkv] for block in blocks]),
            stacked([[block.attention.output] for block in blocks]),
            stacked([[block.mlp.gate, block.mlp.up] for block in blocks]),
            stacked([[block.mlp.down] for block in blocks]),
            cosines,
            sines,
        )

    def step(
        self, cache: KVCache, rows: int, *, advance: int = 1, plan: Plan | None = None, traced: bool = False
    ) -> DecodeStep:
        """A step of ``rows`` rows on a cache of as many slots as this was packed for; see `DecodeStep`."""
        return DecodeStep(
            self.shape,
            self.weights,
            self.output_VC,
            cache.k,
            cache.v,
            rows=rows,
            bias=self.bias,
            softcap=self.softcap,
            plan=plan,
            advance=advance,
            traced=traced,
        )


def stacked(modules_LX: Sequence[Sequence[nn.Module]]) -> Tensor:
    """Each layer's weights one above the other, layer by layer, in a new tensor that they become views of."""
    firsts = [module.get_parameter("weight") for module in modules_LX[0]]
    rows = sum(weight.shape[0] for weight in firsts)
    stack = firsts[0].new_empty(len(modules_LX), rows, *firsts[0].shape[1:])
    for layer, modules in zip(stack, modules_LX, strict=True):
        first = 0
        for module in modules:
            weight = module.get_parameter("weight")
            view = layer[first : first + weight.shape[0]].copy_(weight)
            weight.data = view
            first += weight.shape[0]
    return stack
