"""What a counted launch asked for, as the I/O models say it."""

from __future__ import annotations

from lit_eff.profiling.counted import KernelCount


def requested(count: KernelCount, kind: str) -> dict[str, int]:
    """Bytes by tensor; ``kind`` is loads or stores."""
    sizes = {name: getattr(each, kind).requested_bytes for name, each in count.tensors.items()}
    return {name: size for name, size in sizes.items() if size}
