"""The public function: checks, then the operator.

Shapes: N tokens, C model dim, V vocabulary (or this shard of it), E exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.cross_entropy.checks import Exits, check_exits, check_numbers, check_tokens
from lit_eff.kernels.cross_entropy.reference import (
    IGNORED,
    ExitLosses,
    multi_exit_cross_entropy_reference,
)
from lit_eff.kernels.device import TRITON_INSTALLED, device_obstacle

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from lit_eff.kernels.cross_entropy.shards import VocabularyShard

if TRITON_INSTALLED:
    from lit_eff.kernels.cross_entropy import operator


def multi_exit_cross_entropy(
    hidden_ENC: Tensor | Sequence[Tensor],
    weight_VC: Tensor | Sequence[Tensor],
    targets_N: Tensor,
    *,
    bias_V: Tensor | Sequence[Tensor | None] | None = None,
    exit_weights: Sequence[float] | None = None,
    token_weights_N: Tensor | None = None,
    ignore_index: int = IGNORED,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    distillation: float = 0.0,
    temperature: float = 1.0,
    chunk: int | None = None,
    tokens_group: ProcessGroup | None = None,
    vocabulary: VocabularyShard | None = None,
    columns: int | None = None,
) -> ExitLosses:
    """Cross-entropy of several exits' hidden states through their output matrices, without the logits.

    Of each exit, over the tokens that count (by their weights, normalised to sum to 1)::

        logits = softcap(hidden @ weight.T + bias)
        loss   = mean((1 - distillation) * smoothed_nll + distillation * temperature^2 * KL(last || exit)
                      + z_loss * logsumexp(logits)^2)

    and of all exits the sum, each times its weight. The last exit learns from the targets alone and is
    detached where it teaches. A chunk of logits exists at a time; its gradients are made at once, added up in
    float32 for an output matrix however many exits share it, and only scaled in the backward pass, in place:
    they can be taken once. Under autocast the products run in its dtype.

    On a CPU (without Triton's interpreter) the plain reference runs instead, logits and all.

    Args:
        hidden_ENC: (E, N, C), or (N, C) an exit of any strides, the last exit last; float16, bfloat16 or
            float32.
        weight_VC: (V, C), or one an exit. Exits whose weight is the same object share one gradient.
        targets_N: int64. A target that is neither in the vocabulary nor ignored is an error on a CPU, and
            makes the loss NaN on a GPU.
        bias_V: likewise (V,); None for none.
        exit_weights: what each exit's loss weighs; 1 / E by default. An exit of weight 0 yields statistics
            (and teaches) but no gradient.
        token_weights_N: what each token counts, 0 or more; 1 by default. No gradient flows to them.
        ignore_index: tokens with this target count nowhere, and their logits are not looked at.
        label_smoothing: share of the target distribution that is uniform, 0 to 1.
        z_loss: factor on the squared log-sum-exp.
        softcap: logits become ``softcap * tanh(logits / softcap)``.
        distillation: share of the intermediate exits' loss that is the divergence from the last exit.
        temperature: divides both exits' logits in that divergence.
        chunk: tokens whose logits are held at a time; by default about 0.28 GB of logits, 0.57 GB for
            several exits.
        tokens_group: the tokens are dealt out over these processes: sums run over all of them, so that every
            process has the loss of all tokens. Its gradients are those of its own tokens' part: add up a
            shared matrix's over the group, as of any parameter.
        vocabulary: this process holds some rows of the output matrices (and biases) and all tokens. Hidden
            gradients are summed over the group, in the hidden dtype.
        columns: only so many rows of the output matrices are the vocabulary; those after them round its size
            up (products of whole tiles are fast), take no part in the softmax, and get a zero gradient.

    Returns:
        The loss and, per exit, mean cross-entropy, accuracy, agreement with the last exit, confidence.

    Raises:
        UserError: naming the argument that does not fit, before anything runs.

    Source: gradients in the forward pass as in Liger Kernel (Hsu et al. 2024); softmax of a row online
    (Milakov & Gimelshein 2018); z-loss of PaLM (Chowdhery et al. 2022, section 5); distillation of Hinton et
    al. 2015; sharded vocabulary as in Megatron-LM (Shoeybi et al. 2019).
    """
    exits = check_exits(hidden_ENC, weight_VC, bias_V, exit_weights)
    check_tokens(exits, targets_N, token_weights_N, ignore_index, vocabulary, columns)
    check_numbers(label_smoothing, z_loss, softcap, distillation, temperature, chunk)
    device = targets_N.device
    if tokens_group is not None and vocabulary is not None and tokens_group is vocabulary.group:
        raise UserError(
            "multi_exit_cross_entropy: tokens_group and vocabulary.group are one group; with the vocabulary "
            "dealt out, every process of the group needs all tokens: gather the hidden states first"
        )
    fault = obstacle(device)
    if device.type == "cpu" and fault is not None:
        if tokens_group is not None or vocabulary is not None:
            raise UserError(
                "multi_exit_cross_entropy: tokens_group and vocabulary need the kernels, which need a GPU "
                "(for tests on a CPU, set TRITON_INTERPRET=1 before lit_eff is imported)"
            )
        return _plain(
            exits,
            targets_N,
            token_weights_N,
            columns,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            distillation=distillation,
            temperature=temperature,
        )
    if fault is not None:
        raise UserError(f"multi_exit_cross_entropy cannot run: {fault}")
    dtype = exits.hiddens[0].dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    with torch.autocast(device.type, enabled=False):
        loss, statistics_4E = operator.cross_entropy(
            [hidden_ENC] if isinstance(hidden_ENC, Tensor) else exits.hiddens,
            exits.matrices,
            exits.biases,
            targets_N,
            token_weights_N,
            exits.matrix_of,
            exits.bias_of_exit,
            exits.exit_weights,
            dtype,
            ignore_index,
            float(label_smoothing),
            float(z_loss),
            None if softcap is None else float(softcap),
            float(distillation),
            float(temperature),
            chunk,
            None if tokens_group is None else tokens_group.group_name,
            None if vocabulary is None else vocabulary.group.group_name,
            0 if vocabulary is None else vocabulary.start,
            None if vocabulary is None else vocabulary.size,
            columns,
        )
    return ExitLosses(loss, *statistics_4E.unbind())


def obstacle(device: torch.device | str) -> str | None:
    """Why the kernels cannot run on ``device``; None if they can."""
    return None if TRITON_INSTALLED and operator.INTERPRETED else device_obstacle(torch.device(device))


def _plain(
    exits: Exits,
    targets_N: Tensor,
    token_weights_N: Tensor | None,
    columns: int | None,
    **numbers: float | None,
) -> ExitLosses:
    """The reference in the dtype of the inputs, or the autocast's; sums are float32."""
    matrices, biases = exits.matrices, exits.biases
    if columns is not None:
        matrices, biases = [m[:columns] for m in matrices], [b[:columns] for b in biases]
    return multi_exit_cross_entropy_reference(
        exits.hiddens,
        [matrices[m] for m in exits.matrix_of],
        targets_N,
        biases=[None if b < 0 else biases[b] for b in exits.bias_of_exit],
        exit_weights=exits.exit_weights,
        token_weights_N=token_weights_N,
        accumulate=torch.promote_types(exits.hiddens[0].dtype, torch.float32),
        **numbers,  # type: ignore[arg-type]
    )
