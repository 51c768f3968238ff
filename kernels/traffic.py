"""Requested bytes, as every kernel's I/O model gives them."""

from __future__ import annotations

from dataclasses import dataclass, field

STATISTIC_BYTES = 4  # a float32 or int32


@dataclass(frozen=True)
class Traffic:
    """Bytes moved between HBM and the chip, by tensor."""

    reads: dict[str, int] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)

    @property
    def read_bytes(self) -> int:
        return sum(self.reads.values())

    @property
    def written_bytes(self) -> int:
        return sum(self.writes.values())

    @property
    def total(self) -> int:
        return self.read_bytes + self.written_bytes
