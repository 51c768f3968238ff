"""Kernels compiled for GPUs that are not here, in a process of its own: the tests' runs the interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def compile_all(program: str, requests: list[Any], cache: Path) -> list[dict[str, Any]]:
    """Run ``program``, which takes ``requests`` as JSON in its first argument, and read what it prints.

    Each line is a JSON object, as a rule a `CompiledResources`. ``cache`` becomes Triton's.
    """
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(requests)],
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
