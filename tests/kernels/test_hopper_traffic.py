"""I/O models of the Hopper kernels against the kernels' own loading code, run in Python, copies recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_eff.errors import UserError
from lit_eff.kernels.catalogue import get_operation
from lit_eff.profiling.modelled import ModelledLaunch
from tests.kernels.in_python import Anything, Number, Pointer, ignore, in_python

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")

from lit_eff.kernels.attention.hopper import forward, gradient, schedule, turns
from lit_eff.kernels.attention.hopper.backward import GRADIENT_TILES
from lit_eff.kernels.attention.specimens import AttentionCase
from lit_eff.kernels.attention.with_cache import combine, hopper_items, hopper_load
from lit_eff.kernels.attention.with_cache.io_model import cache_traffic, units_of
from lit_eff.kernels.attention.with_cache.specimens import CachedCase, cached_call
from lit_eff.kernels.attention.with_cache.tiles import HOPPER, Unit


def len_of(own: list[int], _: Any) -> int:
    return len(own)


def modelled(name: str, case: Any) -> list[ModelledLaunch]:
    torch.manual_seed(0)
    return get_operation(name).launches(case, torch.device("cpu"), 90)


class Copies:
    """Boxes that the copy engine was asked for: bytes by tensor, and which of them are distinct."""

    def __init__(self) -> None:
        self.requested: Counter[str] = Counter()
        self.distinct: set[tuple[str, int, int, int]] = set()

    def box(self, name: str, i_b: int, first: int, i_h: int, rows: int, end: int, row_bytes: int) -> None:
        """``rows`` rows of one head from ``first``, of which those before ``end`` exist."""
        for row in range(first, min(first + rows, end)):
            self.requested[name] += row_bytes
            self.distinct.add((name, i_b, row, i_h))


def drawn_forwards() -> list[AttentionCase]:
    random = Random(0)
    cases = list(get_operation("attention_hopper").small)
    for _ in range(20):
        queries, keys = random.randint(1, 700), random.randint(1, 700)
        starts = keys >= queries and random.random() < 0.3
        cases.append(
            AttentionCase(
                random.randint(1, 3),
                queries,
                keys,
                4,
                random.choice((1, 2, 4)),
                random.choice((64, 128)),
                causal=random.random() < 0.5,
                window=random.choice((None, random.randint(1, 400))),
                starts=starts,
                sinks=random.random() < 0.3,
                backward=False,
                dtype="bfloat16",
            )
        )
    return cases


@pytest.mark.parametrize("case", drawn_forwards(), ids=str)
def test_forward_copies_as_modelled(case: AttentionCase) -> None:
    first = modelled("attention_hopper", case)[0]
    arguments, programs = first.launch.arguments, first.launch.grid[0]
    problem = schedule.Problem(**{name: arguments.get(name) for name in schedule.Problem._fields})
    looks = 0
    if case.starts:

        class Starts(Pointer):
            def __add__(self, i: Any) -> Any:
                nonlocal looks
                looks += 1
                return super().__add__(i)

        problem = problem._replace(starts=Starts(problem.starts.tolist()))
    tiles = problem.query_tiles * problem.heads * problem.batch
    copies, ends = Copies(), {"q": case.queries, "k": case.keys, "v": case.keys}
    row = case.head_dim * 2

    def load_next(ring: Any, n: int, name: str, i_b: int, start: int, i_h: int) -> None:
        rows = 64 if name == "q" else arguments["BLOCK_N"]
        copies.box(name, i_b, start, i_h, rows, ends[name], row)

    turns_in_all = 0
    for place in range(programs):
        own = [
            i
            for i in range(tiles)
            if i % programs == (place if i // programs % 2 == 0 else programs - 1 - place)
        ]
        turns_in_all += len(own)
        here = partial(in_python, place=place, programs=programs)
        sight = here(schedule.sight)
        blocks = here(schedule._key_blocks, sight=sight)
        placed = here(schedule._place)
        tile_of = here(schedule.tile_of, _key_blocks=blocks, _place=placed)
        load_first = here(forward._load_first, load_next=load_next, ROWS=64)
        produce = here(
            forward._produce,
            load_next=load_next,
            _load_first=load_first,
            ROWS=64,
            tile_of=tile_of,
            turns_of=partial(len_of, own),
        )
        consumers = arguments["CONSUMERS"]
        produce(
            "q", "k", "v", None, None, None, problem, consumers, arguments["BLOCK_N"], arguments["CAUSAL"]
        )
    assert turns_in_all == tiles
    reads = first.traffic.reads
    assert {name: reads[name] for name in "qkv"} == copies.requested
    sectors = len(copies.distinct) * row
    if case.starts:
        # The producer's share of the looks: the consumers' are one more a program, each.
        assert reads["starts"] == 8 * (looks + consumers * (looks + programs))
        sectors += -(-8 * case.batch // 32) * 32
    if case.sinks:
        assert reads["sinks"] == 4 * consumers * tiles
        sectors += -(-4 * case.heads // 32) * 32
    assert first.traffic.sectors == sectors


def drawn_backwards() -> list[AttentionCase]:
    random = Random(0)
    operation = get_operation("attention_hopper_sums")
    # More items than programs, so that the gradient kernel finishes dQ itself, of queries without keys too.
    many = [
        AttentionCase(3, queries, keys, 60, 60, 64, causal=True, dtype="float16")
        for queries, keys in ((300, 300), (500, 300))
    ]
    return [*operation.small, *(operation.draw(random) for _ in range(20)), *many]


@pytest.mark.parametrize("case", drawn_backwards(), ids=str)
def test_gradient_copies_as_modelled(case: AttentionCase) -> None:
    _, _, each, _ = modelled("attention_hopper", case)
    arguments, programs = each.launch.arguments, each.launch.grid[0]
    problem = turns.Problem(**{name: arguments[name] for name in turns.Problem._fields})
    block_m, block_n = GRADIENT_TILES[case.head_dim].block_m, GRADIENT_TILES[case.head_dim].block_n
    tiles = (block_m, block_n, case.causal)
    row, row_float = case.head_dim * 2, case.head_dim * 4
    copies, looks, counts = Copies(), Counter[str](), Counter[str]()
    ends = {"q": case.queries, "dout": case.queries, "k": case.keys, "v": case.keys}

    def load(name: str, place: list[int], *_: Any) -> None:
        if name in ends:
            i_b, start, i_h, _ = place
            copies.box(name, i_b, start, i_h, block_m if name in ("q", "dout") else block_n, ends[name], row)
        else:  # a number for each row of a query block
            copies.box(name, 0, place[0] // block_m, 0, 1, 1 << 60, block_m * 4)

    def assembly(text: str, *_: Any, **__: Any) -> None:
        counts["turns"] += 4 * ("st.release" in text)

    for place in range(programs):
        here = partial(in_python, place=place, programs=programs)
        work_of = here(turns.work_of)
        query_block = here(turns.query_block)
        loader = here(
            gradient._load_tiles,
            _load=load,
            _wait_before=ignore,
            work_of=work_of,
            query_block=query_block,
        )
        loader("q", "k", "v", "dout", "lse", "delta", Anything(2), Anything(2), problem, *tiles)
        seen = here(turns._key_blocks_seen)
        adder = here(
            turns.add_in_turn,
            work_of=work_of,
            query_block=query_block,
            _turn=here(turns._turn, _key_blocks_seen=seen),
            _wait_for_count=lambda p, count, nap: looks.update(turns=4 * (count > 0)),
            tma=SimpleNamespace(
                async_copy_shared_to_global=lambda *_: counts.update(first=block_m * row_float),
                store_wait=ignore,
            ),
            _async_add_shared_to_global=lambda *_: counts.update(added=block_m * row_float),
            block_barrier=ignore,
        )
        adder.__globals__["gl"].inline_asm_elementwise = assembly
        adder("dq_sum", 0, Anything(1), Anything(2), Anything(1), problem, *tiles)
    sums = dq = 0
    for i in range(problem.scaled):  # `turns.scale_finished`
        i_m = i % problem.query_blocks
        lines = 512 // case.head_dim
        there = range(i_m * block_m, min((i_m + 1) * block_m, case.queries), lines)
        sums += len(there) * lines * row_float
        dq += (min((i_m + 1) * block_m, case.queries) - i_m * block_m) * row
        looks["turns"] += 4 * (in_python(turns._key_blocks_seen)(i_m, problem, *tiles) > 0)
    traffic = each.traffic
    assert traffic.reads == copies.requested | {"dq_sum": sums, "turns": looks["turns"]}
    like_k = case.batch * case.keys * case.kv_heads * row
    written = {"dk": like_k, "dv": like_k, "dq_sum": counts["first"], "dq": dq, "turns": counts["turns"]}
    assert traffic.writes == written
    assert traffic.atomics == {"dq_sum": counts["added"]}
    rows = Counter(name for name, *_ in copies.distinct)
    sizes = {"lse": block_m * 4, "delta": block_m * 4}
    assert traffic.sectors == sum(count * sizes.get(name, row) for name, count in rows.items())


def drawn_caches() -> list[CachedCase]:
    random = Random(0)
    operation = get_operation("attention_with_cache_hopper")
    return [*operation.small, *(operation.draw(random) for _ in range(20))]


@pytest.mark.parametrize("case", drawn_caches(), ids=str)
def test_cache_copies_as_modelled(case: CachedCase) -> None:
    each = modelled("attention_with_cache_hopper", case)[0]
    arguments, programs = each.launch.arguments, each.launch.grid[0]
    assert programs == arguments["items"] or programs == 132
    lengths, counts, table = (
        None if arguments[name] is None else arguments[name].flatten().tolist()
        for name in ("p_lengths", "p_query_lengths", "p_page_table")
    )
    copied = arguments["d_k"].block_shape[1]
    row, slots = case.head_dim * 2, case.page_size or case.capacity
    copies, asked, entries = Copies(), Counter[str](), set[int]()

    class Table:
        """A page table whose addresses are its entries, and which is asked lane by lane."""

        def __add__(self, i: int) -> int:
            return int(i)

    def load(place: int, mask: bool = True, other: int = 0) -> Number:
        asked["page_table"] += 4 * bool(mask)
        if mask:
            entries.add(place)
        return Number(table[place] if mask else other)

    problem = hopper_items.Problem(
        Pointer(lengths),
        None if counts is None else Pointer(counts),
        Table() if case.page_size else None,
        arguments["stride_table_b"],
        arguments["stride_table_p"],
        *(arguments[name] for name in hopper_items.Problem._fields[5:]),
    )
    block_n, unit = arguments["BLOCK_N"], arguments["UNIT"]
    ring = SimpleNamespace(
        tiles=Anything(arguments["SLOTS"], block_n, case.head_dim), full=Anything(), empty=Anything()
    )

    def copy(d_rows: Any, place: list[int], *_: Any) -> None:
        i_b, slot, i_kv, column = place
        if column == 0:  # the columns of a tile come in halves
            copies.box(d_rows.name, i_b, slot, i_kv, copied, slots, row)

    constants = (arguments["ROWS"], unit, case.page_size, arguments["WINDOWED"], arguments["WHOLE"])

    def item_of(*of: Any, plain: Callable[..., Any]) -> Any:
        item = plain(*of)
        return item._replace(i_b=Number(item.i_b))

    for place in range(programs):
        here = partial(in_python, place=place, programs=programs)
        row_tile = here(combine.row_tile)
        places = here(hopper_load._places)
        places.__globals__["gl"].load = load
        tma = SimpleNamespace(async_copy_global_to_shared=copy)
        load_tile = here(hopper_load._load_tile, COLUMNS=64, tma=tma)
        produce = here(
            hopper_load.produce,
            _places=places,
            _load_tile=load_tile,
            item_of=partial(item_of, plain=here(hopper_items.item_of, row_tile=row_tile)),
        )
        block = SimpleNamespace(shape=(1, copied, 1, 64), nbytes=0)
        k, v = (SimpleNamespace(name=name, block_type=block, dtype=None, layout=None) for name in "kv")
        produce(k, v, ring, ring, problem, *constants)
    reads = each.traffic.reads
    assert {name: reads[name] for name in copies.requested} == copies.requested
    assert reads.get("page_table", 0) == asked["page_table"]
    # Distinct sectors: of the cache without the first page, which only fills up tiles; of the queries whose
    # tiles see some slot; of page table and lengths.
    sectors = row * sum(not (case.page_size and i_b == 0) for _, i_b, _, _ in copies.distinct)
    torch.manual_seed(0)
    _, shape = cached_call(case, torch.device("cpu"), 90)
    for b in range(case.batch):
        for first in range(0, shape.rows, arguments["ROWS"]):
            if shape.is_there(first, b):
                sectors += row * case.kv_heads * min(arguments["ROWS"], shape.rows - first)
    sectors += 32 * len({place // 8 for place in entries})
    sectors += (1 if counts is None else 2) * -(-8 * case.batch // 32) * 32
    assert each.traffic.sectors == sectors


@pytest.mark.parametrize("case", drawn_caches(), ids=str)
def test_cache_asks_for_the_rest_as_modelled(case: CachedCase) -> None:
    """What is not copied: writes and partial results are the portable kernel's, which are counted."""
    each = modelled("attention_with_cache_hopper", case)[0]
    torch.manual_seed(0)
    call, shape = cached_call(case, torch.device("cpu"), 90)
    tiles, share = call.tiles, replace(call, costs=HOPPER).deal
    portable, reads = cache_traffic(shape, tiles, share)[0], each.traffic.reads
    assert each.traffic.writes == portable.writes
    for name in ("partial", "max", "sum", "sinks"):
        assert reads.get(name) == portable.reads.get(name)
    items, kv_heads = each.launch.arguments["items"], case.kv_heads
    assert reads["lengths"] == reads.get("query_lengths", reads["lengths"]) == 3 * 8 * items
    assert reads.get("alibi", 0) == case.alibi * 4 * share.runs * kv_heads * sum(shape.counts()) * shape.group
    queries = flags = 0
    for b, length in enumerate(shape.lengths):
        for first in range(0, shape.rows, tiles.rows):
            rows = range(first, min(first + tiles.rows, shape.rows))
            there = [r for r in rows if shape.is_there(r, b)]
            if there:
                begin = 0 if case.window is None else max(length + first // shape.group - case.window + 1, 0)
                begin, stop = begin // tiles.block_n * tiles.block_n, length + there[-1] // shape.group + 1
                end = -(-stop // tiles.block_n) * tiles.block_n
                flags += len(there) * sum(begin <= length + u < end for u in range(case.queries))
                units = len(units_of(range(begin, stop), tiles, share))
                runs = 1 if share.unit is Unit.ROW else -(-units // -(-units // share.runs))
                queries += runs * len(rows)
    assert reads.get("tree", 0) == case.tree * kv_heads * flags
    assert reads["q"] == kv_heads * queries * case.head_dim * 2


@pytest.mark.parametrize(
    ("operation", "case", "reason"),
    [
        ("attention_hopper", AttentionCase(1, 8, 8, 1, 1, 64, alibi=True, dtype="float16"), "no ALiBi"),
        ("attention_hopper", AttentionCase(1, 8, 8, 1, 1, 64, window=3, dtype="float16"), "no window"),
        ("attention_with_cache_hopper", CachedCase(1, 1, 1, 1, 96, 8, dtype="float16"), "head dim 96"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_kernels_do_not_take_is_named(operation: str, case: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        modelled(operation, case)


def test_only_hopper_has_them() -> None:
    with pytest.raises(UserError, match="sm_80"):
        get_operation("attention_hopper").launches(
            AttentionCase(1, 8, 8, 1, 1, 64, dtype="float16"), torch.device("cpu"), 80
        )


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["attention_hopper", "attention_hopper_sums", "attention_with_cache_hopper"])
def test_catalogued_launches_run_on_hopper(name: str) -> None:
    """And leave finite outputs in every case."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("the device is not sm_90")
    operation = get_operation(name)
    for case in (*operation.small, operation.typical):
        torch.manual_seed(0)
        launches = operation.launches(case, torch.device("cuda"), 90)
        for each in launches:
            each.launch.run()
        torch.cuda.synchronize()
        outputs = [
            value for each in launches for key, value in each.launch.arguments.items() if key == "p_out"
        ]
        assert all(bool(output.isfinite().all()) for output in outputs), case
