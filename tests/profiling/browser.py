"""A page as headless Chromium makes it of its HTML."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium to open the page with")

_QUIET = (
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def rendered(url: str, folder: Path, *, milliseconds: int = 0) -> tuple[str, str]:
    """The document after its scripts ran for so long, and what the browser logged, its console included."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *_QUIET, "--enable-logging=stderr"]
    command += [f"--user-data-dir={folder / 'user'}", "--dump-dom"]
    if milliseconds:
        command.append(f"--virtual-time-budget={milliseconds}")
    done = subprocess.run([*command, url], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr
