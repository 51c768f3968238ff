"""Tiles: every shipped row fits its devices without spills; tuned ones are opt-in and checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_eff.errors import UserError
from lit_eff.kernels.attention import tiles as tiles_module
from lit_eff.kernels.attention import tuning
from lit_eff.kernels.attention.tile_table import TABLE
from lit_eff.kernels.attention.tiles import OPT_IN, Tiles, forward_tiles, shipped_tiles, use_tiles
from lit_eff.kernels.attention.tuning import (
    Problem,
    candidates,
    compile_jobs,
    obstacle,
    read_cache,
    tune,
    write_cache,
)
from lit_eff.profiling.compiled import CompiledResources
from lit_eff.profiling.devices import get_device

# The sm_80 rows serve the Ada cards too, whose shared memory is smaller.
LIMITS = {80: get_device("L4").shared_memory_per_block, 90: get_device("H100 SXM").shared_memory_per_block}
SPILLING = [("key_gradient", 4, 256), ("query_gradient", 4, 256)]
ROWS = [
    (kernel, capability, size, head_dim)
    for kernel, families in TABLE.items()
    for (capability, size), rows in families.items()
    for head_dim in rows
]
DTYPES = {2: torch.bfloat16, 4: torch.float32}


def compile_all(
    wanted: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, kv_heads: int | None = None
) -> list[CompiledResources]:
    """In other processes: this one runs the interpreter."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    return compile_jobs(
        [
            (Problem(4, 1024, 16, head_dim, DTYPES[size], True, kv_heads), kernel, Tiles(*tiles), capability)
            for kernel, capability, size, head_dim, tiles in wanted
        ],
        processes=1,
    )


