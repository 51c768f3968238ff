"""What a counted launch asked for, as the I/O models say it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lit_eff.profiling.counter import KernelCount


def requested(count: KernelCount, kind: str) -> dict[str, int]:
    """Bytes by tensor; ``kind`` is loads or stores."""
    sizes = {name: getattr(each, kind).requested_bytes for name, each in count.tensors.items()}
    return {name: size for name, size in sizes.items() if size}


def by_buffer(modelled: dict[str, int], counted: Iterable[str]) -> dict[str, int]:
    """Modelled bytes under the names of a count, in which views of one buffer are one, as ``gate+up``."""
    place = {part: name for name in counted for part in name.split("+")}
    sums: Counter[str] = Counter()
    for name, size in modelled.items():
        if size:
            sums[place.get(name, name)] += size
    return dict(sums)
