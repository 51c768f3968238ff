"""One text and one token cache for all tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.tiny import quickstart, write_text


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny(text: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a tiny quickstart, run from an empty folder."""
    monkeypatch.chdir(tmp_path)
    return quickstart(text, cache)
