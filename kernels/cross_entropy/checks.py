"""What the public function refuses, before anything is launched and in one line each.

Shapes: N tokens, C model dim, V vocabulary (or this shard of it), E exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lit_eff.errors import UserError

if TYPE_CHECKING:
    from lit_eff.kernels.cross_entropy.shards import VocabularyShard

WHO = "multi_exit_cross_entropy"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_VOCABULARY = 2**24  # columns that float32 tells apart


class Exits(NamedTuple):
    """The exits' tensors, each distinct one once; ``bias_of_exit`` is -1 where there is none."""

    hiddens: list[Tensor]
    matrices: list[Tensor]
    biases: list[Tensor]
    matrix_of: list[int]
    bias_of_exit: list[int]
    exit_weights: list[float]


def check_exits(
    hidden_ENC: Tensor | Sequence[Tensor],
    weight_VC: Tensor | Sequence[Tensor],
    bias_V: Tensor | Sequence[Tensor | None] | None,
    exit_weights: Sequence[float] | None,
) -> Exits:
    """Shapes, dtypes and devices of the exits' tensors; one entry an exit."""
    if isinstance(hidden_ENC, Tensor):
        if hidden_ENC.ndim != 3:
            raise UserError(f"{WHO} wants hidden_ENC (E, N, C) or a list of (N, C); got {_s(hidden_ENC)}")
        hiddens = list(hidden_ENC.unbind())
    else:
        hiddens = list(hidden_ENC)
    if not hiddens:
        raise UserError(f"{WHO} got no hidden states; it wants those of at least one exit")
    exits = len(hiddens)
    weights = [weight_VC] * exits if isinstance(weight_VC, Tensor) else list(weight_VC)
    biases = [bias_V] * exits if bias_V is None or isinstance(bias_V, Tensor) else list(bias_V)
    shares = [1.0 / exits] * exits if exit_weights is None else [float(each) for each in exit_weights]
    for name, found in (("weight_VC", weights), ("bias_V", biases), ("exit_weights", shares)):
        if len(found) != exits:
            raise UserError(f"{WHO}: {exits} exits but {len(found)} entries of {name}; give one an exit")
    matrices: list[Tensor] = []
    distinct: list[Tensor] = []
    matrix_of = [position_in(matrices, weight) for weight in weights]
    bias_of = [-1 if bias is None else position_in(distinct, bias) for bias in biases]
    first, matrix = hiddens[0], matrices[0]
    if first.ndim != 2 or matrix.ndim != 2 or first.shape[1] != matrix.shape[1]:
        raise UserError(
            f"{WHO} wants hidden states (N, C) and weights (V, C); got {_s(first)} and {_s(matrix)}"
        )
    if first.dtype not in DTYPES and first.device.type != "cpu":
        raise UserError(f"{WHO}: hidden states of {first.dtype}; expected float16, bfloat16 or float32")
    if not 0 < matrix.shape[0] <= MAX_VOCABULARY:
        raise UserError(f"{WHO}: a vocabulary of {matrix.shape[0]}; expected 1 to {MAX_VOCABULARY}")
    _check_alike("hidden states", hiddens, first.shape, first.dtype, first.device)
    mixed = torch.is_autocast_enabled(first.device.type)  # casts all to its own dtype
    dtype = matrix.dtype if mixed else first.dtype
    _check_alike("weights", matrices, matrix.shape, dtype, first.device)
    if distinct:
        bias_dtype = distinct[0].dtype if mixed else first.dtype
        _check_alike("biases", distinct, matrix.shape[:1], bias_dtype, first.device)
    return Exits(hiddens, matrices, distinct, matrix_of, bias_of, shares)


def check_tokens(
    exits: Exits,
    targets_N: Tensor,
    token_weights_N: Tensor | None,
    ignore_index: int,
    vocabulary: VocabularyShard | None,
    in_vocabulary: int | None,
) -> None:
    """Targets and token weights; the part or shard of the vocabulary; on a CPU the targets' values too."""
    tokens, columns = exits.hiddens[0].shape[0], exits.matrices[0].shape[0]
    device = exits.hiddens[0].device
    for name, tensor in (("targets_N", targets_N), ("token_weights_N", token_weights_N)):
        if tensor is None:
            continue
        if tensor.shape != (tokens,):
            raise UserError(
                f"{WHO}: {name} must have shape ({tokens},), as the hidden states; got {_s(tensor)}"
            )
        if tensor.device != device:
            raise UserError(f"{WHO}: {name} is on {tensor.device}, the hidden states on {device}")
    if targets_N.dtype != torch.int64:
        raise UserError(f"{WHO}: targets_N is {targets_N.dtype}; expected int64")
    if token_weights_N is not None and not token_weights_N.is_floating_point():
        raise UserError(f"{WHO}: token_weights_N is {token_weights_N.dtype}; expected a floating type")
    if in_vocabulary is not None:
        if vocabulary is not None:
            raise UserError(f"{WHO}: columns is {in_vocabulary}, but a vocabulary dealt out has no padding")
        if not 0 < in_vocabulary <= columns:
            raise UserError(
                f"{WHO}: columns is {in_vocabulary}; expected 1 to {columns}, the rows of weight_VC"
            )
    size = in_vocabulary or columns
    if vocabulary is not None:
        size = vocabulary.size
        if vocabulary.start < 0 or vocabulary.start + columns > size or size > MAX_VOCABULARY:
            raise UserError(
                f"{WHO}: {columns} rows of the matrix from {vocabulary.start} do not lie in a vocabulary of "
                f"{size} (at most {MAX_VOCABULARY})"
            )
    if device.type == "cpu" and tokens and not torch.compiler.is_compiling():
        counted = targets_N[targets_N != ignore_index]
        if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < size:
            raise UserError(
                f"{WHO}: targets from {int(counted.min())} to {int(counted.max())}; expected 0 to "
                f"{size - 1}, or {ignore_index} to ignore"
            )


def check_numbers(
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    distillation: float,
    temperature: float,
    chunk: int | None,
) -> None:
    for name, share in (("label_smoothing", label_smoothing), ("distillation", distillation)):
        if not 0.0 <= share <= 1.0:
            raise UserError(f"{WHO}: {name} is {share}; expected a number from 0 to 1")
    if not z_loss >= 0.0:
        raise UserError(f"{WHO}: z_loss is {z_loss}; expected 0 or more")
    if softcap is not None and not softcap > 0.0:
        raise UserError(f"{WHO}: softcap {softcap} must be positive, or None for no cap")
    if not temperature > 0.0:
        raise UserError(f"{WHO}: temperature {temperature} must be positive")
    if chunk is not None and chunk < 1:
        raise UserError(f"{WHO}: chunk {chunk} must be at least 1 token, or None")


def position_in(tensors: list[Tensor], wanted: Tensor) -> int:
    """Where ``wanted`` itself stands among ``tensors``, to which it is added if it does not."""
    for position, tensor in enumerate(tensors):
        if tensor is wanted:
            return position
    tensors.append(wanted)
    return len(tensors) - 1


def _check_alike(
    name: str, tensors: Sequence[Tensor], shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> None:
    for tensor in tensors:
        if tensor.shape != shape:
            raise UserError(f"{WHO}: {name} of shapes {_s(tensor)} and {tuple(shape)}; expected one shape")
        if tensor.dtype != dtype:
            raise UserError(f"{WHO}: {name} of {tensor.dtype}; expected {dtype} (or autocast)")
        if tensor.device != device:
            raise UserError(f"{WHO}: {name} on {tensor.device}; the hidden states are on {device}")


def _s(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
