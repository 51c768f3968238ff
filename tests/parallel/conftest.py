from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lit_eff.training.callbacks import (
    DepthQualityPlot,
    Profile,
    RunArtifacts,
    RunProgress,
    RunSummary,
    SampleGenerations,
    Throughput,
)
from tests.parallel.ranks import run_ranks
from tests.parallel.runs import fit, fit_sharded, read_result
from tests.training.callbacks.corpus import text

__all__ = ["one", "text", "two"]


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory, text: Path) -> dict[str, Any]:
    """What one process does."""
    folder = tmp_path_factory.mktemp("one")
    fit(folder, text, folder / "result.pt")
    return read_result(folder)


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """The folder of the same run, sharded over two ranks, with every callback there is."""
    folder = tmp_path_factory.mktemp("two")
    every = (
        DepthQualityPlot(),
        RunArtifacts({"a": 1}),
        RunProgress(),
        RunSummary(),
        SampleGenerations(prompt_tokens=6, new_tokens=4),
        Throughput(),
        Profile(start=2, steps=1, rows=200, count=True),
    )
    run_ranks(partial(fit_sharded, callbacks=every), folder, text, folder / "result.pt")
    return folder
