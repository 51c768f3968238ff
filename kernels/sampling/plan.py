"""How a row of logits is cut. Sums are of integers, so this changes no bit.

Shapes: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_VOCABULARY = 2**19 - 1  # a sum of so many weights of 2^44 stays below 2^63
BINS = 8192


@dataclass(frozen=True)
class Plan:
    """A program takes ``block`` logits; 63 share a row of 128,256, so that one row alone is read quickly."""

    block: int = 2048
    num_warps: int = 8

    def blocks(self, vocabulary: int) -> int:
        return -(-vocabulary // self.block)


def plan_of(vocabulary: int) -> Plan:
    """The same for every number of rows."""
    return Plan(block=2048 if vocabulary > 1024 else 1024)
