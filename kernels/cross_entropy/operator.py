"""The multi-exit loss as PyTorch operators, so that autograd, torch.compile and fake tensors know it.

``cross_entropy`` is what is called; autograd turns it into ``cross_entropy_gradients``, which makes the
gradients along with the loss, and ``scale_gradients`` in the backward pass. Needs Triton;
:mod:`lit_eff.kernels.cross_entropy.interface` checks arguments and calls it.

Shapes: N tokens, C model dim, V vocabulary (or this shard of it), E exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_eff.kernels.cross_entropy.call import ROW_SUMS, LossCall, Options, magnification
from lit_eff.kernels.cross_entropy.chunked import Gradients, run_chunks
from lit_eff.kernels.cross_entropy.reference import token_means
from lit_eff.kernels.cross_entropy.rows import exit_rows_kernel
from lit_eff.kernels.cross_entropy.scale import scale_launch
from lit_eff.kernels.cross_entropy.shards import sum_over

# Triton reads TRITON_INTERPRET when a kernel is decorated, that is when this package was imported.
INTERPRETED = not isinstance(exit_rows_kernel, triton.JITFunction)

# ``hiddens``: one (N, C) an exit, or all exits as one (E, N, C). ``dtype`` is that of the matrix products.
TENSORS = "Tensor[] hiddens, Tensor[] matrices, Tensor[] biases, Tensor targets_N, Tensor? token_weights_N"
SCALARS = (
    "int[] matrix_of, int[] bias_of_exit, float[] exit_weights, ScalarType dtype, int ignore_index, "
    "float label_smoothing, float z_loss, float? softcap, float distillation, float temperature, int? chunk, "
    "str? tokens_group, str? vocabulary_group, int first_column, int? vocabulary, int? columns"
)

LIBRARY: Any = torch.library.Library("lit_eff", "FRAGMENT")  # type: ignore[no-untyped-call]
COMPLIANT = (torch.Tag.pt2_compliant_tag,)
LIBRARY.define(f"cross_entropy({TENSORS}, {SCALARS}) -> (Tensor, Tensor)", tags=COMPLIANT)
LIBRARY.define(
    f"cross_entropy_gradients({TENSORS}, {SCALARS}, bool[] wanted) -> (Tensor, Tensor, Tensor[])",
    tags=COMPLIANT,
)
LIBRARY.define("scale_gradients(Tensor(a!)[] gradients, Tensor factor) -> ()", tags=COMPLIANT)
# The loss and its statistics (4, E), float32.
cross_entropy = torch.ops.lit_eff.cross_entropy.default
# Those, and what is wanted of: one (exits, N, C) gradient of hidden states, matrices, biases.
cross_entropy_gradients = torch.ops.lit_eff.cross_entropy_gradients.default
scale_gradients = torch.ops.lit_eff.scale_gradients.default


def _on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _exits(hiddens: Sequence[Tensor]) -> Sequence[Tensor]:
    return hiddens[0].unbind() if hiddens[0].ndim == 3 else hiddens


def _empty_gradients(
    hiddens: Sequence[Tensor], matrices: Sequence[Tensor], biases: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor]:
    """One tensor for the hidden states (if any is wanted), then one a wanted matrix and bias."""
    exits, sizes = _exits(hiddens), len(matrices)
    own, of_matrices = wanted[: len(exits)], wanted[len(exits) : len(exits) + sizes]
    found = [hiddens[0].new_empty(sum(own), *exits[0].shape)] if any(own) else []
    found += [each.new_empty(each.shape) for each, want in zip(matrices, of_matrices, strict=True) if want]
    of_biases = wanted[len(exits) + sizes :]
    found += [each.new_empty(each.shape) for each, want in zip(biases, of_biases, strict=True) if want]
    return found


def _gradients(
    hiddens: Sequence[Tensor],
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor],
    targets_N: Tensor,
    token_weights_N: Tensor | None,
    matrix_of: Sequence[int],
    bias_of_exit: Sequence[int],
    exit_weights: Sequence[float],
    dtype: torch.dtype,
    *others: Any,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    *plain, wanted = others
    options, exits = Options(*plain), _exits(hiddens)
    weights_N = token_means(targets_N, token_weights_N, options.ignore_index)
    total = weights_N.sum()
    sum_over(total, options.tokens_group)
    call = LossCall(
        exits,
        [matrix_VC.to(dtype) for matrix_VC in matrices],
        [bias_V.contiguous() for bias_V in biases],
        matrix_of,
        bias_of_exit,
        exit_weights,
        targets_N.contiguous(),
        weights_N / torch.where(total > 0, total, 1.0),
        wanted,
        options,
        weights_N.new_empty(len(ROW_SUMS), len(exits), targets_N.numel()),
    )
    of_matrices = wanted[len(exits) : len(exits) + len(matrices)]
    of_biases = wanted[len(exits) + len(matrices) :]
    hidden_ENC = exits[0].new_empty(sum(wanted[: len(exits)]), *exits[0].shape)
    each_hidden = iter(hidden_ENC)

    def wide(like: Tensor, wanted: bool) -> Tensor | None:
        return torch.empty(like.shape, dtype=torch.float32, device=like.device) if wanted else None

    sums = Gradients(
        [next(each_hidden) if want else None for want in wanted[: len(exits)]],
        list(map(wide, matrices, of_matrices)),
        list(map(wide, biases, of_biases)),
    )
    with _on_device_of(targets_N):
        run_chunks(call, sums)
    sums_5E = call.row_sums.sum(-1)
    sum_over(sums_5E, options.tokens_group)
    if hidden_ENC.numel():
        sum_over(hidden_ENC, options.vocabulary_group)
    found = [hidden_ENC] if hidden_ENC.shape[0] else []
    for total_, like in zip([*sums.matrix, *sums.bias], [*matrices, *biases], strict=True):
        if total_ is not None:
            found.append(total_.to(like.dtype))
    return sums_5E[0].sum(), sums_5E[1:].clone(), found


def _fake_gradients(
    hiddens: Sequence[Tensor],
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor],
    targets_N: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    loss = targets_N.new_empty((), dtype=torch.float32)
    statistics_4E = targets_N.new_empty(len(ROW_SUMS) - 1, len(_exits(hiddens)), dtype=torch.float32)
    return loss, statistics_4E, _empty_gradients(hiddens, matrices, biases, others[-1])


def _scale(gradients: Sequence[Tensor], factor: Tensor) -> None:
    with _on_device_of(factor):
        for gradient in gradients:
            if gradient.numel():
                scale_launch(gradient, factor).run()
    # A second backward pass is an error rather than a wrong result.
    torch.autograd.graph.increment_version(gradients)


class _Differentiable(torch.autograd.Function):
    """``tensors``: the hidden states, the matrices, the biases, of which there are ``counts``."""

    @staticmethod
    def forward(
        ctx: Any, counts: tuple[int, int, int], exits: int, others: Sequence[Any], *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        needed = ctx.needs_input_grad[3:]
        whole = counts[0] == 1 and tensors[0].ndim == 3
        wanted = [*(needed[:1] * exits if whole else needed[: counts[0]]), *needed[counts[0] :]]
        lists, rest = [], list(tensors)
        for count in counts:
            lists.append(rest[:count])
            del rest[:count]
        with torch._C._AutoDispatchBelowAutograd():
            loss, statistics_4E, gradients = cross_entropy_gradients(*lists, *others, wanted)
        ctx.save_for_backward(*gradients)
        ctx.needed, ctx.hiddens, ctx.whole = needed, counts[0], whole
        ctx.magnify = magnification(others[5], others[0].numel())
        ctx.mark_non_differentiable(statistics_4E)
        ctx.set_materialize_grads(False)
        return loss, statistics_4E

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        absent = (None, None, None)
        if dloss is None:
            return (*absent, *(None for _ in ctx.needed))
        gradients = list(ctx.saved_tensors)
        scale_gradients(gradients, dloss / ctx.magnify)
        hidden = any(ctx.needed[: ctx.hiddens])
        found = iter(gradients[hidden:])
        own = iter(gradients[:1] if ctx.whole else gradients[0].unbind()) if hidden else iter(())
        each = (
            next(own if index < ctx.hiddens else found) if needed else None
            for index, needed in enumerate(ctx.needed)
        )
        return (*absent, *each)


def _differentiable(hiddens: list[Tensor], matrices: list[Tensor], biases: list[Tensor], *others: Any) -> Any:
    tensors = [*hiddens, *matrices, *biases]
    counts = (len(hiddens), len(matrices), len(biases))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _Differentiable.apply(counts, len(_exits(hiddens)), others, *tensors)  # type: ignore[no-untyped-call]
    with torch._C._AutoDispatchBelowAutograd():
        return cross_entropy(hiddens, matrices, biases, *others)


def _no_gradients(
    hiddens: list[Tensor], matrices: list[Tensor], biases: list[Tensor], *others: Any
) -> tuple[Tensor, Tensor]:
    wanted = [False] * (len(_exits(hiddens)) + len(matrices) + len(biases))
    return cross_entropy_gradients(hiddens, matrices, biases, *others, wanted)[:2]  # type: ignore[no-any-return]


LIBRARY.impl("cross_entropy", _no_gradients, "CompositeExplicitAutograd")
LIBRARY.impl("cross_entropy", _differentiable, "Autograd")
LIBRARY.impl("cross_entropy_gradients", _gradients, "CompositeExplicitAutograd")
LIBRARY.impl("scale_gradients", _scale, "CompositeExplicitAutograd")
torch.library.register_fake("lit_eff::cross_entropy", lambda *_: _fake_gradients(*_, ())[:2], lib=LIBRARY)
torch.library.register_fake("lit_eff::cross_entropy_gradients", _fake_gradients, lib=LIBRARY)
torch.library.register_fake("lit_eff::scale_gradients", lambda *_: None, lib=LIBRARY)
