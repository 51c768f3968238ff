"""``lit-eff profile --diff`` on two run folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_eff.cli.profile import main
from lit_eff.errors import UserError
from lit_eff.profiling.report import ProfileReport
from lit_eff.profiling.traffic import KernelTraffic, Number


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    """A kernel that asks for 1,200 bytes in one run, for 1,201 in the next."""
    folders = []
    for read in (1000, 1001):
        numbers = {
            "read_bytes": (Number(read, "counted", "interpreter"),),
            "written_bytes": (Number(200, "counted", "interpreter"),),
        }
        folder = tmp_path / f"run_{read}"
        folder.mkdir()
        report = ProfileReport("attention", {}, (KernelTraffic("tiled", {"length": 64}, numbers),))
        report.save(folder / "profile.json")
        folders.append(str(folder))
    return folders[0], folders[1]


def test_more_bytes_are_exit_code_one(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    before, after = runs
    assert main(["--diff", before, after]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith(f"{before} -> {after}; kernels in both: 1\n")
    assert "MORE" in shown
    assert main(["--diff", after, before]) == 0
    assert main(["--diff", before, f"{before}/profile.json"]) == 0


def test_json_has_both_integers(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--diff", "--json", *runs]) == 1
    values = json.loads(capsys.readouterr().out)
    (change,) = values["regressions"]
    assert (change["before"], change["after"]) == (1200, 1201)


def test_mistakes_are_named(runs: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no profile report at"):
        main(["--diff", runs[0], str(tmp_path / "absent")])
    with pytest.raises(UserError, match=r"--tolerance is 2\.0; expected a share"):
        main(["--diff", *runs, "--tolerance", "2"])
