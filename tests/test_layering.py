"""The import rule of CONTRIBUTING.md, read off the source: who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FREE = {"errors", "files", "__init__"}  # root modules every room may use

# room -> rooms it may import (beside itself and the free modules)
ALLOWED: dict[str, set[str]] = {
    "kernels": {"profiling"},
    "profiling": set(),
    "runtime": set(),
    "models": {"kernels", "profiling"},
    "decoding": {"models", "runtime", "profiling"},
    "training": {"models", "kernels", "profiling", "runtime", "decoding", "parallel"},
    "parallel": {"models", "profiling"},
    "data": {"models", "profiling"},
    "calibration": {"decoding", "runtime", "models", "profiling"},
    "export": {"decoding", "runtime", "models", "profiling"},
    "serving": {"runtime", "profiling"},
}
LIGHTNING_ROOMS = {"training", "parallel", "data", "cli"}
STATISTICS = [
    f"calibration/{name}.py"
    for name in (
        *("__init__", "config", "inputs", "ltt", "measures", "p_values", "paths", "procedures"),
        "risk_control",
    )
]
TORCH_FREE = ["runtime", "serving", *STATISTICS, "cli/main.py", "cli/generate.py", "cli/serve.py"]
TORCH_FREE += ["cli/verify.py"]


def sources(place: str) -> list[Path]:
    path = ROOT / place if place in ("kernels", "profiling") else ROOT / "lit_eff" / place
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names imported, and whether at module level (run on import)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in top


def room_of(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "lit_eff" and len(parts) > 1 else None


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_the_rule_allows(room: str) -> None:
    assert sources(room), f"room {room} is empty"
    for path in sources(room):
        for dotted, _ in imports(path):
            other = room_of(dotted)
            if other is not None:
                allowed = ALLOWED[room] | {room, "__version__"} | FREE
                assert other in allowed, f"{path.relative_to(ROOT)} imports {dotted}"


def test_calibration_procedures_stand_alone() -> None:
    for place in STATISTICS:
        for dotted, _ in imports(sources(place)[0]):
            assert room_of(dotted) in {None, "calibration", *FREE}, f"{place} imports {dotted}"


def test_lightning_stays_in_its_rooms() -> None:
    for path in sources("."):
        place = path.relative_to(ROOT / "lit_eff").parts[0]
        if place not in LIGHTNING_ROOMS:
            names = {dotted.split(".")[0] for dotted, _ in imports(path)}
            assert not names & {"lightning", "pytorch_lightning"}, path


@pytest.mark.parametrize("place", TORCH_FREE)
def test_serving_side_is_torch_free(place: str) -> None:
    for path in sources(place):
        for dotted, at_top in imports(path):
            assert dotted.split(".")[0] != "torch", f"{path} imports torch"
            if at_top and place.startswith("cli/"):
                assert room_of(dotted) in {None, "cli", "runtime", "serving", *FREE}, (
                    f"{path} imports {dotted}"
                )


def test_top_folders_are_never_importable_bare() -> None:
    """`kernels` is a package on the index and `profiling` a module of Python 3.15."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "profiling" / "__init__.py").exists()
