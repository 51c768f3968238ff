"""Sampling and acceptance, compiled for GPUs that are not here: shared memory, registers, spills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.kernels.compiling import compile_all

PROGRAM = """
import dataclasses, json, sys, torch
from lit_eff.kernels.sampling import Tree
from lit_eff.kernels.sampling.call import Parameters, Selection, accept_launches, sample_launches
from lit_eff.kernels.sampling.penalty import Penalties, penalty_launch
from lit_eff.profiling.compiled import compile_launch
torch.set_default_device("meta")
ints = lambda *size: torch.empty(*size, dtype=torch.int64)
for r in json.loads(sys.argv[1]):
    dtype, capability, vocabulary = getattr(torch, r["dtype"]), r["capability"], r["vocabulary"]
    batch = r["rows"]
    floats = torch.empty(batch)
    on = floats if r["truncated"] else None
    top_k = torch.empty(batch, dtype=torch.int32) if r["truncated"] else None
    parameters = Parameters(floats, top_k, on, on, ints(batch), ints(batch))
    if r["tree"] is None:
        selection = Selection(torch.empty(batch, vocabulary, dtype=dtype), None, parameters, capability)
        size = (batch, r["draws"])
        launches = sample_launches(selection, ints(*size), torch.empty(size), 1)
        rows, drafted = ints(batch), ints(batch, 3)
        table = torch.empty(batch, vocabulary)
        counts, prompt = table.int(), table.bool()
        for penalties in (
            Penalties(rows, table, counts, prompt, drafted, floats, floats, floats),
            Penalties(None, None, counts, None, None, floats, None, None),
        ):
            launches.append(penalty_launch(selection.target_NV, penalties, table))
    else:
        tree = Tree(tuple(r["tree"]))
        nodes = len(tree.parents)
        target = torch.empty(batch * (nodes + 1), vocabulary, dtype=dtype)
        draft = torch.empty(batch * len(tree.families), vocabulary, dtype=dtype) if r["sampled"] else None
        selection = Selection(target, draft, parameters, capability)
        launches = accept_launches(selection, ints(batch, nodes), tree, ints(batch, tree.depth),
                                   torch.empty(batch, dtype=torch.int32), ints(batch))
    for launch in launches:
        print(json.dumps(dataclasses.asdict(compile_launch(launch, capability))))
"""
USUAL: dict[str, Any] = {
    "rows": 8,
    "vocabulary": 128_256,
    "dtype": "float32",
    "truncated": True,
    "draws": 1,
    "tree": None,
    "sampled": True,
}
CHAIN, BUSHY = [-1, 0, 1, 2], [-1, -1, -1, 0, 0, 1, 3, 3]
FORMS: list[dict[str, Any]] = [{"draws": 4, "dtype": "bfloat16"}, {"tree": BUSHY}]
ALL_FORMS: list[dict[str, Any]] = [
    *FORMS,
    {"truncated": False},
    {"rows": 1, "vocabulary": 50_257},
    {"vocabulary": 300, "draws": 2},
    {"tree": CHAIN},
    {"tree": CHAIN, "sampled": False, "truncated": False},
    {"tree": [-1], "rows": 1, "dtype": "float16"},
]


def compiled(forms: list[dict[str, Any]], capability: int, cache: Path) -> list[dict[str, Any]]:
    return compile_all(PROGRAM, [USUAL | form | {"capability": capability} for form in forms], cache)


def check(resources: list[dict[str, Any]]) -> None:
    """Of spills no more than the assembler sets aside at times, registers or not."""
    assert resources
    for each in resources:
        assert each["shared_memory_bytes"] <= 32 * 1024, each
        assert each["registers_per_thread"] * 32 * each["num_warps"] <= 65_536, each
        assert each["spill_store_bytes"] <= 8, each


@pytest.mark.parametrize("capability", [80, 90])
def test_usual_forms_fit(capability: int, tmp_path: Path) -> None:
    check(compiled(FORMS, capability, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_form_fits(capability: int, tmp_path: Path) -> None:
    check(compiled(ALL_FORMS, capability, tmp_path))
