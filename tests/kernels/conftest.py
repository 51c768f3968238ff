from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
import torch

from lit_eff.bench.interpreted import rows_alike
from lit_eff.kernels.attention import operator
from lit_eff.kernels.attention.with_cache import operator as cache_operator
from lit_eff.kernels.linear import call as linear_call
from lit_eff.kernels.linear.plan import Plan
from lit_eff.profiling.replay import LaunchCache
from tests.kernels.linear_cases import PLANS


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


@pytest.fixture
def poisoned() -> Iterator[None]:
    """torch.empty yields NaN: an element that a kernel leaves unwritten, or reads unwritten, shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=PLANS, ids=lambda plan: f"{plan.lanes} lanes")
def planned(request: pytest.FixtureRequest) -> Iterator[Plan]:
    """A small plan for every skinny product."""
    with mock.patch.object(linear_call, "plan_of", return_value=request.param):
        yield request.param