def check(rows: list[tuple[str, int, int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [(*row, TABLE[row[0]][row[1], row[2]][row[3]]) for row in rows]
    for row, compiled in zip(rows, compile_all(wanted, monkeypatch), strict=True):
        kernel, capability, size, head_dim = row
        spills = 1000 if (kernel, size, head_dim) in SPILLING else 0
        assert obstacle(compiled, LIMITS[capability], spills) is None, row


def test_table_has_a_row_for_everything() -> None:
    for kernel in TABLE:
        for capability in (80, 86, 89, 90, 100, 120):
            for head_dim in (16, 64, 72, 128, 192, 256):
                for size in (2, 4):
                    assert isinstance(shipped_tiles(kernel, head_dim, size, capability), Tiles)
    assert shipped_tiles("forward", 64, 2, 120) == shipped_tiles("forward", 64, 2, 80)
    assert shipped_tiles("forward", 64, 2, 100) == shipped_tiles("forward", 64, 2, 90)


@pytest.mark.parametrize("capability", [80, 90])
def test_usual_rows_fit_without_spills(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check([row for row in ROWS if row[1:3] == (capability, 2) and row[3] <= 128], monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_grouped_heads_hardly_spill(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk over a group's heads costs dK and dV a few registers more than there are."""
    rows = [(*row, TABLE[row[0]][row[1], row[2]][row[3]]) for row in ROWS if row[1:3] == (capability, 2)]
    for compiled in compile_all(rows, monkeypatch, kv_heads=4):
        spills = 64 if "key_gradient" in compiled.kernel else 0
        assert obstacle(compiled, LIMITS[capability], spills) is None, compiled


@pytest.mark.slow
def test_every_other_row_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    check([row for row in ROWS if row[2] == 4 or row[3] > 128], monkeypatch)


@pytest.mark.slow
def test_narrow_heads_take_the_row_of_64(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [(*row[:3], 16, TABLE[row[0]][row[1], row[2]][64]) for row in ROWS if row[2:] == (2, 64)]
    for compiled in compile_all(wanted, monkeypatch):
        assert obstacle(compiled, LIMITS[compiled.capability], 0) is None


def test_what_does_not_fit_is_not_eligible(monkeypatch: pytest.MonkeyPatch) -> None:
    (large,) = compile_all([("forward", 80, 2, 128, (128, 128, 8, 3))], monkeypatch)
    assert "shared memory, the device has 101,376" in str(obstacle(large, LIMITS[80], 10**6))
    spilled = replace(large, shared_memory_bytes=1000, spill_store_bytes=8)
    assert obstacle(spilled, LIMITS[80], 0) == "8 B of registers spilled a thread, at most 0 may be"
    assert obstacle(spilled, LIMITS[80], 8) is None


@pytest.mark.parametrize("kernel", list(TABLE))
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_candidates_are_within_bounds(kernel: str, head_dim: int) -> None:
    found = candidates(kernel, head_dim, 2)
    assert 10 <= len(found) == len(set(found)) <= 60
    assert all(max(tiles.block_m, tiles.block_n) <= 128 for tiles in found)


def test_a_candidate_is_used_only_meanwhile() -> None:
    usual, odd = forward_tiles(64, 2, 90), Tiles(16, 16, 4, 1)
    with use_tiles("forward", odd):
        assert forward_tiles(64, 2, 90) == odd
        assert tiles_module.key_gradient_tiles(64, 2, 90) != odd
    assert forward_tiles(64, 2, 90) == usual


@pytest.fixture
def gpu_of_name(monkeypatch: pytest.MonkeyPatch) -> Any:
    def name(text: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: text)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        tiles_module.tuned_tiles.cache_clear()

    yield name
    tiles_module.tuned_tiles.cache_clear()


def test_tuned_tiles_are_opt_in_and_of_one_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu_of_name: Any
) -> None:
    gpu_of_name("GPU A")
    mine = Tiles(32, 64, 4, 2)
    path = write_cache(Problem(1, 64, 1, 48), {"forward": mine}, tmp_path / "tiles.json")
    write_cache(Problem(1, 64, 1, 128), {"query_gradient": mine}, path)  # adds
    assert forward_tiles(64, 2, 90) == shipped_tiles("forward", 64, 2, 90)
    monkeypatch.setenv(OPT_IN, str(path))
    tiles_module.tuned_tiles.cache_clear()
    assert forward_tiles(64, 2, 90) == forward_tiles(40, 2, 90) == mine
    assert tiles_module.query_gradient_tiles(128, 2, 90) == mine
    assert forward_tiles(64, 4, 90) == shipped_tiles("forward", 64, 4, 90)
    assert forward_tiles(64, 2, 80) == shipped_tiles("forward", 64, 2, 80)
    gpu_of_name("GPU B")
    assert forward_tiles(64, 2, 90) == shipped_tiles("forward", 64, 2, 90)


def test_cache_of_other_kernels_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu_of_name: Any
) -> None:
    gpu_of_name("GPU A")
    path = write_cache(Problem(1, 64, 1, 64), {"forward": Tiles(32, 64, 4, 2)}, tmp_path / "tiles.json")
    assert read_cache(str(path))
    monkeypatch.setattr(tuning, "SOURCES", ("forward",))
    assert read_cache(str(path)) == {}


def test_mistakes_are_named(tmp_path: Path, gpu_of_name: Any) -> None:
    with pytest.raises(UserError, match="no attention kernel 'foward'; did you mean 'forward'"):
        tune(Problem(1, 64, 1, 64), kernels=["foward"])
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="NVIDIA GPU"):
            tune(Problem(1, 64, 1, 64))
    with pytest.raises(UserError, match="no file"):
        read_cache(str(tmp_path / "none.json"))
    gpu_of_name("GPU A")
    broken = tmp_path / "broken.json"
    broken.write_text("[]")
    with pytest.raises(UserError, match="not a tuning cache"):
        read_cache(str(broken))


def test_tuning_never_measures_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """On stand-ins for the device, the compiler and the clock."""
    good, close, large, spilling = (Tiles(16, 16, 4, stages) for stages in (1, 2, 3, 4))
    shipped = shipped_tiles("key_gradient", 32, 4, 90)
    milliseconds = {shipped: 2.0, close: 1.99, good: 1.5, large: 0.1, spilling: 0.1}
    tensors, measured = Problem.tensors, []

    def compile_stand_in(jobs: list[Any], processes: int) -> list[CompiledResources]:
        fit = CompiledResources("attention", 90, 4, 1, 1000, 100, 0, 0)
        faults = {large: {"shared_memory_bytes": 5000}, spilling: {"spill_store_bytes": 4}}
        return [replace(fit, **faults.get(tiles, {})) for _, _, tiles, _ in jobs]

    def measure_stand_in(launches: dict[Tiles, Any], results: list[torch.Tensor]) -> dict[Tiles, float]:
        measured.extend(launches)
        assert all(launch.arguments["BLOCK_M"] == tiles.block_m for tiles, launch in launches.items())
        return {tiles: milliseconds[tiles] for tiles in launches}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(tuning, "shared_memory_limit", lambda: 4000)
    monkeypatch.setattr(Problem, "tensors", lambda self, device: tensors(self, "cpu"))
    monkeypatch.setattr(tuning, "compile_jobs", compile_stand_in)
    monkeypatch.setattr(tuning, "_measure", measure_stand_in)
    problem = Problem(1, 16, 2, 32, torch.float32, kv_heads=1)

    def best(*among: Tiles) -> Tiles:
        kernels, said = ["key_gradient"], lambda line: None
        return tune(problem, kernels=kernels, among=lambda *_: list(among), say=said)["key_gradient"]

    assert best(good, close, large, spilling) == good
    assert measured == [shipped, good, close]
    assert best(close, large) == shipped  # half a percent is noise


@pytest.mark.gpu
def test_tuning_measures_what_is_eligible() -> None:
    said: list[str] = []
    among = [Tiles(64, 64, 4, 2), Tiles(128, 128, 4, 4)]
    best = tune(
        Problem(2, 256, 2, 128), kernels=["forward", "key_gradient"], among=lambda *_: among, say=said.append
    )
    assert set(best) == {"forward", "key_gradient"}
    assert Tiles(128, 128, 4, 4) not in best.values()
    assert any("128 x 128, 4 warps, 4 stages: not eligible" in line for line in said)
    assert any(line.endswith("(shipped)") for line in said)
