"""Every shipped attention kernel compiled for GPUs that need not be here: shared memory and spills."""

from __future__ import annotations

from dataclasses import dataclass

from lit_eff.bench.budgets import TARGETS, resource_faults
from lit_eff.bench.checks import Outcome
from lit_eff.profiling.launch import Launch

HEAD_DIMS = (16, 32, 64, 128, 256)  # what a tile's width can be
DEFAULT_HEAD_DIMS = (64, 128)
BATCH, LENGTH, HEADS, KV_HEADS = 4, 1024, 16, 4
PAGE_SIZE = 64
# Bytes a thread that a default kernel may keep in local memory after all. Hopper's forward: a size, used once
# a tile. Gradients: the lanes' own places in shared memory, of which four are read back in each step.
SPILLS = {"attention_forward_kernel": 8, "attention_gradient_kernel": 80}


@dataclass(frozen=True)
class Budget:
    """One form of the kernels for one target. Any must fit shared memory, a default one not spill (`SPILLS`).

    Default: half precision, the usual head dims, and the kernels that a target takes by itself: on sm_90
    those for Hopper, elsewhere the portable ones.
    """

    kernels: str  # portable, hopper or cache
    capability: int
    dtype: str
    head_dim: int
    causal: bool = True

    @property
    def name(self) -> str:
        mask = "causal" if self.causal else "full"
        return f"budget, {self.kernels}, sm_{self.capability}, dim {self.head_dim}, {mask}, {self.dtype}"

    @property
    def is_default(self) -> bool:
        usual = self.head_dim in DEFAULT_HEAD_DIMS and self.dtype != "float32"
        return usual and (self.kernels, self.capability) != ("portable", 90)


def budgets() -> list[Budget]:
    found = [
        Budget(kernels, capability, dtype, head_dim)
        for kernels in ("portable", "cache")
        for capability in TARGETS
        for dtype in ("bfloat16", "float32")
        for head_dim in HEAD_DIMS
    ]
    found += [
        Budget("hopper", 90, "bfloat16", head_dim, causal)
        for head_dim in DEFAULT_HEAD_DIMS
        for causal in (True, False)
    ]
    return found


def check_budget(budget: Budget) -> Outcome:
    """Compile and compare; an error of the compiler is a fault."""
    faults = resource_faults(
        lambda: launches(budget), budget.capability, SPILLS if budget.is_default else None
    )
    return Outcome(budget.name, faults)


def launches(budget: Budget) -> list[Launch]:
    """The launches of one call on tensors without storage."""
    import torch

    with torch.device("meta"):
        return _cache_launches(budget) if budget.kernels == "cache" else _launches(budget)


def _launches(budget: Budget) -> list[Launch]:
    """Forward and backward."""
    import torch

    from lit_eff.kernels.attention.call import AttentionCall

    dtype = getattr(torch, budget.dtype)
    q_BTHD = torch.empty(BATCH, LENGTH, HEADS, budget.head_dim, dtype=dtype)
    k_BSKD = torch.empty(BATCH, LENGTH, KV_HEADS, budget.head_dim, dtype=dtype)
    lse_BHT = torch.empty(BATCH, HEADS, LENGTH)
    scale = budget.head_dim**-0.5
    call = AttentionCall(
        q_BTHD, k_BSKD, k_BSKD, None, None, None, scale, budget.causal, None, None, target=budget.capability
    )
    gradients = (call, q_BTHD, lse_BHT, q_BTHD, None, lse_BHT, q_BTHD, k_BSKD, k_BSKD)
    if budget.kernels == "hopper":
        from lit_eff.kernels.attention.hopper.backward import backward_launches
        from lit_eff.kernels.attention.hopper.forward import forward_launch

        return [forward_launch(call, q_BTHD, lse_BHT), *backward_launches(*gradients)]
    from lit_eff.kernels.attention import backward, forward

    return [*forward.forward_launches(call, q_BTHD, lse_BHT), *backward.backward_launches(*gradients)]


def _cache_launches(budget: Budget) -> list[Launch]:
    """Split and combine on a long cache; one launch on a short one of many rows; pages, with a tree mask."""
    import torch

    from lit_eff.kernels.attention.with_cache.call import CacheCall
    from lit_eff.kernels.attention.with_cache.operator import launches as cache_launches

    dtype = getattr(torch, budget.dtype)
    found = []
    for batch, slots, paged in ((1, 65536, False), (512, 1024, False), (4, 8192, True)):
        q_BTHD = torch.empty(batch, 8, HEADS, budget.head_dim, dtype=dtype)
        sizes = (batch * slots // PAGE_SIZE, PAGE_SIZE) if paged else (batch, slots)
        cache = torch.empty(*sizes, KV_HEADS, budget.head_dim, dtype=dtype)
        call = CacheCall(
            q_BTHD,
            cache,
            cache,
            torch.empty(batch, dtype=torch.int32),
            torch.empty(batch, slots // PAGE_SIZE, dtype=torch.int32) if paged else None,
            None,
            torch.empty(batch, 8, 8, dtype=torch.bool) if paged else None,
            None,
            None,
            budget.head_dim**-0.5,
            None,
            None,
            None,
            target=budget.capability,
        )
        found += cache_launches(call, q_BTHD, torch.empty(batch, HEADS, 8))
    return found
