"""The fixture that a conftest imports: one corpus a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.callbacks.tiny import make_data, write_text


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file whose tokens are cached already."""
    path = write_text(tmp_path_factory.mktemp("corpus"))
    make_data(path).prepare_data()
    return path
