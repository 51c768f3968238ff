from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.profiling.fake_nvml import FakeNvml


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """A fake in place of ``pynvml``, with both of its GPUs visible."""
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield fake
    assert fake.gpm_samples == 0, "NVML's samples were not freed"
