"""Attention in the tile explorer and as a diagram: their bytes are the I/O models'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_eff.kernels.attention.diagram import attention_diagram, flash_schedule, standard_schedule
from lit_eff.kernels.attention.io_model import AttentionShape, flash1_forward, flash2_forward
from lit_eff.kernels.attention.standard.traffic_model import standard_traffic
from lit_eff.kernels.attention.tile_explorer import explore_attention, queries_outside_sram
from lit_eff.kernels.attention.tiles import shipped_tiles
from lit_eff.kernels.attention.traffic_model import forward_traffic
from lit_eff.profiling.devices import get_device
from lit_eff.profiling.tile_explorer import tile_table
from tests.kernels.compiling import compile_all
from tests.profiling.test_diagram import assert_no_text_covers_another

FIGURE_2 = AttentionShape(64, 1024, 1024, 16, 16, 64)
CAUSAL = AttentionShape(2, 1000, 1500, 8, 2, 128, causal=True)
PROGRAM = """
import dataclasses, json, sys, torch
from lit_eff.kernels.attention.io_model import AttentionShape
from lit_eff.kernels.attention.resources import compiled_resources
for capability, head_dim in json.loads(sys.argv[1]):
    shape = AttentionShape(2, 1024, 1024, 4, 4, head_dim, causal=True)
    print(json.dumps(dataclasses.asdict(compiled_resources(shape, torch.bfloat16, capability)[0])))
"""


def test_explored_bytes_are_the_papers_formulas() -> None:
    explored = explore_attention(FIGURE_2, get_device("A100 SXM 40 GB"))
    assert explored.costs[128, 32].hbm_bytes == flash2_forward(FIGURE_2, 128, 32).total
    # Queries outside: K and V pass once a query tile, however wide the key blocks.
    assert explored.costs[128, 16].hbm_bytes == explored.costs[128, 512].hbm_bytes
    assert explored.costs[64, 64].hbm_bytes > explored.costs[128, 64].hbm_bytes
    assert explored.shipped in explored.costs
    assert explored.programs_per_sm(explored.costs[explored.shipped or (0, 0)])
    # The paper's M for its A100: B_c = M / 4d, and the tiles fit in M.
    (curve,) = explored.curves.values()
    for size, cost in curve.items():
        elements = 4 * 64 * size
        assert cost.hbm_bytes == flash1_forward(FIGURE_2, elements).total
        assert cost.sram_bytes <= elements * 2
    assert curve[64].sram_bytes == 4 * 64 * 64 * 2
    assert len(tile_table(explored).rows) == 36


@pytest.mark.slow
def test_the_footprint_is_what_the_compiler_takes(tmp_path: Path) -> None:
    """On Hopper to the byte; on Ampere Q leaves SRAM for registers, which the formula does not count on."""
    requests: list[Any] = [[capability, head_dim] for capability in (80, 90) for head_dim in (32, 64, 128)]
    for (capability, head_dim), found in zip(requests, compile_all(PROGRAM, requests, tmp_path), strict=True):
        tiles = shipped_tiles("forward", head_dim, 2, capability)
        shape = AttentionShape(2, 1024, 1024, 4, 4, head_dim, causal=True)
        formula = queries_outside_sram(shape, tiles.block_m, tiles.block_n, tiles.num_stages)
        if capability == 90:
            assert found["shared_memory_bytes"] == formula
        else:
            assert 0.65 * formula < found["shared_memory_bytes"] <= formula


def test_schedules_move_the_modelled_bytes() -> None:
    for shape in (FIGURE_2, CAUSAL):
        tiles = shipped_tiles("forward", shape.head_dim, 2, 90)
        flash, standard = flash_schedule(shape, tiles), standard_schedule(shape)
        assert flash.total == forward_traffic(shape, tiles).total
        assert standard.total == sum(traffic.total for traffic in standard_traffic(shape).values())
        assert set(standard.tensors) - set(flash.tensors) == {"S", "P"}
    assert standard_schedule(FIGURE_2).tensors["S"].size_bytes == 64 * 16 * 1024 * 1024 * 2


@pytest.mark.parametrize("length", [1000, 16384])
def test_diagram_can_be_read(length: int) -> None:
    shape = AttentionShape(64, length, length, 16, 4, 128, causal=True)
    assert_no_text_covers_another(attention_diagram(shape, 90))
