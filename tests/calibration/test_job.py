"""The calibrate job on a small model: every figure recomputed by decoding one sequence at a time."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from lit_eff.calibration import learn_then_test
from lit_eff.calibration.config import CalibrationConfig, Measure
from lit_eff.calibration.job import calibrate, take_prompts
from lit_eff.calibration.report import markdown
from lit_eff.calibration.risk_control import risk_interval
from lit_eff.decoding.torch_runner import TorchRunner
from lit_eff.errors import UserError
from lit_eff.models.checkpoint import LoadedCheckpoint, weights_sha256
from lit_eff.models.config import ExitConfig, ModelConfig
from lit_eff.models.transformer import Transformer
from lit_eff.runtime.certificate import Certificate, tokenizer_sha256
from lit_eff.runtime.claim import sentence
from lit_eff.runtime.confidence import MEASURES
from lit_eff.runtime.decode import GenerateRequest, Round, generate
from lit_eff.runtime.exit_rule import KV_POLICIES, ExitRule

VOCABULARY, PROMPT, STEPS = 61, 4, 6
HASHES = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("train", "calibration", "test")}
CONFIG = CalibrationConfig(
    delta=0.4,
    epsilon=0.1,
    prompt_length=PROMPT,
    continuation_length=STEPS,
    thresholds=(0.9, 0.5, 0.3, 0.0),
    batch_size=16,
)


def load(deep_scale: float = 0.35, **changes) -> LoadedCheckpoint:
    """A random model whose deeper layers say little that is new, so that some exits can be certified."""
    torch.manual_seed(5)
    values = {
        "vocab_size": VOCABULARY,
        "layers": 4,
        "model_dim": 32,
        "heads": 2,
        "context": 32,
        "init_std": 0.25,
        "exits": ExitConfig(layers=(1, 2)),
    }
    model = Transformer(ModelConfig(**{**values, **changes})).eval()
    with torch.no_grad():
        for block in list(model.blocks)[1:]:
            block.attention.output.weight *= deep_scale
            block.mlp.down.weight *= deep_scale
    metadata = {"split_hashes": {"train": HASHES["train"]}}
    return LoadedCheckpoint(model, '{"a": 1}', {}, metadata, weights_sha256(model))


def prompts(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (count, PROMPT))


def run(
    loaded: LoadedCheckpoint, config: CalibrationConfig = CONFIG, *, test_seed: int = 1, **options
) -> Certificate:
    options = {"split_hashes": HASHES, **options}
    return calibrate(loaded, prompts(30, 0), prompts(10, test_seed), config, **options)


@functools.cache
def decode(runner: TorchRunner, prompt: tuple[int, ...], rule: ExitRule | None) -> list[Round]:
    mode = "autoregressive" if rule is None else "certified"
    return list(generate(runner, GenerateRequest(prompt, max_tokens=STEPS, mode=mode, exit_rule=rule)))


def losses_and_rounds(
    runner: TorchRunner, batch: np.ndarray, rule: ExitRule
) -> tuple[np.ndarray, list[list[Round]]]:
    early = [decode(runner, tuple(prompt.tolist()), rule) for prompt in batch]
    full = [decode(runner, tuple(prompt.tolist()), None) for prompt in batch]
    losses = [
        np.mean([a.tokens != b.tokens for a, b in zip(ours, theirs, strict=True)])
        for ours, theirs in zip(early, full, strict=True)
    ]
    return np.array(losses), early


def test_every_figure_is_what_decoding_one_by_one_gives(tmp_path: Path) -> None:
    loaded = load()
    certificate = run(loaded)
    runner = TorchRunner(loaded.model)
    columns = []
    for candidate in certificate.candidates:
        rule = ExitRule(thresholds=(candidate.threshold,) * 2)
        losses, rounds = losses_and_rounds(runner, prompts(30, 0), rule)
        columns.append(losses)
        assert candidate.risk == pytest.approx(losses.mean(), abs=1e-12)
        launched = np.mean([one.layer_launches for sequence in rounds for one in sequence])
        assert candidate.layers_per_token == pytest.approx(launched)
    low, high = risk_interval(np.stack(columns, axis=1), level=CONFIG.epsilon)
    assert [one.risk_interval for one in certificate.candidates] == [
        pytest.approx(pair) for pair in zip(low, high, strict=True)
    ]
    expected = learn_then_test(np.stack(columns, axis=1), delta=CONFIG.delta, epsilon=CONFIG.epsilon)
    assert certificate.selected == expected.selected
    assert 0 < certificate.selected < len(CONFIG.thresholds) - 1, "the case should be neither trivial outcome"
    assert [candidate.p_value for candidate in certificate.candidates] == pytest.approx(
        list(expected.p_values)
    )
    assert [candidate.certified for candidate in certificate.candidates] == expected.rejected.tolist()
    assert certificate.thresholds == (CONFIG.thresholds[certificate.selected],) * 2

    for split, batch in ((certificate.calibration, prompts(30, 0)), (certificate.test, prompts(10, 1))):
        losses, rounds = losses_and_rounds(runner, batch, certificate.exit_rule())
        assert split.risk == pytest.approx(losses.mean(), abs=1e-12)
        assert split.sequences == len(batch)
        launches = [[one.layer_launches for one in sequence] for sequence in rounds]
        assert split.layers_per_token == pytest.approx(np.mean(launches))
        shares = [np.mean(np.array(launches) == layers) for layers in certificate.exit_layers]
        assert split.exit_shares == pytest.approx(shares)
        # All work but that of the prompt before its last token, which gets as deep as any later token.
        work = [
            sum(one.layer_tokens for one in sequence)
            - (PROMPT - 1) * max(one.layer_launches for one in sequence)
            for sequence in rounds
        ]
        assert split.computed_layers_per_token == pytest.approx(np.mean(work) / STEPS)
        assert split.layers_per_token < split.computed_layers_per_token < 4

    certificate.check(weights_sha256=loaded.weights_sha256, tokenizer_sha256=tokenizer_sha256('{"a": 1}'))
    assert (certificate.dtype, certificate.train_sha256) == ("float32", HASHES["train"])
    certificate.save(tmp_path / "exits.json")
    assert Certificate.load(tmp_path / "exits.json") == certificate


def test_a_decaying_threshold_is_measured_as_it_will_run() -> None:
    loaded = load()
    config = CalibrationConfig(**{**vars(CONFIG), "decay": 4.0, "measure": "max_probability"})
    certificate = run(loaded, config)
    rule = certificate.exit_rule()
    assert (rule.decay, rule.horizon, rule.measure) == (4.0, STEPS, "max_probability")
    losses, _ = losses_and_rounds(TorchRunner(loaded.model), prompts(30, 0), rule)
    assert certificate.calibration.risk == pytest.approx(losses.mean(), abs=1e-12)


def test_another_procedure_and_p_value_certify_what_learn_then_test_does() -> None:
    """Every p-value of the certificate, and the sequences refused for, are at the procedure's own level."""
    loaded = load(deep_scale=0.2)
    config = CalibrationConfig(**{**vars(CONFIG), "procedure": "holm", "p_value": "wsr"})
    certificate = run(loaded, config)
    losses = [
        losses_and_rounds(TorchRunner(loaded.model), prompts(30, 0), ExitRule(thresholds=(threshold,) * 2))[0]
        for threshold in CONFIG.thresholds
    ]
    levels = {"delta": CONFIG.delta, "epsilon": CONFIG.epsilon, "procedure": "holm", "p_value": "wsr"}
    expected = learn_then_test(np.stack(losses, axis=1), **levels)
    assert certificate.selected == expected.selected is not None
    assert [one.p_value for one in certificate.candidates] == pytest.approx(list(expected.p_values))
    assert [one.certified for one in certificate.candidates] == expected.rejected.tolist()
    with pytest.raises(UserError, match="by holm with wsr"):
        calibrate(loaded, prompts(5, 0), prompts(5, 1), config, split_hashes=HASHES)


