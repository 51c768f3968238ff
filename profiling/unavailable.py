"""What is raised where a machine cannot measure something: the caller reports why, and delivers the rest."""

from __future__ import annotations

from lit_eff.errors import UserError
from lit_eff.profiling.traffic import Number


class UnavailableError(UserError):
    """Something cannot be measured here. ``reason`` says why, ``remedy`` what to do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason, self.remedy = reason, remedy

    def number(self) -> Number:
        """What a record says instead of a measured value."""
        return Number(None, "unavailable", str(self))
