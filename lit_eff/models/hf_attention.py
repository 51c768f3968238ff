"""Our attention under Hugging Face models, through transformers' AttentionInterface: their code is untouched.

    register_attention()
    model = AutoModelForCausalLM.from_config(config, attn_implementation="lit_eff")

Shapes: B batch, H query heads, K kv heads, T query length, S key length, D head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lit_eff.errors import UserError, require
from lit_eff.kernels.attention import attention

NAME = "lit_eff"


def register_attention(name: str = NAME) -> str:
    """Make ``attn_implementation=name`` mean our attention, for every model of this process.

    Masks are causal or none, with the model's own sliding window and softcap. Padding is refused: lay texts
    end to end instead. While torch.compile traces a model, position ids that start again within a row cannot
    be seen, and are not told apart.

    Returns: ``name``.

    Raises:
        UserError: transformers is not installed, or too old to have the interface.
    """
    require("transformers", "hf")
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface
    except ImportError as error:
        raise UserError(f"transformers is too old ({error}); run: pip install -U transformers") from error
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, no_mask)
    return name


def no_mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    **_: Any,
) -> None:
    """In place of a mask tensor, nothing: :func:`attend` masks by rule, the last query at the last key.

    Raises:
        UserError: for what the rule cannot say: padding, packed rows, a static cache, a model's own mask.
    """
    # Traced, the mask cannot be read; else, one that hides nothing may be ignored.
    if attention_mask is not None and (torch.compiler.is_compiling() or not bool(attention_mask.all())):
        raise UserError("lit_eff attention takes no padding: lay texts end to end, without an attention_mask")
    if isinstance(q_offset, Tensor) or kv_offset + kv_length != q_offset + q_length:
        raise UserError("lit_eff attention cannot read a static cache: use transformers' dynamic one")
    # Traced, transformers cannot tell packed rows from others, and forbids leaving the mask out for all.
    if use_vmap or not (allow_is_causal_skip or torch.compiler.is_compiling()):
        raise UserError("lit_eff attention cannot follow packed positions or a mask of the model's own")


def attend(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as Hugging Face's modules call it; the output is (B, T, H, D), the weights are never made.

    Raises:
        UserError: for a mask tensor, or an option that has no meaning here.
    """
    unknown = [name for name in ("position_bias", "s_aux") if options.get(name) is not None]
    if attention_mask is not None or unknown:
        raise UserError(f"lit_eff attention cannot take {unknown[0] if unknown else 'a mask tensor'} here")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    extra: dict[str, Any] = {"dropout_p": dropout} if dropout > 0 else {}
    out_BTHD = attention(
        query_BHTD.transpose(1, 2),
        key_BKSD.transpose(1, 2),
        value_BKSD.transpose(1, 2),
        causal=causal,
        window=sliding_window,
        softcap=softcap,
        scale=scaling,
        **extra,
    )
    assert isinstance(out_BTHD, Tensor)
    return out_BTHD, None
