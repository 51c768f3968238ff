"""The Hopper kernel on a cache without a GPU: what it takes compiled, what it refuses, its order of work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_eff.kernels.attention.with_cache.call import CacheCall
from lit_eff.kernels.attention.with_cache.io_model import CacheShape
from lit_eff.kernels.attention.with_cache.paths import obstacle
from lit_eff.kernels.attention.with_cache.tiles import HOPPER, CacheTiles, Deal, Unit, cache_tiles, deal
from lit_eff.profiling.devices import get_device
from tests.kernels.compiling import compile_all
from tests.kernels.in_python import Pointer, in_python
from tests.kernels.test_with_cache_resources import USUAL

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")

from lit_eff.kernels.attention.with_cache import combine, hopper, hopper_items, hopper_load

PROGRAM = """
import dataclasses, json, sys, torch
from unittest import mock
from lit_eff.kernels.attention.with_cache import call as cache_call
from lit_eff.kernels.attention.with_cache.operator import launches
from lit_eff.kernels.attention.with_cache.tiles import Deal, Unit
from lit_eff.profiling.compiled import compile_launch
from tests.kernels.test_with_cache_hopper import drawn
for request in json.loads(sys.argv[1]):
    unit, *sizes = request.pop("deal")
    with mock.patch.object(cache_call, "deal", return_value=Deal(Unit(unit), *sizes)):
        call = drawn(**request)
        lse = torch.empty(call.batch, 32, request["queries"], device="meta")
        launch = launches(call, call.q_BTHD, lse)[0]
    print(json.dumps(dataclasses.asdict(compile_launch(launch, 90))))
