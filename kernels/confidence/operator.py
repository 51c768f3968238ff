"""Exit confidence as a PyTorch operator, so that torch.compile, fake tensors and CUDA graphs know it.

Needs Triton; :mod:`lit_eff.kernels.confidence.interface` checks arguments and calls it.
Shapes: N rows, C model dim, V vocabulary, S scale groups.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from lit_eff.kernels.confidence.blocks import confidence_blocks_kernel
from lit_eff.kernels.confidence.join import confidence_join_kernel
from lit_eff.kernels.linear.call import Product
from lit_eff.kernels.linear.operator import norm_of
from lit_eff.profiling.launch import Launch

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # the fields of `ExitConfidence`


@dataclass(frozen=True)
class Partials:
    """What each block of the vocabulary yields for each row, (N, blocks); `blocks.summary` says what."""

    max: Tensor
    best: Tensor  # int32
    second: Tensor
    sum: Tensor
    moment: Tensor

    @classmethod
    def empty(cls, rows: int, blocks: int, device: torch.device) -> Partials:
        floats = torch.empty((4, rows, blocks), dtype=torch.float32, device=device)
        best = torch.empty((rows, blocks), dtype=torch.int32, device=device)
        return cls(floats[0], best, floats[1], floats[2], floats[3])

    def arguments(self) -> dict[str, Tensor]:
        return {f"p_{name}": tensor for name, tensor in vars(self).items()}


def empty_outputs(hidden_NC: Tensor) -> Outputs:
    floats = [hidden_NC.new_empty(hidden_NC.shape[0], dtype=torch.float32) for _ in range(4)]
    token_N = hidden_NC.new_empty(hidden_NC.shape[0], dtype=torch.int64)
    return token_N, *floats, hidden_NC.new_empty(hidden_NC.shape[0], dtype=torch.bool)  # type: ignore[return-value]


def launches(
    product: Product,
    bias: Tensor | None,
    softcap: float | None,
    limit_N: Tensor,
    measure: str,
    outputs: Outputs,
) -> list[Launch]:
    """One launch over the output matrix's blocks, then their join into ``outputs``."""
    overlaps = product.capability >= 90  # the join may start while the last blocks are read
    plan, vocabulary = product.plan, product.weight_OC.shape[0]
    blocks = triton.cdiv(vocabulary, plan.block_o)
    partials = Partials.empty(product.rows, blocks, product.x_NC.device)
    unit = 1.0 if softcap is None else float(softcap)  # of what the blocks take for logits
    shared = {
        **partials.arguments(),
        "blocks": blocks,
        "vocabulary": vocabulary,
        "factor": unit * math.log2(math.e),
    }
    arguments = {
        **product.arguments(),
        **shared,
        "p_bias": None if bias is None else bias.contiguous(),
        "EARLY": overlaps,
        "inverse_cap": None if softcap is None else 1.0 / unit,
    }
    grid = (product.row_tiles * blocks,)
    read = Launch(confidence_blocks_kernel, grid, arguments, plan.num_warps, plan.num_stages, early=overlaps)
    names = ("p_token", "p_probability", "p_gap", "p_entropy", "p_lse", "p_exit")
    arguments = {
        **shared,
        **dict(zip(names, outputs, strict=True)),
        "p_threshold": limit_N,
        "unit": unit,
        # Of one token the entropy is 0, and so 1 - 0 * 0 is right.
        "inverse_log_vocabulary": 1.0 / math.log(vocabulary) if vocabulary > 1 else 0.0,
        "BLOCKS": triton.next_power_of_2(blocks),
        "MEASURE": measure,
        "EARLY": overlaps,
    }
    join = Launch(confidence_join_kernel, (product.rows,), arguments, 4, 1, early=overlaps)
    return [read, join]


@torch.library.custom_op("lit_eff::exit_confidence", mutates_args=())
def exit_confidence(
    hidden_NC: Tensor,
    weight_VC: Tensor,
    scales_VS: Tensor | None,
    normed: bool,
    gain_C: Tensor | None,
    shift_C: Tensor | None,
    epsilon: float,
    centered: bool,
    bias: Tensor | None,
    softcap: float | None,
    limit_N: Tensor,
    measure: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `ExitConfidence`."""
    outputs = empty_outputs(hidden_NC)
    if hidden_NC.shape[0] == 0:
        return outputs
    product = Product(hidden_NC, weight_VC, scales_VS, norm_of((normed, gain_C, shift_C, epsilon, centered)))
    with torch.cuda.device(hidden_NC.device) if hidden_NC.is_cuda else nullcontext():
        for launch in launches(product, bias, softcap, limit_N, measure, outputs):
            launch.run()
    return outputs


@exit_confidence.register_fake
def _(hidden_NC: Tensor, *_: Any) -> Outputs:
    return empty_outputs(hidden_NC)
