"""Every shipped attention kernel compiled for GPUs that need not be here: shared memory and spills."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_eff.bench.attention_check import Outcome
from lit_eff.errors import UserError

# Capability and the card whose shared memory the tiles must fit: sm_80 tiles serve the Ada cards too.
TARGETS = {80: "L4", 90: "H100 SXM"}
HEAD_DIMS = (16, 32, 64, 128, 256)  # what a tile's width can be
DEFAULT_HEAD_DIMS = (64, 128)
USUAL = {"batch": 4, "queries": 1024, "keys": 1024, "heads": 16, "kv_heads": 4}


@dataclass(frozen=True)
class Budget:
    """One form of the kernels for one target. A default one may not spill; any must fit shared memory."""

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
        return self.head_dim in DEFAULT_HEAD_DIMS and self.dtype != "float32"


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
    from lit_eff.profiling.devices import get_device

    limit = get_device(TARGETS[budget.capability]).shared_memory_per_block
    faults = []
    try:
        for each in _compiled(budget):
            if each.shared_memory_bytes > limit:
                taken = f"{each.shared_memory_bytes} B of shared memory, of {limit}"
                faults.append(f"{each.kernel} takes {taken}")
            if budget.is_default and each.spill_store_bytes + each.spill_load_bytes:
                spilled = f"{each.spill_store_bytes} B stored, {each.spill_load_bytes} B loaded"
                faults.append(f"{each.kernel} spills registers: {spilled} a thread")
    except UserError as error:
        faults.append(str(error))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        faults.append(f"{type(error).__name__}: {lines[-1]}")
    return Outcome(budget.name, tuple(faults))


def _compiled(budget: Budget) -> Sequence[Any]:
    import torch

    from lit_eff.kernels.attention.io_model import AttentionShape
    from lit_eff.kernels.attention.resources import compiled_resources

    dtype = getattr(torch, budget.dtype)
    shape = AttentionShape(**USUAL, head_dim=budget.head_dim, causal=budget.causal)
    if budget.kernels == "portable":
        return compiled_resources(shape, dtype, budget.capability)
    if budget.kernels == "hopper":
        from lit_eff.kernels.attention.hopper.resources import compiled_resources as hopper_resources

        return hopper_resources(shape, dtype)  # type: ignore[no-any-return]
    from lit_eff.kernels.attention.with_cache.resources import compiled_resources as cache_resources

    return cache_resources(budget.head_dim, dtype, budget.capability)  # type: ignore[no-any-return]