"""


def drawn(
    batch: int = 2,
    slots: int = 8192,
    queries: int = 8,
    head_dim: int = 128,
    dtype: str = "bfloat16",
    page: int = 0,
    tree: bool = False,
    heads: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    ragged: bool = False,
    capability: int = 90,
) -> CacheCall:
    """A call without storage: 32 query heads on 8 kv heads."""
    with torch.device("meta"):
        q = torch.empty(batch, queries, 32, head_dim, dtype=getattr(torch, dtype))
        sizes = (batch * slots // page, page) if page else (batch, slots)
        cache = torch.empty(*sizes, 8, head_dim, dtype=q.dtype)
        table = torch.empty(batch, slots // page, dtype=torch.int32) if page else None
        lengths = torch.empty(batch, dtype=torch.int64)
        tree_mask = torch.empty(batch, queries, queries, dtype=torch.bool) if tree else None
        each_head = torch.empty(32) if heads else None
    return CacheCall(
        q, cache, cache, lengths, table, lengths if ragged else None, tree_mask, each_head, each_head, 0.1,
        window, softcap, None, target=capability,
    )  # fmt: skip


ROW, SEGMENT, CHUNK = ("row", 2, 1), ("segment", 2, 2), ("chunk", 16, 16)


def compiled(forms: list[dict[str, Any]], cache: Path) -> list[dict[str, Any]]:
    done = compile_all(PROGRAM, [USUAL | {"deal": ROW, "capability": 90} | form for form in forms], cache)
    assert {each["kernel"] for each in done} == {"hopper_cache_split_kernel"}
    for each in done:
        assert each["shared_memory_bytes"] <= get_device("H100 SXM").shared_memory_per_block, each
    return done


def test_usual_forms_do_not_spill(tmp_path: Path) -> None:
    forms: list[dict[str, Any]] = [
        {},
        {"deal": SEGMENT},
        {"deal": CHUNK, "head_dim": 64},
        {"deal": SEGMENT, "page": 16},
        {"deal": SEGMENT, "page": 64, "tree": True},
    ]
    for each in compiled(forms, tmp_path):
        assert each["spill_store_bytes"] == 0, each


@pytest.mark.slow
def test_every_form_fits(tmp_path: Path) -> None:
    forms: list[dict[str, Any]] = [
        *({"deal": share, "tree": True, "window": 100} for share in (ROW, SEGMENT, CHUNK)),
        {"softcap": 30.0, "heads": True, "page": 256},
        {"heads": True, "head_dim": 64, "dtype": "float16"},
        {"deal": CHUNK, "page": 8, "head_dim": 64, "ragged": True},
        {"page": 32, "ragged": True, "tree": True, "heads": True, "window": 300, "softcap": 20.0},
    ]
    for each in compiled(forms, tmp_path):
        assert each["spill_store_bytes"] <= 64, each  # addresses and sizes of the rare steps


@pytest.mark.parametrize("page", [0, 8, 16, 32, 64, 192, 256])
def test_what_is_taken(page: int) -> None:
    assert obstacle(drawn(page=page)) is None


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (drawn(capability=80), "sm_80"),
        (drawn(capability=100), "sm_100"),
        (drawn(dtype="float32"), "float32"),
        (drawn(head_dim=96), "head dim 96"),
        (drawn(page=1), "pages of 1 slots"),
        (drawn(page=40), "pages of 40 slots"),
        (drawn(slots=0), "empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(refused: CacheCall, reason: str) -> None:
    found = obstacle(refused)
    assert found is not None
    assert reason in found


@pytest.mark.parametrize(
    ("row_tiles", "slots", "unit", "items"),
    [
        (128, 8192, Unit.ROW, 128),
        (8, 65536, Unit.SEGMENT, 128),
        (512, 4096, Unit.ROW, 512),
        (8, 8192, Unit.CHUNK, 128),
        (8, 200, Unit.ROW, 8),
    ],
)
def test_deal(row_tiles: int, slots: int, unit: Unit, items: int) -> None:
    """One wave of long streams where there can be one, and no join without need."""
    share = deal(cache_tiles(128, 2, 90), slots, row_tiles, 132, HOPPER)
    assert share.unit is unit
    assert row_tiles * share.runs == items


class Record:
    """In the place of `_load_tile`: notes tile, batch row, kv head and slot."""

    def __init__(self, noted: list[Any]) -> None:
        self.noted = noted

    def __call__(
        self, ring: Any, n: int, d_rows: Any, i_b: int, slot: int, i_kv: int, page_size: int
    ) -> None:
        self.noted.append((n, i_b, i_kv, slot))


class Step:
    """In the place of `_step`: notes the same and counts steps as the output."""

    def __init__(self, noted: list[Any]) -> None:
        self.noted = noted

    def __call__(self, acc: Any, b_max: Any, b_sum: Any, n: int, slot: int, *rest: Any) -> Any:
        item = rest[4]
        self.noted.append((n, item.i_b, item.i_kv, slot))
        return acc + 1, None, None


LENGTHS = (0, 1, 31, 32, 33, 95, 96, 97, 200, 40, 250)
SMALL = CacheTiles(rows=16, block_n=16, chunk=32, segment=96, num_warps=4, num_stages=2)
DEALS = [
    Deal(Unit.CHUNK, 9, 9),
    Deal(Unit.CHUNK, 9, 4),
    Deal(Unit.SEGMENT, 3, 3),
    Deal(Unit.SEGMENT, 3, 2),
    Deal(Unit.ROW, 3, 1),
]


@pytest.mark.parametrize("window", [None, 1, 50], ids=str)
@pytest.mark.parametrize("queries", [1, 3, 9])
@pytest.mark.parametrize("share", DEALS, ids=lambda share: f"{share.unit.value}{share.runs}")
def test_both_partitions_take_the_same_steps(share: Deal, queries: int, window: int | None) -> None:
    """Every unit of every row once; the loading warp's tiles are those that are computed with, in order."""
    counts = tuple((i * 5) % (queries + 1) for i in range(len(LENGTHS)))
    shape = CacheShape(queries, 6, 2, 64, LENGTHS, 264, query_lengths=counts, window=window)
    whole = share.unit is Unit.ROW
    unit_slots = SMALL.chunk if share.unit is Unit.CHUNK else SMALL.segment
    row_tiles = -(-shape.rows // SMALL.rows)
    items = row_tiles * shape.kv_heads * share.runs * len(LENGTHS)
    problem = hopper_items.Problem(
        Pointer(LENGTHS), Pointer(counts), None, 0, 0, queries, shape.capacity, shape.group, shape.kv_heads,
        window or 0, share.runs, items,
    )  # fmt: skip
    tiles = (SMALL.rows, SMALL.block_n, unit_slots, window is not None, whole)
    item_of = in_python(hopper_items.item_of, row_tile=in_python(combine.row_tile))
    ring = SimpleNamespace(tiles=SimpleNamespace(shape=(4, SMALL.block_n, 64)))
    source = SimpleNamespace(block_type=SimpleNamespace(shape=(1, SMALL.block_n, 1, 64)))
    s_q = SimpleNamespace(shape=(SMALL.rows, 64))
    owned = []
    programs = min(items, 7)
    for place in range(programs):
        loaded: list[Any] = []
        computed: list[Any] = []
        produce = in_python(
            hopper_load.produce, place=place, programs=programs, item_of=item_of,
            _places=lambda item, *_: item.i_b, _load_tile=Record(loaded),
        )  # fmt: skip
        walk = in_python(
            hopper._walk_unit, _step=Step(computed), _nothing=lambda *_: (0, None, None),
            fold=lambda acc, _max, _sum, next_acc, *_: (acc + next_acc, None, None),
        )  # fmt: skip
        produce(source, source, ring, ring, problem, SMALL.rows, unit_slots, 0, window is not None, whole)
        n = 0
        for i_item in range(place, items, programs):
            item = item_of(i_item, problem, *tiles)
            before = n
            for unit in range(item.first, item.last):
                owned.append((item.i_b, item.i_kv, item.first_row, unit))
                steps, _, _, n_after = walk(
                    n, unit, s_q, ring, ring, None, item, None, problem, SMALL.chunk, unit_slots, False
                )
                assert steps == n_after - n > 0
                n = n_after
            assert (n > before) == (item.begin < item.end)  # else it has no queries loaded
        assert loaded[::2] == loaded[1::2] == computed  # keys, and values
        assert [step[0] for step in computed] == list(range(n))
    expected = []
    for b in range(len(LENGTHS)):
        for first_row in range(0, shape.rows, SMALL.rows):
            slots = shape.seen_slots(first_row, SMALL.rows, b)
            units = range(slots.start // unit_slots, -(-slots.stop // unit_slots))
            expected += [(b, i_kv, first_row, unit) for i_kv in range(shape.kv_heads) for unit in units]
    assert sorted(owned) == sorted(expected)