def test_never_exit_is_an_outcome() -> None:
    config = CalibrationConfig(**{**vars(CONFIG), "delta": 0.1, "thresholds": (0.1, 0.0)})
    certificate = run(load(deep_scale=3.0), config)
    assert certificate.selected is None
    assert certificate.thresholds == (None, None)
    for split in (certificate.calibration, certificate.test):
        assert (split.risk, split.layers_per_token, split.computed_layers_per_token) == (0.0, 4.0, 4.0)
        assert split.exit_shares == (0.0, 0.0, 1.0)
    assert "all 4 layers" in sentence(certificate)


def test_the_test_split_selects_nothing() -> None:
    one, other = run(load(), test_seed=1), run(load(), test_seed=2)
    assert one.test != other.test
    assert one.model_copy(update={"test": other.test}) == other


def test_progress_tells_stage_and_count() -> None:
    seen: list[tuple[str, int, int]] = []
    run(load(), progress=lambda *event: seen.append(event))
    assert seen == [("calibration", 16, 30), ("calibration", 30, 30), ("test", 10, 10)]


def test_data_split_otherwise_than_in_training_is_not_called_disjoint() -> None:
    assert run(load(), split_hashes={**HASHES, "train": "0" * 64}).train_sha256 is None
    without = {name: HASHES[name] for name in ("calibration", "test")}
    certificate = run(load(), split_hashes=without)
    assert certificate.train_sha256 is None
    assert "not known" in markdown(certificate)


