"""Every packaged recipe composes, has the size it says, and trains: shrunk, on a text of our own."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_eff.calibration.certify import check_sequences
from lit_eff.cli.compose import GROUPS, compose, packaged_recipes
from lit_eff.cli.lightning import LitEffCLI, lightning_cli, typed_section
from lit_eff.models.checkpoint import load_checkpoint
from lit_eff.models.transformer import Transformer
from lit_eff.runtime.decoding_config import DecodingConfig
from lit_eff.training import LitClassifier, LitLanguageModel
from tests.cli.tiny import (
    CONTEXT,
    VOCABULARY,
    data_overrides,
    model_overrides,
    trainer_overrides,
    write_reviews,
    write_text,
)

STEPS = 4
FITTED = [name for name in packaged_recipes() if not name.startswith("profile_")]  # cli/test_profile.py
CPU = ["trainer=cpu", "model.init_args.compile_blocks=false", "trainer.accumulate_grad_batches=1"]
CHECKPOINT = f"trainer.callbacks.checkpoint.init_args.every_n_train_steps={STEPS}"

# Millions of parameters that a recipe's comments promise, at full size.
SIZES = {
    "gpt2_small": (123, 126),
    "llama_1b_fsdp": (1090, 1110),
    "quickstart": (1, 3),
    "movie_sentiment": (1, 3),
}


class Workplace:
    """Texts, a token cache and the runs of this file; a recipe is run once, when first asked for."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.text, self.reviews = write_text(home), write_reviews(home)
        self.runs: dict[str, Path] = {}

    def words(self, name: str) -> list[str]:
        """What shrinks a recipe."""
        source = self.reviews if name == "movie_sentiment" else self.text
        return [
            *CPU,
            *data_overrides(source, self.home / "cache"),
            *model_overrides(),
            *trainer_overrides(STEPS),
            CHECKPOINT,
            *getattr(self, name, list)(),
        ]

    def layerskip(self) -> list[str]:
        return [f"model.init_args.init_from={self.run('quickstart') / 'checkpoints/last.ckpt'}"]

    def exit_tuning(self) -> list[str]:
        return [f"vars.init_from={self.gpt2()}"]

    def exit_classifier(self) -> list[str]:
        return [f"vars.init_from={self.run('quickstart') / 'checkpoints/last.ckpt'}"]

    def gpt2(self) -> Path:
        """A Hugging Face folder with a tiny GPT-2 and the quickstart's tokenizer."""
        folder = self.home / "gpt2"
        if not folder.exists():
            transformers: Any = pytest.importorskip("transformers")
            sizes = {"n_layer": 12, "n_embd": 16, "n_head": 4, "n_inner": 32}
            config = transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=CONTEXT, **sizes)
            transformers.GPT2LMHeadModel(config).save_pretrained(folder)
            shutil.copy(self.run("quickstart") / "tokenizer.json", folder)
        return folder

    def run(self, name: str, *more: str) -> Path:
        """The run folder of a finished ``lit-eff fit`` on the shrunk recipe."""
        key = " ".join((name, *more))
        if key not in self.runs:
            recipe = compose(name, [*self.words(name), *more])
            cli = lightning_cli(recipe, ["fit"])
            self.runs[key] = Path(cli.trainer.log_dir or "").resolve()
        return self.runs[key]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("recipes"))


@pytest.fixture(autouse=True)
def _at_home(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace.home)


def typed(name: str, *words: str) -> LitEffCLI:
    """The recipe's objects, built and not run; the model's weights are made later."""
    recipe = compose(name, ["vars.init_from=folder", "trainer.accelerator=cpu", *words])
    given = [part for key in recipe.unset for part in (f"--{key}", "given")]
    return lightning_cli(recipe, given, run=False)


@pytest.mark.parametrize("name", FITTED)
def test_a_recipe_types_at_full_size(name: str) -> None:
    cli = typed(name)
    config = cli.model.config
    assert cli.recipe.name == name  # the run's folder
    assert cli.datamodule.context == config.context
    assert cli.trainer.max_steps > 0
    decoding = typed_section(cli.recipe, "decoding")
    assert isinstance(decoding, DecodingConfig)
    assert decoding.draft_exit in ("auto", *config.exits.layers)
    with torch.device("meta"):
        millions = Transformer(config).parameter_count() / 1e6
    low, high = SIZES.get(name, (0, math.inf))
    assert low < millions < high


def test_smollm2_has_the_size_of_its_checkpoint() -> None:
    cli = typed("exit_tuning", "model=smollm2_135m", "exits.layers=[10,15,20,25]", "exits.head=norm")
    with torch.device("meta"):
        assert Transformer(cli.model.config).parameter_count() == 134_515_008 + 4 * 576


@pytest.mark.parametrize("name", packaged_recipes())
def test_the_first_line_says_what_a_recipe_is(name: str) -> None:
    first, *rest = Path(compose.__globals__["RECIPES"] / f"{name}.yaml").read_text("utf-8").splitlines()
    assert first.startswith("# ")
    assert first.endswith(".")
    assert "defaults:" in rest


@pytest.mark.parametrize("name", FITTED)
def test_a_recipe_trains(name: str, workplace: Workplace) -> None:
    folder = workplace.run(name)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert (report["status"], report["recipe"]) == ("finished", name)
    training = report["training"]
    assert training["steps"] == STEPS
    exits = training["exit_layers"]
    assert len(exits) >= 3
    measure = "accuracy" if name == "movie_sentiment" else "perplexity"
    assert len(training[f"{measure}_per_exit"]) == len(exits)
    assert all(math.isfinite(value) for value in training[f"{measure}_per_exit"])
    loaded = load_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert list(loaded.model.config.exit_layers) == exits


