"""Kernels compiled for GPUs that need not be here: do they fit shared memory, do they spill registers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lit_eff.profiling.launch import Launch

# Capability and the card whose shared memory the tiles must fit: sm_80 tiles serve the Ada cards too.
TARGETS = {80: "L4", 90: "H100 SXM"}


def resource_faults(
    launches: Callable[[], Sequence[Launch]], capability: int, spills: Mapping[str, int] | None
) -> tuple[str, ...]:
    """What is wrong with the launches on one of `TARGETS`; an error of the compiler is a fault.

    Args:
        spills: bytes a thread that a kernel, by its name, may keep in local memory: 0 if absent. None: any.
    """
    from lit_eff.profiling.compiled import compile_launch
    from lit_eff.profiling.devices import get_device

    limit = get_device(TARGETS[capability]).shared_memory_per_block
    faults = []
    try:
        for launch in launches():
            each = compile_launch(launch, capability)
            if each.shared_memory_bytes > limit:
                taken = f"{each.shared_memory_bytes} B of shared memory, of {limit}"
                faults.append(f"{each.kernel} takes {taken}")
            if spills is not None and each.spill_store_bytes > spills.get(each.kernel, 0):
                both = f"{each.spill_store_bytes} B stored, {each.spill_load_bytes} B loaded"
                faults.append(f"{each.kernel} spills registers: {both} a thread")
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        faults.append(f"{type(error).__name__}: {lines[-1]}")
    return tuple(faults)
