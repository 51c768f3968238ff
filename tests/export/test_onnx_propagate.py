"""Propagation by the ONNX graphs: the keys and values that the torch model gives skipped layers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_eff.decoding.torch_runner import TorchRunner
from lit_eff.errors import UserError
from lit_eff.export.config import ExportConfig
from lit_eff.export.job import export_bundle
from lit_eff.models.config import ExitConfig
from lit_eff.runtime.bundle import open_bundle
from lit_eff.runtime.decode import GenerateRequest, generate
from lit_eff.runtime.exit_rule import ExitRule
from lit_eff.runtime.segments import SegmentRunner
from tests.export.bundles import bold_certificate
from tests.export.models import FAMILIES, loaded, onnx_runner, tiny_model
from tests.runtime.test_certificate import candidate

TOKENS = np.random.default_rng(0).integers(0, 97, 20)


def logits_after_skipping(runner: SegmentRunner) -> np.ndarray:
    """Tokens 0 to 9 in full; 10 leaves at the first exit, 11 and 12 at the second; the rest in full."""
    state: Any = runner.new_state()
    calls = [(0, 10, 2), (10, 11, 0), (11, 13, 1), (13, 20, 2)]
    for start, stop, last in calls:
        hidden_TC = runner.embed(TOKENS[start:stop], start)
        for e in range(last + 1):
            hidden_TC = runner.run_segment(state, e, hidden_TC, start)
        for e in range(last + 1, 3):
            runner.propagate(state, e, hidden_TC, start)
    return runner.head(2, hidden_TC)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    exact = logits_after_skipping(TorchRunner(copy.deepcopy(model).double()))
    ours = logits_after_skipping(onnx_runner(model, tmp_path, propagate=True))
    np.testing.assert_allclose(ours, exact, atol=2e-5)
    full = TorchRunner(model)
    state = full.new_state()
    hidden_TC = full.embed(TOKENS, 0)
    for e in range(3):
        hidden_TC = full.run_segment(state, e, hidden_TC, 0)
    assert np.abs(full.head(2, hidden_TC)[13:] - ours).max() > 1e-3  # skipping is seen


def test_a_bundle_has_what_its_certificate_needs(tmp_path: Path) -> None:
    checkpoint = loaded(tiny_model(layers=3, exits=ExitConfig((1, 2))))
    tested = {"candidates": (candidate(0.05, 0.1, 0.001),), "thresholds": (0.05, 0.05)}
    certificate = bold_certificate(checkpoint, kv_policy="propagate", **tested)
    bundle = open_bundle(export_bundle(checkpoint, tmp_path / "b", certificate, ExportConfig()))
    assert bundle.manifest.onnx is not None
    names = [segment.propagate for segment in bundle.manifest.onnx.segments]
    assert names == [None, "propagate_1.onnx", "propagate_2.onnx"]
    assert certificate.exit_rule().kv_policy == "propagate"
    request = GenerateRequest((1, 2, 3), max_tokens=20, mode="certified", exit_rule=certificate.exit_rule())
    ours = list(generate(bundle.runner(threads=1), request))
    theirs = list(generate(TorchRunner(checkpoint.model), request))
    assert [one.tokens for one in ours] == [one.tokens for one in theirs]
    assert {one.exit_index for one in ours} != {2}


def test_a_bundle_without_the_graphs_says_so(tmp_path: Path) -> None:
    checkpoint = loaded(tiny_model(layers=3, exits=ExitConfig((1, 2))))
    bundle = open_bundle(export_bundle(checkpoint, tmp_path / "b", None, ExportConfig()))
    rule = ExitRule(thresholds=(0.0, 0.0), kv_policy="propagate")
    request = GenerateRequest((1, 2, 3), mode="certified", exit_rule=rule)
    with pytest.raises(UserError, match=r"calibration\.kv_policy=propagate and export again"):
        list(generate(bundle.runner(threads=1), request))
