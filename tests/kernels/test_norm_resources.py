"""The norms' kernels, compiled for GPUs that are not here, do not spill, whatever the width of a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.kernels.compiling import compile_all

PROGRAM = """
import dataclasses, json, sys, torch
from lit_eff.kernels.norm.backward import backward_launch
from lit_eff.kernels.norm.forward import forward_launch
from lit_eff.profiling.compiled import compile_launch
torch.set_default_device("meta")
for r in json.loads(sys.argv[1]):
    x = torch.empty(4096, r["channels"], dtype=torch.bfloat16)
    gain, shift = x[0], x[0] if r["centered"] else None
    parts = torch.empty(512, r["channels"])
    options = 1e-5, r["centered"]
    launches = [
        forward_launch(x, x, gain, shift, *options, x, x),
        backward_launch(x, x, x, gain, *options, x, None, parts, parts if r["centered"] else None, 512),
    ]
    for launch in launches:
        print(json.dumps(dataclasses.asdict(compile_launch(launch, r["capability"])) | r))
"""
WIDTHS = (64, 577, 768, 2048, 4096, 8192)


@pytest.mark.parametrize("capability", [80, 90])
def test_forms_do_not_spill(capability: int, tmp_path: Path) -> None:
    requests: list[dict[str, Any]] = [
        {"channels": channels, "centered": channels == 768 or channels % 1024 != 0, "capability": capability}
        for channels in WIDTHS
    ]
    for each in compile_all(PROGRAM, requests, tmp_path):
        assert each["spill_store_bytes"] == 0, each
        assert each["shared_memory_bytes"] <= 48 * 1024, each


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_the_widest_rows(capability: int, tmp_path: Path) -> None:
    requests = [
        {"channels": 16_384, "centered": centered, "capability": capability} for centered in (True, False)
    ]
    for each in compile_all(PROGRAM, requests, tmp_path):
        assert each["spill_store_bytes"] <= 320, (
            each
        )  # of the backward: sums of gain and shift, 64 registers a thread
