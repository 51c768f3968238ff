"""Recipes: Hydra composes one plain dictionary; jsonargparse types and instantiates it later.

A recipe is a YAML file with a ``defaults:`` list over the groups in ``conf/``. A YAML file without one is a
stock LightningCLI configuration (a run's saved ``config.yaml``, say) and is taken as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import lit_eff
from lit_eff.errors import UserError, nearest, require

PACKAGE = Path(lit_eff.__file__).parent
RECIPES = PACKAGE / "recipes"
GROUPS = PACKAGE / "conf"


@dataclass(frozen=True)
class Recipe:
    """A composed job: ``values`` are plain types, ready for jsonargparse; ``overrides`` made it so.

    ``unset`` are the dotted keys that the recipe leaves to its user (``???``) and no override gave.
    """

    name: str
    values: dict[str, Any]
    overrides: tuple[str, ...]
    unset: tuple[str, ...] = ()

    def check_set(self, section: str = "", options: Iterable[str] = ()) -> None:
        """Raises UserError for an unset key of a section, unless one of ``options`` (``--a.b``) sets it."""
        # jsonargparse takes --data.source for --data.init_args.source
        given = {option.lstrip("-").partition("=")[0].replace(".init_args", "") for option in options}
        for key in self.unset:
            if key.startswith(section) and key.replace(".init_args", "") not in given:
                raise UserError(f"recipe {self.name!r} leaves {key} to you: add {key}=VALUE")


def packaged_recipes() -> list[str]:
    """Names that ``--config NAME`` finds without a path."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(config: str) -> Path:
    """The file a ``--config`` value means: a path, or the name of a packaged recipe.

    Raises:
        UserError: naming the nearest packaged recipe.
    """
    path = Path(config)
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"--config {config} is a folder; expected a YAML file")
    packaged = RECIPES / f"{path.stem}.yaml"
    if path.suffix in ("", ".yaml") and path.name in (path.stem, packaged.name) and packaged.is_file():
        return packaged
    if path.parent == Path("recipes") and packaged.is_file():  # the path as written in the README
        return packaged
    raise UserError(
        f"no recipe {config!r}: no such file or packaged recipe{nearest(path.stem, packaged_recipes())}"
    )


def compose(config: str, overrides: list[str] | None = None) -> Recipe:
    """Compose a recipe with Hydra-style ``overrides`` (``group=choice``, ``a.b=1``) into a plain dictionary.

    Keys that no YAML file mentions may be set too: whether they exist is for the types to say.

    Raises:
        UserError: for a missing recipe, group choice or broken YAML, in one line.
    """
    path = find_recipe(config).resolve()
    overrides = list(overrides or [])
    raw = _read_yaml(path)
    values = _compose_groups(path, overrides) if "defaults" in raw else override(raw, overrides)
    unset = tuple(_pop_unset(values))
    name = values.get("name") or path.stem
    return Recipe(str(name), _flatten_callbacks(_strip_vars(values)), tuple(overrides), unset)


def is_override(argument: str) -> bool:
    """Whether a command-line word is Hydra's (``a.b=1``) rather than jsonargparse's (``--a.b``)."""
    return re.match(r"^(\+\+?|~)?[A-Za-z_][\w./@:-]*(=|$)", argument) is not None and (
        "=" in argument or argument.startswith("~")
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds {type(raw).__name__}; expected a mapping of sections")
    return raw


def _group_choices(group: str, extra: Path) -> list[str]:
    folders = (GROUPS / group, extra / group)
    return sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")})


def _compose_groups(path: Path, overrides: list[str]) -> dict[str, Any]:
    require("hydra", "train")
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

    words = [f"hydra.searchpath=[file://{GROUPS}]"]
    for override in overrides:
        key, _, choice = override.lstrip("+").partition("=")
        choices = _group_choices(key.partition("@")[0], path.parent)
        if choices:
            if not override.startswith("~") and choice not in choices:
                raise UserError(f"no choice {choice!r} in group {key!r}{nearest(choice, choices)}")
            words.append(override)
        else:
            words.append(_quoted(override if override[0] in "+~" else f"++{override}"))
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(path.parent), version_base="1.3"):
            composed = hydra_compose(path.stem, overrides=words)
        values = OmegaConf.to_container(composed, resolve=True)
    except InterpolationToMissingValueError as error:
        missing = str(error).splitlines()[0].rpartition(" ")[2]
        raise UserError(f"recipe {path.stem!r} leaves {missing} to you: add {missing}=VALUE") from None
    except (HydraException, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"recipe {path.name} does not compose: {reason}") from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _quoted(word: str) -> str:
    """Hydra's own grammar needs quotes around values such as ``a=b`` (in names of checkpoints) or ``a b``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = word.partition("=")
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        if equals and value[:1] not in ("[", "{", "(", "'", '"'):
            escaped = value.replace("\\", "\\\\").replace("'", "\\'")
            return f"{key}='{escaped}'"
    return word


def override(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """``values`` with ``a.b=1`` words applied; for configurations that are composed already."""
    require("omegaconf", "train")
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    config = OmegaConf.create(values)
    for word in overrides:
        key, _, value = word.lstrip("+").partition("=")
        if word.startswith("~"):
            raise UserError(f"{word!r}: removing keys works on recipes with defaults:, not on a saved config")
        if "." not in key and (GROUPS / key).is_dir():
            raise UserError(
                f"{word!r}: choosing from a group works on recipes with defaults:, not on a saved config"
            )
        try:
            OmegaConf.update(config, key, yaml.safe_load(value), force_add=True)
        except ValueError:  # a name where a list has numbers
            raise UserError(
                f"{word!r}: a part of {key} is a list in a saved config; give its number"
            ) from None
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise UserError(f"{word!r} does not fit the saved config: {str(error).splitlines()[0]}") from None
    changed = OmegaConf.to_container(config)
    assert isinstance(changed, dict)
    return {str(key): value for key, value in changed.items()}


def _pop_unset(values: Any, prefix: str = "") -> Iterator[str]:
    """Remove the keys whose value is OmegaConf's ``???``, and name them."""
    for key, value in list(values.items() if isinstance(values, dict) else ()):
        if value == "???":
            del values[key]
            if prefix != "vars.":
                yield f"{prefix}{key}"
        else:
            yield from _pop_unset(value, f"{prefix}{key}.")


def _strip_vars(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "vars"}


def _flatten_callbacks(values: dict[str, Any]) -> dict[str, Any]:
    """Hydra cannot compose lists, so recipes name their callbacks; null removes one."""
    trainer = values.get("trainer")
    if isinstance(trainer, dict) and isinstance(trainer.get("callbacks"), dict):
        callbacks = [callback for callback in trainer["callbacks"].values() if callback]
        values = {**values, "trainer": {**trainer, "callbacks": callbacks}}
    return values
