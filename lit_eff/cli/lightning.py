"""``lit-eff fit|validate|test|predict``: a recipe, composed by Hydra, run by LightningCLI.

``group=choice`` and ``a.b=1`` go to Hydra; ``--a.b 1`` goes to jsonargparse and wins.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn
from zipfile import is_zipfile

import numpy as np
import yaml
from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from lit_eff.calibration.config import CalibrationConfig
from lit_eff.cli.compose import Recipe, compose, is_override, override, packaged_recipes
from lit_eff.cli.explain import explain, option_names
from lit_eff.cli.quiet import quiet
from lit_eff.errors import UserError, nearest
from lit_eff.export.config import ExportConfig
from lit_eff.files import atomic_path
from lit_eff.models.config import ExitConfig
from lit_eff.profiling.config import ProfileConfig
from lit_eff.runtime.decoding_config import DecodingConfig
from lit_eff.serving.config import ServeConfig
from lit_eff.training.callbacks.artifacts import RunArtifacts, git_commit

# Sections of a recipe beside Lightning's own; each later command reads one.
SECTIONS: dict[str, type] = {
    "exits": ExitConfig,
    "calibration": CalibrationConfig,
    "decoding": DecodingConfig,
    "export": ExportConfig,
    "serve": ServeConfig,
    "profile": ProfileConfig,
}
# What a recipe may hold; the rest of a parsed command line (ckpt_path, say) is of that call alone.
JOB = ("name", "seed_everything", "trainer", "model", "data", *SECTIONS)


class _OneLineParser(LightningArgumentParser):
    """Reports an error as one line that names the key and the nearest valid ones."""

    recipe: Recipe | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Abbreviated options would let a typo through: --calibration.delt would set delta.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        values = self.recipe.values if self.recipe else {}
        raise UserError(explain(message, set(option_names(self)), values)) from None


class SaveConfig(SaveConfigCallback):
    """Writes the run's replayable ``config.yaml``, whole or not at all."""

    def __init__(self, parser: Any, config: Any, job: str, **settings: Any) -> None:
        super().__init__(parser, config, save_to_log_dir=False, **settings)
        self.job = job

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        folder = trainer.log_dir  # asked on every rank: the ranks agree on it together
        if stage == "fit" and folder is not None and trainer.is_global_zero:
            with atomic_path(Path(folder) / "config.yaml") as temporary:
                temporary.write_text(self.job, encoding="utf-8")

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Nothing beyond what :meth:`setup` writes."""


class LitEffCLI(LightningCLI):
    """LightningCLI with the recipe's own sections typed beside the trainer, model and data."""

    def __init__(self, recipe: Recipe, args: list[str], *, run: bool = True) -> None:
        quiet()
        self.recipe = recipe
        self.save_config_kwargs: dict[str, Any]
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=_OneLineParser,
            # A separate optimizer built by the CLI would be built before FSDP2 shards and train nothing.
            auto_configure_optimizers=False,
            save_config_callback=SaveConfig,
            args=args,
            run=run,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = super().init_parser(**kwargs)
        assert isinstance(parser, _OneLineParser)
        parser.recipe = self.recipe
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default=self.recipe.name, help="Name of the run's folder.")
        for name, section in SECTIONS.items():
            parser.add_argument(f"--{name}", type=section, default=section())
        parser.link_arguments("exits", "model.init_args.config.exits")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Lightning's own warns about sys.argv beside ``args``, and on several devices its launcher starts
        # the other processes with sys.argv, which is therefore left alone.
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        # Lightning's own reads the whole file for hyperparameters, which our modules do not keep.
        path = self.config.get(str(self.config.get("subcommand")), {}).get("ckpt_path")
        if path is None or str(path) in ("best", "last", "hpc"):
            return
        if not Path(path).exists():
            raise UserError(f"no checkpoint at {path}; check --ckpt_path")
        if Path(path).is_file() and not is_zipfile(path):
            raise UserError(f"{path} cannot be read: truncated, or not a PyTorch checkpoint")

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        job, commit = self._job(), git_commit()
        about = {"recipe": self.recipe.name, "overrides": shlex.join(self.recipe.overrides), "commit": commit}
        header = "".join(f"# {key}: {value}\n" for key, value in about.items() if value)
        self.save_config_kwargs = {"job": header + job}
        artifacts = RunArtifacts(
            recipe=yaml.safe_load(job),
            recipe_name=self.recipe.name,
            overrides=list(self.recipe.overrides),
            git_commit=commit,
        )
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": [artifacts]}
        if self.subcommand not in (None, "fit"):
            kwargs["logger"] = False  # or each evaluation would leave a run folder of its own
        return super().instantiate_trainer(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Every exit's predictions on the test split, as NumPy arrays (exits, tokens or documents)."""
        batches = self.trainer.predict(**kwargs) or []
        path = Path(kwargs.get("ckpt_path") or ".").parent / "predictions.npz"
        if self.trainer.is_global_zero:
            names = ("prediction_EN", "confidence_EN", "nll_EN")
            arrays: Any = {
                name: np.concatenate([getattr(batch, name) for batch in batches], axis=1) for name in names
            }
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, exit_layers=self.model.config.exit_layers, **arrays)
            print(path)

    def _job(self) -> str:
        """The parsed recipe as YAML, with every default and override in place."""
        config = self.config.get(str(self.subcommand), self.config).clone()
        for key in set(vars(config)) - set(JOB):
            config.pop(key)
        return str(self._parser(self.subcommand).dump(config, skip_none=False, skip_validation=True))