def test_the_classifier_is_an_encoder_with_a_class_each_exit() -> None:
    cli = typed("movie_sentiment")
    assert isinstance(cli.model, LitClassifier)
    assert not cli.model.config.causal
    assert cli.model.config.labels == 2


@pytest.mark.parametrize("choice", sorted(path.stem for path in (GROUPS / "calibration").glob("*.yaml")))
def test_a_calibration_suits_its_task_and_can_certify(choice: str) -> None:
    name = "movie_sentiment" if choice == "labels" else "quickstart"
    cli = typed(name, f"calibration={choice}")
    config = typed_section(cli.recipe, "calibration")
    check_sequences(config, config.sequences)
    assert config.classifies == bool(cli.model.config.labels)
    if not config.classifies:
        assert config.prompt_length + config.continuation_length <= cli.model.config.context


def test_gpt2_small_compiles_its_blocks_in_bf16_and_rotates_its_exits() -> None:
    """What the shrunk run on a CPU turns off."""
    cli = typed("gpt2_small")
    assert isinstance(cli.model, LitLanguageModel)
    assert cli.model.compile_blocks
    assert str(cli.trainer.precision) == "bf16-mixed"
    cli.model.trainer = cli.trainer
    trained = [set(cli.model.exit_weights(step)) for step in (0, 1)]
    assert trained == [{0, 2}, {1, 2}]


def test_llama_is_sharded() -> None:
    from lit_eff.parallel.strategy import ShardedStrategy

    cli = typed("llama_1b_fsdp", "trainer.devices=2")
    assert isinstance(cli.trainer.strategy, ShardedStrategy)
    assert str(cli.trainer.precision) == "bf16-mixed"  # float32 master weights, gathered in bfloat16
    assert cli.model.activation_checkpointing


def test_layerskip_drops_layers_and_switches_exits_on_gradually() -> None:
    cli = typed("layerskip")
    assert cli.model.layer_dropout.rate > 0
    assert cli.model.config.exits.head == "shared"
    cli.model.trainer = cli.trainer
    steps = cli.trainer.max_steps
    first, quarter, half = (set(cli.model.exit_weights(step)) for step in (0, steps // 4, steps // 2))
    last = len(cli.model.config.exit_layers) - 1
    assert first == {last}
    assert first < quarter < half == set(range(last + 1))


def source_of_gpt2(workplace: Workplace) -> tuple[dict[str, Any], list[str]]:
    from lit_eff.models.huggingface import from_hf

    return from_hf(workplace.gpt2()).state_dict(), []


def source_of_checkpoint(workplace: Workplace) -> tuple[dict[str, Any], list[str]]:
    """As the recipe's comment says: the model as it was trained, and the run's tokenizer."""
    run = workplace.run("quickstart")
    checkpoint = run / "checkpoints" / "last.ckpt"
    words = ["model=movies_2m", f"vars.init_from={checkpoint}", f"data.init_args.tokenizer.path={run}"]
    return load_checkpoint(checkpoint).model.state_dict(), words


@pytest.mark.parametrize("source", [source_of_gpt2, source_of_checkpoint])
def test_exit_tuning_trains_the_exits_alone(
    workplace: Workplace, source: Callable[[Workplace], tuple[dict[str, Any], list[str]]]
) -> None:
    before, words = source(workplace)
    exits = ["exits.layers=[2,4]"] if words else []
    more = [*words, *exits, *model_overrides()] if words else []
    run = workplace.run("exit_tuning", *more)
    after = load_checkpoint(run / "checkpoints" / "last.ckpt").model.state_dict()
    frozen = {name for name in after if not name.startswith("exit_heads.")}
    assert len(frozen) > 50
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    fresh = compose("exit_tuning", [*workplace.words("exit_tuning"), *more])
    start = lightning_cli(fresh, [], run=False).model
    start.configure_model()
    heads = {
        name: value for name, value in start.model.state_dict().items() if name.startswith("exit_heads.")
    }
    trained = [name for name, value in heads.items() if not torch.equal(after[name], value)]
    assert len(trained) > 2


@pytest.mark.parametrize("target", ["agreement", "correct"])
def test_exit_classifier_trains_one_layer_alone(workplace: Workplace, target: str) -> None:
    """CALM's as packaged, BERxiT's as the recipe's comment says."""
    more = [] if target == "agreement" else [f"model.init_args.exit_classifier={target}"]
    assert typed("exit_classifier", *more).model.exit_classifier == target
    run = workplace.run("exit_classifier", *more)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert len(report["training"]["score_auroc_per_exit"]) == len(report["training"]["exit_layers"]) - 1
    before = load_checkpoint(workplace.run("quickstart") / "checkpoints" / "last.ckpt").model.state_dict()
    after = load_checkpoint(run / "checkpoints" / "last.ckpt").model.state_dict()
    assert after.keys() - before.keys() == {"exit_classifier.weight", "exit_classifier.bias"}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    recipe = compose("exit_classifier", [*workplace.words("exit_classifier"), *more])
    start = lightning_cli(recipe, [], run=False).model
    start.configure_model()
    assert not torch.equal(after["exit_classifier.weight"], start.model.exit_classifier.weight)
