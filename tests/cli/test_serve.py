"""``lit-eff serve`` takes the recipe's ``serve`` section from the bundle; the command line wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lit_eff.cli import serve
from lit_eff.cli.main import main
from lit_eff.errors import UserError
from lit_eff.export.config import ExportConfig
from lit_eff.export.job import export_bundle
from lit_eff.runtime.bundle import open_bundle
from lit_eff.runtime.manifest import read_manifest
from lit_eff.serving.config import ServeConfig
from tests.export.models import loaded

SECTION = {"host": "127.0.0.2", "port": 8123, "max_active": 2, "max_body_bytes": 1000, "threads": 1}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = loaded()
    checkpoint.recipe["serve"] = SECTION
    return export_bundle(checkpoint, tmp_path_factory.mktemp("serve") / "b", None, ExportConfig(("torch",)))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> list[ServeConfig]:
    """What the command would serve with: it stops where it would listen."""
    seen: list[ServeConfig] = []

    def listen(config: ServeConfig) -> Any:
        seen.append(config)
        raise UserError("far enough")

    monkeypatch.setattr(serve, "listen", listen)
    return seen


def test_the_bundle_keeps_the_section(bundle: Path) -> None:
    assert open_bundle(bundle).manifest.serve == SECTION


def test_the_section_fills_what_the_command_line_leaves_open(
    bundle: Path, settled: list[ServeConfig]
) -> None:
    assert main(["serve", "--bundle", str(bundle)]) == 2
    assert main(["serve", "--bundle", str(bundle), "--port", "0", "--max-active", "7"]) == 2
    section = ServeConfig(**SECTION)  # type: ignore[arg-type]
    assert settled[0] == section
    assert settled[1] == ServeConfig(**{**SECTION, "port": 0, "max_active": 7})  # type: ignore[arg-type]


def test_a_bundle_without_the_section_is_served_with_the_defaults(
    tmp_path: Path, settled: list[ServeConfig]
) -> None:
    folder = export_bundle(loaded(), tmp_path / "b", None, ExportConfig(("torch",)))
    assert main(["serve", "--bundle", str(folder)]) == 2
    assert settled == [ServeConfig()]


def test_a_setting_of_another_version_is_named(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(bundle).model_copy(update={"serve": {"prot": 1}})
    manifest.save(tmp_path)
    assert main(["serve", "--bundle", str(tmp_path)]) == 2
    assert "unknown serve setting 'prot'; did you mean 'port'" in capsys.readouterr().err


def test_an_altered_section_is_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    document["serve"]["host"] = "0.0.0.0"
    (tmp_path / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    assert main(["serve", "--bundle", str(tmp_path)]) == 2
    assert "manifest.json was altered" in capsys.readouterr().err
