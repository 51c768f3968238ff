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
    overrides = ["vars.init_from=folder"]  # what exit_tuning interpolates and leaves to its user
    recipe = compose(name, overrides)
    assert recipe.values == compose(str(find_recipe(name)), overrides).values
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


def test_what_a_recipe_leaves_open_is_named_until_it_is_given() -> None:
    recipe = compose("gpt2_small")
    assert recipe.unset == ("data.init_args.source",)
    assert "source" not in recipe.values["data"]["init_args"]
    with pytest.raises(UserError, match=r"leaves data\.init_args\.source to you"):
        recipe.check_set()
    recipe.check_set("model.")
    for option in ("--data.init_args.source", "--data.source=x"):
        recipe.check_set(options=[option])
    assert compose("gpt2_small", ["data.init_args.source=x"]).unset == ()


@pytest.mark.parametrize(
    "value", ["runs/epoch=1-step=20.ckpt", "a folder/it's.txt", "hf:name:config", "*.txt"]
)
def test_values_need_no_quotes(value: str) -> None:
    recipe = compose("quickstart", [f"data.init_args.source={value}"])
    assert recipe.values["data"]["init_args"]["source"] == value


@pytest.mark.parametrize(
    ("config", "overrides", "expected"),
    [
        ("quickstrat", [], "did you mean 'quickstart'"),
        ("quickstart", ["optimizer=adamv"], "did you mean 'adamw'"),
        ("nowhere/none.yaml", [], "no recipe"),
        ("quickstart", ["trainer.max_steps=[1"], "does not compose"),
        ("exit_tuning", [], r"leaves vars\.init_from to you"),
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


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("optimizer=adamw", "choosing from a group works on recipes"),
        ("~trainer.max_steps", "removing keys works on recipes"),
        ("trainer.callbacks.samples=null", "is a list in a saved config"),
    ],
)
def test_what_a_saved_configuration_cannot_take(tmp_path: Path, word: str, expected: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("trainer: {max_steps: 5, callbacks: [{class_path: a}]}\n")
    with pytest.raises(UserError, match=expected) as caught:
        compose(str(path), [word])
    assert "\n" not in str(caught.value)


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("a: 1\nb: [1, 2\n")
    with pytest.raises(UserError, match=r"broken\.yaml:3:1"):
        compose(str(path))
