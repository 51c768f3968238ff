"""FSDP2: each rank keeps a slice of every parameter and gathers a layer's just before it runs."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from lit_eff.errors import UserError
from lit_eff.models.transformer import Transformer


def shard_model(model: Transformer, mesh: DeviceMesh, *, precision: str = "32-true") -> Transformer:
    """Shard ``model`` in place over the mesh's data-parallel ranks: each layer on its own, then the rest.

    A layer's full parameters live while it runs, forward and again backward; those of embeddings and heads
    from the first layer to the end of the backward pass, because losses read the output matrix outside the
    model's ``forward``. Build the optimizer after this: one built before holds parameters that no longer
    train.

    Args:
        mesh: one dimension, or Lightning's two (``data_parallel``, ``tensor_parallel``).
        precision: Lightning's name. ``bf16-mixed`` and ``bf16-true`` gather parameters in bfloat16, half the
            traffic; gradients are summed over the ranks in float32 all the same.

    Raises:
        UserError: the mesh has a tensor-parallel dimension larger than 1.
    """
    if mesh.ndim == 2:
        if mesh["tensor_parallel"].size() > 1:
            raise UserError(
                f"strategy.tensor_parallel_size is {mesh['tensor_parallel'].size()}; this model shards over "
                "data-parallel ranks alone: set it to 1"
            )
        mesh = mesh["data_parallel"]
    policy = MixedPrecisionPolicy()
    if precision.startswith("bf16"):
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    return model


def reshard(module: nn.Module) -> None:
    """Drop gathered parameters, so that ``module.parameters()`` are the sharded ones and the next forward
    pass gathers anew. Needed around any change of weights that no backward pass came before.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
