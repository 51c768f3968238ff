"""Requests added up while an I/O model walks through a kernel's programs: how many bytes, and which."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from lit_eff.profiling.modelled import Traffic, sector_bytes

Range = tuple[int, int]


def span(start: int, count: int, size: int) -> Range:
    """The bytes of ``count`` elements of ``size`` bytes from element ``start`` of a tensor on."""
    return start * size, (start + count) * size


@dataclass
class Requests:
    """Bytes by tensor, and the ranges of bytes that are read of each."""

    reads: Counter[str] = field(default_factory=Counter)
    writes: Counter[str] = field(default_factory=Counter)
    atomics: Counter[str] = field(default_factory=Counter)
    ranges: defaultdict[str, set[Range]] = field(default_factory=lambda: defaultdict(set))

    def read(self, name: str, span: Range, times: int = 1) -> None:
        """The bytes of a range, ``times`` over."""
        if times and span[0] < span[1]:
            self.reads[name] += times * (span[1] - span[0])
            self.ranges[name].add(span)

    def traffic(self, inside: Iterable[str] = (), own: Iterable[str] = ()) -> Traffic:
        """``inside`` are tensors whose sectors are in L2 throughout, so that they do not count; ``own`` those
        that the launch writes before it reads them, which count apart.
        """
        apart, written = set(inside), set(own)
        sectors = {name: sector_bytes(each) for name, each in self.ranges.items() if name not in apart}
        return Traffic(
            dict(self.reads),
            dict(self.writes),
            dict(self.atomics),
            sectors=sum(sectors.values()),
            own=sum(size for name, size in sectors.items() if name in written),
        )
