"""The loop over chunks of tokens and exits: logits, row kernel, gradients, and nothing else of their size.

Shapes: N tokens (n those of a chunk), C model dim, V vocabulary (or this shard of it), E exits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_eff.kernels.cross_entropy.call import Chunk, LossCall, Workspace
from lit_eff.kernels.cross_entropy.products import add_matrix_gradient, hidden_gradient, make_logits
from lit_eff.kernels.cross_entropy.rows import row_launch
from lit_eff.kernels.cross_entropy.shards import merge_shards


@dataclass(frozen=True)
class Gradients:
    """Sums as they stand, all magnified by `LossCall.magnify`; None where nobody wants one."""

    hidden: list[Tensor | None]  # (N, C) an exit
    matrix: list[Tensor | None]  # (V, C) float32
    bias: list[Tensor | None]  # (V,) float32


def run_chunks(call: LossCall, gradients: Gradients) -> None:
    """Fill ``call.row_sums`` and ``gradients`` (uninitialised before)."""
    chunks = call.chunks()
    touched: set[int] = set()
    for total in gradients.bias:
        if total is not None:
            total.zero_()
    if chunks:
        workspace = Workspace(call, chunks[0].stop)
        for rows in chunks:
            for e in reversed(range(call.exits)):  # the last exit first: the others are compared with it
                _run_exit(call, workspace.chunk(rows, e), e, gradients, touched)
    for m, total in enumerate(gradients.matrix):
        if total is not None and m not in touched:
            total.zero_()


def _run_exit(call: LossCall, chunk: Chunk, e: int, gradients: Gradients, touched: set[int]) -> None:
    m, width = call.matrix_of[e], call.width
    hidden_nC, matrix_VC = call.hiddens[e][chunk.rows].to(call.dtype), call.matrices[m]
    make_logits(chunk.logits[:, :width], hidden_nC, matrix_VC)
    if chunk.state is None:
        row_launch(call, chunk, e, statistics=True, finish=True).run()
    else:
        row_launch(call, chunk, e, statistics=True, finish=False).run()
        merge_shards(chunk.state, call.options)
        row_launch(call, chunk, e, statistics=False, finish=True).run()
    grad_hidden = gradients.hidden[e]
    if not call.needs_gradient(e):
        if grad_hidden is not None:
            grad_hidden[chunk.rows].zero_()
        return
    gradient_nV = chunk.gradient[:, :width]
    if grad_hidden is not None:
        hidden_gradient(grad_hidden[chunk.rows], gradient_nV, matrix_VC)
    if (grad_matrix := gradients.matrix[m]) is not None:
        add_matrix_gradient(grad_matrix, gradient_nV, hidden_nC, first=m not in touched)
        touched.add(m)
    if call.wants_bias(e) and (grad_bias := gradients.bias[call.bias_of_exit[e]]) is not None:
        grad_bias += torch.sum(gradient_nV, dim=0, dtype=grad_bias.dtype)
