from __future__ import annotations

from collections.abc import Iterator

import pytest

from lit_eff.bench.interpreted import rows_alike
from lit_eff.kernels.attention import operator
from lit_eff.kernels.attention.with_cache import operator as cache_operator
from lit_eff.profiling.replay import LaunchCache


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call builds its launches anew, as some tests change how; what is kept has tests of its own."""
    for module in (operator, cache_operator):
        monkeypatch.setattr(module, "LAUNCHES", LaunchCache(size=0))


@pytest.fixture
def interpreter() -> None:
    """The kernels run in Triton's interpreter (tests/conftest.py asks for it where there is no GPU)."""
    if not operator.INTERPRETED:
        pytest.skip("the kernels are compiled here; run with TRITON_INTERPRET=1 to test them on the CPU")


@pytest.fixture
def row_exact_interpreter(interpreter: None) -> Iterator[None]:
    """The interpreter, for tests that compare rows bit for bit."""
    with rows_alike():
        yield
