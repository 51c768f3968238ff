"""``lit-eff recipes [NAME]``: the packaged recipes with their first comment line, or one whole."""

from __future__ import annotations

from lit_eff.cli.arguments import Parser
from lit_eff.cli.compose import RECIPES, find_recipe, packaged_recipes


def main(argv: list[str]) -> int:
    """List the packaged recipes, or print one to copy from."""
    parser = Parser(prog="lit-eff recipes", description=__doc__)
    parser.add_argument("name", nargs="?", help="a recipe to print")
    options = parser.parse(argv)
    if options.name:
        print(find_recipe(options.name).read_text(encoding="utf-8"), end="")
        return 0
    for name in packaged_recipes():
        first = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        print(f"{name:<24} {first}")
    return 0
