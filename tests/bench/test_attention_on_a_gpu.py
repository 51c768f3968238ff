"""`lit-eff bench attention` on a GPU: cells of each section, timed for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_eff.bench.measure import CudaStopwatch, interleaved
from lit_eff.bench.results import read_results
from lit_eff.cli.main import main

pytestmark = pytest.mark.gpu


def test_cells_of_each_section(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    cells = ["dim 64, 1024, causal", "1 x 8k"]
    words = ["--cells", *cells, "--rounds", "3", "--jobs", "1", "--output", str(path)]
    assert main(["bench", "attention", *words]) == 0
    head, measurements = read_results(path)
    found = {(each.section, each.contender, each.quantity): each for each in measurements}
    assert 0 < found["training", "ours portable", "backward"].rate <= head["ceilings"]["matmul_tflops"]  # type: ignore[operator]
    for key in (
        ("training", "SDPA flash", "forward"),
        ("training", "FlexAttention", "backward"),  # its backward runs more than once
        ("decode", "ours, paged 16", "forward"),
        ("verify", "ours, tree", "forward"),
        ("verify", "SDPA flash", "forward"),
    ):
        assert found[key].rate, found[key].unavailable
    assert not any(each.wrong for each in measurements)
    # Beside the output there is the log-sum-exp: 16 rows of 32 heads of 1,024 queries, in float32.
    lse = 4 * 16 * 32 * 1024
    assert lse <= found["training", "ours portable", "forward"].extra_bytes <= lse + 2**20  # type: ignore[operator]


def test_host_time_is_not_measured() -> None:
    """A launch that takes the host longer than one sweep, as on a busy machine, costs a sample nothing."""
    import time

    import torch

    x = torch.zeros(16, device="cuda")

    def slow() -> None:
        time.sleep(1.5e-3)
        x.add_(1)

    found = interleaved({"fast": lambda: x.add_(1), "slow": slow}, 9, CudaStopwatch())
    assert found["slow"].median < found["fast"].median + 0.05
