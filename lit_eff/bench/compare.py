"""This run beside an earlier result file: what changed beyond the noise of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_eff.bench.results import Measurement

LEAST = 0.03  # clocks differ from one machine and one hour to the next by about this much


@dataclass(frozen=True)
class Change:
    """One contender's rate then and now, in ``unit``."""

    before: Measurement
    after: Measurement

    @property
    def relative(self) -> float:
        assert self.before.rate is not None
        return (self.after.rate or 0.0) / self.before.rate - 1

    @property
    def threshold(self) -> float:
        return LEAST + (self.before.noise or 0.0) + (self.after.noise or 0.0)

    @property
    def is_regression(self) -> bool:
        """Ours, and slower beyond the noise, or no longer there."""
        return self.after.ours and self.relative < -self.threshold

    def __str__(self) -> str:
        after = self.after
        now = f"{after.rate:.0f}" if after.rate is not None else f"unavailable: {after.unavailable}"
        where = f"{after.section}, {after.cell}, {after.contender} {after.quantity}"
        change = f"{self.before.rate:.0f} -> {now} {after.unit}"
        return f"{where}: {change} ({self.relative:+.1%}; noise {self.threshold:.1%})"


def changes(before: Sequence[Measurement], after: Sequence[Measurement]) -> list[Change]:
    """What both runs have and differs beyond `Change.threshold`, greatest losses first."""
    earlier = {each.key: each for each in before if each.rate}
    found = [Change(earlier[each.key], each) for each in after if each.key in earlier]
    return sorted(
        (each for each in found if abs(each.relative) > each.threshold), key=lambda each: each.relative
    )
