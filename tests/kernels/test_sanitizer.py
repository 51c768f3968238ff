"""compute-sanitizer finds no access out of bounds and no race in shared memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="compute-sanitizer is not on the PATH")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_launches_are_clean(tool: str) -> None:
    program = Path(__file__).with_name("sanitizer_launches.py")
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # Without torch's caching allocator each tensor is an allocation with watched borders of its own.
    done = subprocess.run(
        ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, str(program)],
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    for part in ("portable 64", "portable 128", "features", "cached"):
        assert part in done.stdout
