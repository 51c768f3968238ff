"""Propagation reads no weight where no token left early. Counted as modelled: `test_catalogue`."""

from __future__ import annotations

import pytest
import torch

from lit_eff.profiling.counted import count_traffic
from tests.kernels.counting import requested
from tests.kernels.propagate_cases import PropagateCase, run


@pytest.mark.usefixtures("interpreter")
def test_without_an_exit_no_weight_is_read() -> None:
    case = PropagateCase()
    arguments = case.draw(torch.float32) | {"query_lengths_B": torch.zeros(3, dtype=torch.int32)}
    with count_traffic() as launches:
        found = run(arguments)
    assert set(requested(launches[0], "loads")) == {"lengths", "query_lengths"}
    for got, name in zip(found, ("k_cache", "v_cache"), strict=True):
        assert torch.equal(got, arguments[name])
