"""Certificates of classifiers: every figure against running each sequence alone, layer by layer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom

from lit_eff.calibration.classifier import Batch, calibrate_classifier
from lit_eff.calibration.config import CalibrationConfig
from lit_eff.calibration.figures import overview
from lit_eff.calibration.job import calibrate
from lit_eff.calibration.report import markdown
from lit_eff.calibration.traffic import recalibrate
from lit_eff.cli.main import main
from lit_eff.data import ClassificationData
from lit_eff.errors import UserError
from lit_eff.export.config import ExportConfig
from lit_eff.export.job import export_bundle
from lit_eff.models.checkpoint import LoadedCheckpoint, load_checkpoint, weights_sha256
from lit_eff.models.config import ExitConfig, ModelConfig
from lit_eff.models.transformer import Transformer
from lit_eff.runtime.bundle import open_bundle
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.claim import sentence
from tests.calibration.test_job import HASHES, load, prompts
from tests.data.helpers import write_jsonl

CLASSES, EXITS = 3, (1, 2, 4)
CONFIG = CalibrationConfig(
    risk="disagreement", delta=0.25, epsilon=0.1, p_value="binomial", thresholds=(0.9, 0.4, 0.2, 0.1, 0.0)
)


def classifier(vocab_size: int = 61, labels: int = CLASSES, **changes: Any) -> LoadedCheckpoint:
    """An encoder whose deeper layers say little that is new, so that some exits can be certified."""
    torch.manual_seed(1)
    values = {"layers": 4, "model_dim": 32, "heads": 2, "context": 32, "init_std": 0.3, **changes}
    exits = ExitConfig(layers=EXITS[:-1], head="shared")
    config = ModelConfig(vocab_size, labels=labels, causal=False, exits=exits, **values)
    model = Transformer(config).eval()
    with torch.no_grad():
        for block in list(model.blocks)[1:]:
            block.attention.output.weight *= 0.3
            block.mlp.down.weight *= 0.3
    return LoadedCheckpoint(model, None, {}, {}, weights_sha256(model))


def batches(count: int, seed: int, size: int = 16) -> list[Batch]:
    """Sequences of many lengths, padded to the longest of their batch."""
    rng = np.random.default_rng(seed)
    out = []
    for start in range(0, count, size):
        lengths = rng.integers(1, 12, min(size, count - start))
        shape = (len(lengths), int(lengths.max()))
        real_BT = np.arange(shape[1]) < lengths[:, None]
        arrays = {
            "tokens_BT": np.where(real_BT, rng.integers(0, 61, shape), 0),
            "documents_BT": np.where(real_BT, 0, -1),
            "labels_B": rng.integers(0, CLASSES, len(lengths)),
        }
        out.append({name: torch.from_numpy(array) for name, array in arrays.items()})
    return out


def alone(
    loaded: LoadedCheckpoint, split: list[Batch], vector: tuple[float | None, ...], measure: str, risk: str
) -> tuple[np.ndarray, np.ndarray]:
    """Losses and layers ``(B,)``: each sequence without padding, in float64, stopping where it exits."""
    model, losses, layers = loaded.model.double(), [], []
    for batch in split:
        for tokens_T, documents_T, label in zip(*batch.values(), strict=True):
            tokens_1T = tokens_T[documents_T == 0][None]
            for e in range(len(EXITS)):
                with torch.inference_mode():
                    (state,) = model(tokens_1T, exits=[e])
                    p = model.logits(state, e)[0].softmax(-1).sort(descending=True).values.numpy()
                    early = int(model.logits(state, e)[0].argmax())
                certain = p[0] - p[1] if measure == "softmax_response" else p[0]
                if e < len(vector) and vector[e] is not None and certain >= vector[e]:
                    break
            with torch.inference_mode():
                full = int(model.logits(model(tokens_1T)[-1], len(EXITS) - 1)[0].argmax())
            wrong = early != full if risk == "disagreement" else full == int(label) != early
            losses.append(float(wrong))
            layers.append(EXITS[e])
    model.float()
    return np.array(losses), np.array(layers)


@pytest.mark.parametrize("measure", ["softmax_response", "max_probability"])
@pytest.mark.parametrize("risk", ["disagreement", "error"])
def test_every_figure_is_what_each_sequence_alone_gives(risk: str, measure: str, tmp_path: Path) -> None:
    loaded, calibration, test = classifier(), batches(60, 0), batches(20, 1)
    delta = 0.25 if risk == "disagreement" else 0.12
    grid = (0.9, 0.4, 0.2, 0.1, 0.0) if measure == "softmax_response" else (0.9, 0.6, 0.5, 0.45, 0.0)
    config = replace(CONFIG, risk=risk, measure=measure, delta=delta, thresholds=grid)
    made = calibrate_classifier(loaded, calibration, test, config, split_hashes=HASHES)
    p_values = []
    for candidate in made.candidates:
        losses, layers = alone(loaded, calibration, candidate.vector(2), measure, risk)
        assert candidate.risk == pytest.approx(losses.mean())
        assert candidate.layers_per_token == pytest.approx(layers.mean())
        p_values.append(binom.cdf(losses.sum(), 60, delta))
        assert candidate.p_value == pytest.approx(p_values[-1])
    failing = [p > 0.1 for p in p_values]
    first = failing.index(True) if any(failing) else len(failing)
    assert made.selected == (first - 1 if first else None)
    assert made.selected not in (None, 0, len(grid) - 1), "the case should be neither trivial outcome"
    for split, measured in ((calibration, made.calibration), (test, made.test)):
        losses, layers = alone(loaded, split, made.thresholds, measure, risk)
        assert measured.risk == pytest.approx(losses.mean())
        assert measured.layers_per_token == measured.computed_layers_per_token == pytest.approx(layers.mean())
    assert (made.certifies, made.metric, made.kv_policy) == (risk, "zero_one", None)
    assert (made.prompt_length, made.continuation_length, made.measure) == (None, 1, measure)
    assert "KV policy `none`" in markdown(made)
    assert "label" in overview(made).axes[0].get_ylabel()
    made.save(tmp_path / "exits.json")
    assert Certificate.load(tmp_path / "exits.json") == made


def test_a_grid_costs_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, calls = classifier(), []
    forward = loaded.model.forward

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return forward(*arguments, **options)

    monkeypatch.setattr(loaded.model, "forward", counted)
    config = replace(CONFIG, thresholds=tuple(np.linspace(1, 0, 50).tolist()))
    seen: list[Any] = []
    splits = batches(60, 0), batches(20, 1)
    calibrate_classifier(loaded, *splits, config, split_hashes=HASHES, progress=lambda *one: seen.append(one))
    assert len(calls) == len(splits[0]) + len(splits[1])
    assert seen[3:] == [("calibration", 60, 60), ("test", 16, 20), ("test", 20, 20)]


def test_never_exit_is_an_outcome() -> None:
    config = replace(CONFIG, delta=0.05, thresholds=(0.0,))
    made = calibrate_classifier(classifier(), batches(60, 0), batches(20, 1), config, split_hashes=HASHES)
    assert (made.selected, made.thresholds) == (None, (None, None))
    assert (made.test.risk, made.test.layers_per_token) == (0.0, 4.0)
    assert "every sequence runs all 4 layers" in sentence(made)


@pytest.mark.parametrize(
    ("loaded", "changes", "message"),
    [
        (load, {}, "no classifier"),
        (classifier, {"risk": "textual_consistency", "p_value": "wsr"}, "use disagreement or error"),
        (classifier, {"delta": 0.02}, "60 calibration sequences can certify nothing"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(loaded: Any, changes: dict[str, Any], message: str) -> None:
    splits = batches(60, 0), batches(20, 1)
    with pytest.raises(UserError, match=message):
        calibrate_classifier(loaded(), *splits, replace(CONFIG, **changes), split_hashes=HASHES)


def test_splits_that_are_one_and_numbers_that_are_none_are_refused() -> None:
    loaded, splits = classifier(), (batches(60, 0), batches(20, 1))
    same = {**HASHES, "test": HASHES["calibration"]}
    with pytest.raises(UserError, match="splits are the same"):
        calibrate_classifier(loaded, *splits, CONFIG, split_hashes=same)
    with torch.no_grad():
        loaded.model.blocks[3].mlp.down.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        calibrate_classifier(loaded, *splits, CONFIG, split_hashes=HASHES)


def test_a_classifiers_certificate_is_refused_where_text_is_written() -> None:
    loaded = classifier()
    made = calibrate_classifier(loaded, batches(60, 0), batches(20, 1), CONFIG, split_hashes=HASHES)
    with pytest.raises(UserError, match="whose exits no engine runs yet"):
        recalibrate(load(), made, [(1, 2)], most=10)
    with pytest.raises(UserError, match="needs a causal language model"):
        calibrate(loaded, prompts(30, 0), prompts(10, 1), CONFIG, split_hashes=HASHES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `lit-eff fit` leaves of an untrained classifier of documents."""
    from lit_eff.cli.compose import compose
    from lit_eff.cli.lightning import instantiate_data

    folder = tmp_path_factory.mktemp("classifier")
    settings: dict[str, Any] = {
        "source": str(write_jsonl(folder / "a.jsonl", range(400), labels=True)),
        "tokenizer": {"vocab_size": 300},
        "context": 32,
        "splits": {"train": 0.4, "validation": 0.1, "calibration": 0.3, "test": 0.2},
        "cache_dir": str(folder / "cache"),
    }
    recipe = {
        "name": "tiny",
        "data": {"class_path": "lit_eff.data.ClassificationData", "init_args": settings},
        "calibration": {
            "risk": "disagreement",
            "delta": 0.5,
            "p_value": "binomial",
            "batch_size": 32,
            "sequences": 70,
            "test_sequences": 50,
        },
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    data = instantiate_data(compose(str(folder / "recipe.yaml")))
    assert isinstance(data, ClassificationData)
    model = classifier(data.vocab_size, labels=2).model
    about = {
        "format": 1,
        "model_config": model.config.to_dict(),
        "tokenizer_json": data.tokenizer_json,
        "recipe": recipe,
        "recipe_name": "tiny",
        "split_hashes": data.split_hashes,
    }
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "lit_eff": about}, folder / "last.ckpt")
    return folder / "last.ckpt"


