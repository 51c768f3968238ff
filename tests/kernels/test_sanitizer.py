"""compute-sanitizer finds no access out of bounds and no race in shared memory."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ATTENTION = ROOT / "kernels" / "attention"
REPORT = re.compile(r"Race reported between .*?(?=Race reported between|RACECHECK SUMMARY|\Z)", re.DOTALL)
ACCESS = re.compile(r"access at (\w+)\+0x[0-9a-f]+ in ([\w.]+):(\d+)")


def races(log: str) -> list[str]:
    """Reports of racecheck, without those of how Triton sends the warps of a kernel to their partitions.

    Triton's own code for `warp_specialize` writes and reads one byte a warp, between barriers that racecheck
    does not follow. It stands at the lines of the kernel itself, whose partitions are functions of their own.
    """
    return [
        report
        for report in REPORT.findall(log)
        if not all(_is_dispatch(kernel, file, int(line)) for kernel, file, line in ACCESS.findall(report))
    ]


def _is_dispatch(kernel: str, file: str, line: int) -> bool:
    for path in ATTENTION.rglob(file):
        source = path.read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name == kernel:
                first = min(each.lineno for each in node.decorator_list)
                assert node.end_lineno is not None
                body = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
                if first <= line <= node.end_lineno and "warp_specialize" in body:
                    return True
    return False


def test_only_the_dispatch_is_excepted() -> None:
    source = (ATTENTION / "hopper" / "forward.py").read_text(encoding="utf-8")
    places = {node.name: node.lineno for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    line = "Race reported between Read access at attention_forward_kernel+0x1d0 in forward.py:{}\n"
    line += "    and Write access at attention_forward_kernel+0x19590 in forward.py:{} [3 hazards]\n"
    kernel, partition = places["attention_forward_kernel"], places["_consume"] + 5
    assert races(line.format(kernel, kernel + 3)) == []
    assert len(races(line.format(kernel, kernel) + line.format(kernel, partition))) == 1
    portable = line.replace("forward.py", "output.py").replace("attention_forward_kernel", "elsewhere")
    assert len(races(portable.format(1, 1))) == 1


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
    found = races(done.stdout)
    assert not found, "\n".join(found)[-4000:]
    clean = done.returncode == 0 or (tool == "racecheck" and done.returncode == 9)
    assert clean, done.stdout[-4000:] + done.stderr[-2000:]
    parts = "portable 64", "portable 128", "features", "cached", "losses", "writes", "activations", "sampling"
    for part in parts:
        assert part in done.stdout