def split_arguments(argv: list[str]) -> tuple[str | None, list[str], list[str]]:
    """Separate ``--config RECIPE``, Hydra's words and the rest (jsonargparse's), in that order."""
    config: str | None = None
    overrides: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word in ("--config", "-c"):
            config = next(words, None)
            if config is None:
                raise UserError("--config needs a value: a recipe's path or the name of a packaged one")
        elif word.startswith("--config="):
            config = word.partition("=")[2]
        elif is_override(word):
            overrides.append(word)
        else:
            rest.append(word)
            if word.startswith("--") and "=" not in word:  # its value may look like an override
                value = next(words, None)
                rest.extend([value] if value is not None else [])
    return config, overrides, rest


def recipe_of(config: str | None, overrides: list[str], rest: list[str]) -> Recipe:
    """The recipe asked for or, without ``--config``, the one stored in ``--ckpt_path``."""
    if config is not None:
        return compose(config, overrides)
    if "--ckpt_path" in rest[:-1]:
        return recipe_of_checkpoint(rest[rest.index("--ckpt_path") + 1], overrides)
    for word in rest:
        if word in packaged_recipes():
            raise UserError(f"unexpected {word!r}; did you mean --config {word}?")
        if get_close_matches(word, ["--config", "--ckpt_path"]):
            raise UserError(f"unknown option {word!r}{nearest(word, ['--config', '--ckpt_path'])}")
    raise UserError("no recipe: pass --config with a recipe's path or name (see lit-eff recipes)")


def recipe_of_checkpoint(ckpt_path: str | Path, overrides: list[str]) -> Recipe:
    """The recipe a checkpoint was trained with, with overrides applied."""
    from lit_eff.models.checkpoint import load_checkpoint

    loaded = load_checkpoint(ckpt_path)
    name = loaded.metadata["recipe_name"] or "run"
    return Recipe(name, override(loaded.recipe, overrides), tuple(overrides))


def lightning_cli(recipe: Recipe, args: list[str], *, run: bool = True) -> LitEffCLI:
    """LightningCLI on a composed recipe; ``args`` are a subcommand (if it is to run) and its options.

    Raises:
        UserError: for anything the types or the Trainer refuse.
    """
    command, options = args[: int(run)], args[int(run) :]
    recipe.check_set(options=options)
    recipe = replace(recipe, overrides=(*recipe.overrides, *options))
    with plain_errors():
        return LitEffCLI(recipe, [*command, "--config", json.dumps(recipe.values), *options], run=run)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Lightning's and jsonargparse's own errors for what a user got wrong, as one line."""
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from None
    except SystemExit as error:  # Lightning's answer to Ctrl-C, where SaveOnInterrupt does not yet listen
        if error.code == 1 and isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    except ValueError as error:  # jsonargparse wraps what a class raises when it is built
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise cause from None


def main(command: str, argv: list[str]) -> int:
    """``lit-eff fit|validate|test|predict``."""
    if any(word in ("--help", "-h") for word in argv):
        LitEffCLI(Recipe("", {}, ()), [command, "--help"])
    config, overrides, rest = split_arguments(argv)
    lightning_cli(recipe_of(config, overrides, rest), [command, *rest])
    return 0


def _section_parser(name: str, kind: type) -> ArgumentParser:
    parser = _OneLineParser()
    parser.add_argument(f"--{name}", type=kind, default=kind())
    return parser


def typed_section(recipe: Recipe, name: str) -> Any:
    """One of :data:`SECTIONS` as its dataclass; absent means defaults."""
    parser = _section_parser(name, SECTIONS[name])
    given = recipe.values.get(name)
    parsed = parser.parse_object({} if given is None else {name: given})
    with plain_errors():
        return parser.instantiate_classes(parsed)[name]


def instantiate_data(recipe: Recipe) -> LightningDataModule:
    """The recipe's DataModule, set up (tokenizer trained, tokens cached) outside a Trainer."""
    parser = _OneLineParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    recipe.check_set("data.")
    if "data" not in recipe.values:
        raise UserError(f"recipe {recipe.name!r} has no data section")
    parsed = parser.parse_object({"data": recipe.values["data"]})
    with plain_errors():
        data = parser.instantiate_classes(parsed)["data"]
    assert isinstance(data, LightningDataModule)
    data.prepare_data()
    data.setup("fit")
    return data
