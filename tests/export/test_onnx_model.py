"""The ONNX graphs compute what the torch model computes, for every family, head kind and exit."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lit_eff.errors import UserError
from lit_eff.export.onnx_model import WEIGHTS, write_graphs
from lit_eff.models.config import ExitConfig, HeadKind
from lit_eff.models.transformer import Transformer
from tests.export.models import FAMILIES, onnx_runner, tiny_model


def check_parity(model: Transformer, folder: Path) -> None:
    """Against the model in float64: the error must be that of float32 arithmetic, in any split into calls."""
    runner = onnx_runner(model, folder)
    tokens_T = np.random.default_rng(1).integers(0, model.config.vocab_size, 140)
    exact = copy.deepcopy(model).double()
    with torch.inference_mode():
        states = exact(torch.from_numpy(tokens_T)[None])
        expected = [exact.logits(state, e)[0].numpy() for e, state in enumerate(states)]
    state = runner.new_state()
    calls = [slice(0, 1), slice(1, 12), slice(12, 140)]
    hidden_TC = runner.embed(tokens_T, 0)
    for e, expected_TV in enumerate(expected):
        rows = [runner.run_segment(state, e, hidden_TC[call], call.start) for call in calls]
        hidden_TC = np.concatenate(rows)
        np.testing.assert_allclose(runner.head(e, hidden_TC), expected_TV, atol=2e-5)
        if exact.exit_classifier is not None:
            with torch.inference_mode():
                score_T = exact.exit_score(states[e])[0].numpy()
            np.testing.assert_allclose(runner.exit_score(hidden_TC), score_T, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    check_parity(tiny_model(family), tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2", "post_norm"])
@pytest.mark.parametrize("head", ["norm", "linear", "mlp"])
def test_every_head_kind(family: str, head: HeadKind, tmp_path: Path) -> None:
    check_parity(tiny_model(family, head), tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2", "post_norm"])
@pytest.mark.parametrize("head", ["shared", "linear"])
def test_an_exit_classifier(family: str, head: HeadKind, tmp_path: Path) -> None:
    check_parity(tiny_model(family, exits=ExitConfig((1, 3), head, classifier=True)), tmp_path)


def test_a_model_without_early_exits(tmp_path: Path) -> None:
    model = tiny_model(exits=ExitConfig((), "norm"))
    check_parity(model, tmp_path)
    assert {path.name for path in tmp_path.glob("*.onnx")} == {"embed.onnx", "segment_0.onnx", "head.onnx"}


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    check_parity(tiny_model().bfloat16(), tmp_path)


@pytest.mark.parametrize(("head", "matrices"), [("shared", 1), ("norm", 1), ("mlp", 1), ("linear", 3)])
def test_output_matrices_are_stored_and_loaded_once(head: HeadKind, matrices: int, tmp_path: Path) -> None:
    """Embedding and heads read the tied matrix from the same bytes; only ``linear`` heads have their own."""
    vocab_size = 3000
    model = tiny_model("qwen2", head, vocab_size=vocab_size)
    graphs = write_graphs(model, tmp_path)
    places = set()
    holders = 0
    for path in tmp_path.glob("*.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        found = [tensor for tensor in graph.initializer if tensor.dims[:1] == [vocab_size]]
        places |= {entry.value for tensor in found for entry in tensor.external_data if entry.key == "offset"}
        holders += bool(found)
    assert len(places) == matrices
    assert holders == 1 + matrices  # embed.onnx, and one graph a matrix
    assert len(graphs.heads) == 3
    size = (tmp_path / WEIGHTS).stat().st_size
    rest = 4 * (model.parameter_count(embeddings=False) + 2 * 64 * (160 + 64)) * 2  # padded heads, tables
    assert size < 4 * matrices * vocab_size * 64 + rest


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"labels": 3}, "model.labels"),
        ({"causal": False}, "model.causal"),
        ({"token_types": 2}, "model.token_types"),
        ({"head_dim": 192}, "head dim 192"),
    ],
)
def test_what_cannot_be_held_is_named(changes: dict[str, int], named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named):
        write_graphs(tiny_model(**changes), tmp_path)
