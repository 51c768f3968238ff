"""Recipes compose with both kinds of override, and a mistake is one line naming the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_eff.cli.compose import compose, find_recipe, is_override, packaged_recipes
from lit_eff.errors import UserError


def test_override_words_are_told_from_options() -> None:
    assert is_override("trainer.max_steps=20")
    assert is_override("model=gpt2_small")
    assert is_override("+vars.a=1")
    assert is_override("~trainer.callbacks.ema")
    assert not is_override("--trainer.max_steps=20")
    assert not is_override("runs/a.ckpt")


@pytest.mark.parametrize("name", packaged_recipes())
def test_packaged_recipes_compose_by_name_and_by_path(name: str) -> None:
    recipe = compose(name)
    assert recipe.values == compose(str(find_recipe(name))).values
    assert "vars" not in recipe.values
    assert "hydra" not in recipe.values


def test_values_group_choices_and_new_keys_override() -> None:
    values = compose("quickstart", ["trainer.max_steps=20", "trainer.gradient_clip_val=0.5"]).values
    assert values["trainer"]["max_steps"] == 20
    assert values["trainer"]["gradient_clip_val"] == 0.5


def test_callbacks_are_named_and_removable() -> None:
    callbacks = compose("quickstart").values["trainer"]["callbacks"]
    assert isinstance(callbacks, list)
    fewer = compose("quickstart", ["trainer.callbacks.samples=null"]).values["trainer"]["callbacks"]
    assert len(fewer) == len(callbacks) - 1


@pytest.mark.parametrize(
    ("config", "overrides", "expected"),
    [
        ("quickstrat", [], "did you mean 'quickstart'"),
        ("quickstart", ["optimizer=adamv"], "did you mean 'adamw'"),
        ("nowhere/none.yaml", [], "no recipe"),
    ],
)
def test_mistakes_are_one_line(config: str, overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        compose(config, overrides)
    assert "\n" not in str(caught.value)


def test_saved_configuration_is_taken_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("trainer: {max_steps: 5}\nname: saved\n")
    recipe = compose(str(path), ["trainer.max_steps=7"])
    assert recipe.name == "saved"
    assert recipe.values["trainer"] == {"max_steps": 7}


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("a: 1\nb: [1, 2\n")
    with pytest.raises(UserError, match=r"broken\.yaml:3:1"):
        compose(str(path))