def test_from_checkpoint_to_certificate_and_bundle(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "exits.json"
    words = ["calibrate", "--ckpt_path", str(checkpoint), "--output", str(output)]
    assert main([*words, "calibration.risk=error"]) == 0
    made = Certificate.load(output)
    assert sentence(made) in capsys.readouterr().out
    assert (made.certifies, made.calibration.sequences, made.test.sequences) == ("error", 70, 50)
    assert made.train_sha256 is not None
    assert main([*words, "calibration.sequences=400"]) == 2
    assert "the calibration split has" in capsys.readouterr().err
    assert main([*words, "calibration.risk=risk_consistency", "calibration.p_value=wsr"]) == 2
    assert "this checkpoint is a classifier; use disagreement or error" in capsys.readouterr().err

    # A bundle carries it, and what writes text says why it cannot use it.
    loaded = load_checkpoint(checkpoint)
    bundle = export_bundle(loaded, tmp_path / "bundle", made, ExportConfig(("torch",)))
    assert open_bundle(bundle).certificate == made
    for command in (
        ["generate", "--bundle", str(bundle), "--prompt", "a film"],
        ["serve", "--bundle", str(bundle), "--port", "0"],
        ["verify", "--bundle", str(bundle), "--data", "a.txt"],
        ["calibrate", "--update", str(bundle), "--log", "a.txt"],
    ):
        assert main(command) == 2
        assert "of a classifier (error), whose exits no engine runs yet" in capsys.readouterr().err
