"""The part ``kernels``: what one operation lacks costs the others nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lit_eff.cli import profile_kernels
from lit_eff.errors import UserError
from lit_eff.kernels.worker import Request
from lit_eff.profiling.report import Findings
from lit_eff.profiling.traffic import KernelTraffic


def test_one_that_does_not_compile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_all(work: str, requests: Sequence[Request]) -> list[list[KernelTraffic]]:
        assert work == "compile"
        if any(each.operation == "broken" for each in requests):
            raise UserError("broken does not compile")
        return [[KernelTraffic(each.operation, {})] for each in requests]

    monkeypatch.setattr(profile_kernels, "in_fresh_process", compile_all)
    found = Findings()
    requests = [Request(name, {}, "H100 SXM") for name in ("norm", "broken", "rope")]
    compiled = profile_kernels._compiled(requests, found)
    assert [[record.kernel for record in each] for each in compiled] == [["norm"], [], ["rope"]]
    assert found.notes == ["SRAM, registers and occupancy unavailable: broken does not compile"]
