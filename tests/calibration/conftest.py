"""What tests of interrupted calibrations share."""

from __future__ import annotations

import pytest

from lit_eff.decoding import batched


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of prompts of each batch that is really generated."""
    counts: list[int] = []
    original = batched._continue

    def counted(model, batch, *rest):
        counts.append(len(batch))
        return original(model, batch, *rest)

    monkeypatch.setattr(batched, "_continue", counted)
    return counts
