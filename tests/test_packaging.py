"""The wheel, installed in an empty folder, holds all it needs and nothing under a bare name."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_wheel_holds_code_recipes_and_groups(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert f"lit_eff/recipes/{path.name}" in names
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"lit_eff/conf/{path.parent.name}/{path.name}" in names
    assert "lit_eff/py.typed" in names
    for place in ("kernels", "profiling", "lit_eff"):
        for path in (ROOT / place).rglob("*.py"):
            inside = path.relative_to(ROOT).as_posix()
            assert (inside if place == "lit_eff" else f"lit_eff/{inside}") in names
    for name in ("page.css", "page.js"):
        assert f"lit_eff/profiling/{name}" in names


def test_wheel_has_one_top_level_name(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lit_eff"}


def test_wheel_runs_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    """Unpacked on the path before the editable install: recipes compose from inside the package."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import lit_eff; from lit_eff.cli.compose import compose\n"
        "assert 'site' in lit_eff.__file__, lit_eff.__file__\n"
        "print(compose('quickstart').values['trainer']['max_steps'])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
