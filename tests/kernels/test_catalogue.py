"""Every shipped Triton kernel: bytes counted in the interpreter equal its I/O model's, tensor by tensor."""

from __future__ import annotations

import ast
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from lit_eff.bench.interpreted import patched_once
from lit_eff.kernels.catalogue import FOLDERS, Operation, get_operation
from lit_eff.profiling.counted import count_traffic
from tests.kernels.counting import by_buffer, requested

KERNELS = Path(__file__).parents[2] / "kernels"
DRAWN = 100  # cases of each operation in the slow suite


def operations() -> list[Operation]:
    return [get_operation(name) for name in FOLDERS]


def assert_counted_as_modelled(operation: Operation, case: Any) -> None:
    torch.manual_seed(0)
    launches = operation.launches(case, torch.device("cpu"), 90)
    with patched_once(), count_traffic() as counts:
        for each in launches:
            each.launch.run()
    for count, each in zip(counts, launches, strict=True):
        traffic = each.traffic
        for kind, modelled in (
            ("loads", traffic.reads),
            ("stores", traffic.writes),
            ("atomics", traffic.atomics),
        ):
            counted = requested(count, kind)
            assert counted == by_buffer(modelled, count.tensors), (count.kernel, kind)
        if traffic.sectors is not None:
            assert count.read_sector_bytes == traffic.sectors, count.kernel


CASES = [
    pytest.param(operation, case, id=f"{operation.name} {case}")
    for operation in operations()
    if not operation.gluon
    for case in operation.small
]


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(("operation", "case"), CASES)
def test_counted_equals_modelled(operation: Operation, case: Any) -> None:
    assert_counted_as_modelled(operation, case)


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("seed", range(DRAWN))
@pytest.mark.parametrize(
    "operation", [each for each in operations() if not each.gluon], ids=lambda each: each.name
)
def test_drawn_cases_count_as_modelled(operation: Operation, seed: int) -> None:
    assert_counted_as_modelled(operation, operation.draw(Random(seed)))


@pytest.mark.parametrize("operation", operations(), ids=lambda each: each.name)
def test_a_dozen_small_cases(operation: Operation) -> None:
    assert operation.gluon or len(set(operation.small)) >= 12


def test_every_folder_is_catalogued() -> None:
    """Each folder that holds a kernel says what its launches move."""
    catalogued = {folder.split(".")[0] for folder in FOLDERS.values()}
    for path in KERNELS.rglob("*.py"):
        if _has_kernel(path):
            assert path.relative_to(KERNELS).parts[0] in catalogued, path


def _has_kernel(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel") for node in tree.body)