def test_too_few_sequences_are_refused_with_the_number_needed() -> None:
    config = CalibrationConfig(delta=0.02, epsilon=0.05, prompt_length=PROMPT, continuation_length=STEPS)
    with pytest.raises(UserError, match=r"148 calibration sequences .* at least 149 are needed"):
        calibrate(load(), prompts(148, 0), prompts(5, 1), config, split_hashes=HASHES)
    plain = CalibrationConfig(**{**vars(config), "p_value": "hoeffding"})
    with pytest.raises(UserError, match=r"at least 3745 are needed"):
        calibrate(load(), prompts(149, 0), prompts(5, 1), plain, split_hashes=HASHES)


def test_splits_that_overlap_are_refused() -> None:
    with pytest.raises(UserError, match="not disjoint"):
        run(load(), split_hashes={**HASHES, "test": HASHES["calibration"]})
    shared = np.concatenate([prompts(5, 1), prompts(60, 0)[7:8]])
    with pytest.raises(UserError, match="not disjoint"):
        calibrate(load(), prompts(60, 0), shared, CONFIG, split_hashes=HASHES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exits": ExitConfig()}, "no early exits"),
        ({"labels": 2, "causal": False}, "causal language model"),
        ({"context": PROMPT + STEPS - 1}, "do not fit the context"),
    ],
)
def test_models_that_cannot_be_calibrated_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(load(**changes))


def test_prompts_of_another_length_are_refused() -> None:
    with pytest.raises(UserError, match=r"calibration prompts have shape \(60, 3\)"):
        calibrate(load(), prompts(60, 0)[:, :3], prompts(5, 1), CONFIG, split_hashes=HASHES)


def test_prompts_are_the_starts_of_long_enough_documents() -> None:
    documents = [np.arange(9, dtype=np.int32), np.arange(2), np.arange(10, 14), np.arange(20, 29)]
    taken = take_prompts(documents, split="test", count=2, length=4)
    assert taken.dtype == np.int64
    assert taken.tolist() == [[0, 1, 2, 3], [10, 11, 12, 13]]
    without_first = take_prompts(documents, split="test", count=2, length=4, exclude=taken[:1])
    assert without_first.tolist() == [[10, 11, 12, 13], [20, 21, 22, 23]]
    with pytest.raises(
        UserError, match="the test split has 3 documents of at least 4 tokens; 4 are asked for"
    ):
        take_prompts(documents, split="test", count=4, length=4)


def test_measures_of_the_section_are_the_runtimes() -> None:
    assert get_args(Measure) == MEASURES
    assert get_args(get_type_hints(CalibrationConfig)["kv_policy"]) == KV_POLICIES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": 0}, "delta is 0"),
        ({"epsilon": 1.5}, "epsilon is 1.5"),
        ({"sequences": 0}, "calibration.sequences is 0"),
        ({"thresholds": ()}, "calibration.thresholds"),
        ({"thresholds": (0.1, 0.9)}, "decreasing"),
        ({"thresholds": (0.9, 0.9)}, "decreasing"),
        ({"thresholds": (1.1, 0.9)}, r"in \[0, 1\]"),
        ({"decay": -1.0}, "calibration.decay is -1.0"),
        ({"p_value": "hoeffding_bentkos"}, "did you mean 'hoeffding_bentkus'"),
        ({"procedure": "holmes"}, "did you mean 'holm'"),
        ({"procedure": "split_fixed_sequence"}, "learning_sequences is 0 .* expected a positive integer"),
        ({"learning_sequences": 5}, "learning_sequences is 5 .* 0 with any other"),
        ({"thresholds": ((0.9, 0.5), 0.3)}, "no vector at all"),
        ({"thresholds": ((0.9, 1.5),)}, "no vector at all"),
        ({"thresholds": ((),)}, "no vector at all"),
        (
            {
                "thresholds": ((0.9, 0.5),),
                "procedure": "split_fixed_sequence",
                "learning_sequences": 5,
            },
            "expected decreasing numbers",
        ),
    ],
)
def test_bad_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CalibrationConfig(**changes)
