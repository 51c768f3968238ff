from __future__ import annotations

import pytest

from lit_eff.kernels.attention import operator


@pytest.fixture
def interpreter() -> None:
    """The kernels run in Triton's interpreter (tests/conftest.py asks for it where there is no GPU)."""
    if not operator.INTERPRETED:
        pytest.skip("the kernels are compiled here; run with TRITON_INTERPRET=1 to test them on the CPU")
