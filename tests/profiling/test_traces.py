"""Traces of a timeline, read back: Perfetto's JSON, the classic plugin by its own parser, xplane by another
decoder and by xprof itself."""

from __future__ import annotations

import gzip
import importlib.util
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from lit_eff.profiling.protobuf import varint
from lit_eff.profiling.timeline import Sample, Span, Timeline
from lit_eff.profiling.torch_trace import parse_torch_trace, read_torch_trace
from lit_eff.profiling.trace_json import write_classic, write_perfetto
from lit_eff.profiling.xplane import write_xplane
from tests.profiling.sample_run import timeline


def read(path: Path) -> dict[str, Any]:
    with gzip.open(path, "rt") as file:
        content: dict[str, Any] = json.load(file)
    return content


def test_perfetto_names_tracks_and_holds_spans_and_counters(tmp_path: Path) -> None:
    path = tmp_path / "trace.perfetto.json.gz"
    assert write_perfetto(timeline(), path) == 0
    events = read(path)["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    spans = [e for e in events if e["ph"] == "X"]
    tracks = {f"{processes[e['pid']]}/{threads[e['pid'], e['tid']]}" for e in spans}
    assert tracks == {"profiler/steps", "CPU/thread 11", "GPU 0/stream 7"}
    (second,) = [e for e in spans if e["name"] == "flash_forward_kernel" and 1000 <= e["ts"] < 2000]
    assert (second["ts"], second["dur"]) == (1100.0, 400.0)
    assert second["args"]["module"] == "layers.0"
    assert second["args"]["grid"] == "64,8,1"
    power = [(e["ts"], e["args"]["value"]) for e in events if e["ph"] == "C" and e["name"] == "power, W"]
    assert power == [(0.0, 300.0), (1000.0, 301.0), (2000.0, 302.0)]


def test_times_before_the_start_are_moved(tmp_path: Path) -> None:
    """Viewers know no negative times."""
    path = tmp_path / "trace.json.gz"
    write_perfetto(Timeline([Span("x", "CPU/1", 0.0, 1.0)], [Sample("bytes", -0.5, 7.0)]), path)
    times = {event["ph"]: event["ts"] for event in read(path)["traceEvents"] if "ts" in event}
    assert times == {"X": 500_000.0, "C": 0.0}


def long_timeline() -> Timeline:
    spans = [Span(f"kernel {i}", "GPU 0/stream 7", i * 1e-3, (1 + i % 97) * 1e-6) for i in range(5000)]
    samples = [Sample(f"counter {i % 2}", i * 1e-3, float(i)) for i in range(5000)]
    return Timeline(spans, samples, dropped=11)


def test_a_trace_stays_within_its_bound_and_says_what_it_lacks(tmp_path: Path) -> None:
    path, bound = tmp_path / "trace.json.gz", 100_000
    dropped = write_perfetto(long_timeline(), path, max_bytes=bound)
    text = gzip.decompress(path.read_bytes())
    assert 0.6 * bound < len(text) <= bound
    trace = json.loads(text)
    events = trace["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    samples = [event for event in events if event["ph"] == "C"]
    assert dropped == 11 + 10_000 - len(spans) - len(samples)
    assert trace["otherData"]["dropped"] == dropped
    assert any(str(dropped) in event["name"] for event in events if event["ph"] == "i")
    kept = min(event["dur"] for event in spans)
    durations = [1 + i % 97 for i in range(5000)]
    assert sum(duration > kept for duration in durations) <= len(spans)  # none longer was left out
    assert [event["ts"] for event in spans] == sorted(event["ts"] for event in spans)
    steps = {b["ts"] - a["ts"] for a, b in pairwise(samples) if a["name"] == b["name"]}
    assert len(steps) == 1  # thinned evenly
    assert {event["name"] for event in samples} == {"counter 0", "counter 1"}


def test_xplane_stays_within_its_bound(tmp_path: Path) -> None:
    path, dropped = write_xplane(long_timeline(), tmp_path, "run", max_bytes=100_000)
    assert 0.3 * 100_000 < path.stat().st_size <= 100_000
    space = decode(path)
    events = [event for plane in space.planes for line in plane.lines for event in line.events]
    assert dropped == 11 + 10_000 - len(events)
    assert space.warnings == [f"{dropped} spans and samples were left out"]


def test_classic_trace_is_read_by_the_plugin(tmp_path: Path) -> None:
    """Its own parser finds the steps, the operators and the kernel with registers, grid and occupancy."""
    data = pytest.importorskip("torch_tb_profiler.profiler.data", reason="torch-tb-profiler is not installed")
    path, dropped = write_classic(timeline(), tmp_path, 1_700_000_000_000)
    assert dropped == 0
    assert path.name.endswith("_0.1700000000000.pt.trace.json.gz")
    run = data.RunProfileData.parse("host_0", "1700000000000", str(path), str(tmp_path))
    assert run.steps_names == ["0", "1", "2"]
    assert {op.name: op.calls for op in run.op_list_groupby_name} == {"aten::linear": 3, "aten::mm": 3}
    assert run.has_kernel
    (kernel,) = run.kernel_stat.to_dict("index").items()
    assert kernel[0] == "flash_forward_kernel"
    assert kernel[1]["count"] == 3
    assert kernel[1]["sum"] == pytest.approx(1200)
    assert kernel[1]["blocks_per_sm"] is not None
    (found, *_) = [event for event in run.events if event.type == "Kernel"]
    assert found.grid == [64, 8, 1]
    assert found.regs_per_thread == 168
    assert found.occupancy == 25


def test_our_own_reader_takes_the_classic_trace(tmp_path: Path) -> None:
    path, _ = write_classic(timeline(), tmp_path, 1)
    trace = read_torch_trace(path)
    assert [(step.name, step.start, step.duration) for step in trace.steps] == [
        (f"step {i}", pytest.approx(i * 1e-3), pytest.approx(0.9e-3)) for i in range(3)
    ]
    assert trace.on_device
    assert [(work.step, work.track) for work in trace.work] == [(i, "GPU 0/stream 7") for i in range(3)]


def test_a_kernel_of_torch_profiler_keeps_its_launch(tmp_path: Path) -> None:
    arguments = {
        "registers per thread": 40,
        "shared memory": 1024,
        "grid": [4, 2, 1],
        "block": [256, 1, 1],
        "est. achieved occupancy %": 50,
        "correlation": 3,
    }
    kernel = {"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": 5, "dur": 2}
    copy = {"ph": "X", "cat": "gpu_memcpy", "name": "c", "pid": 0, "tid": 7, "ts": 8, "dur": 1, "args": {}}
    trace = parse_torch_trace({"traceEvents": [{**kernel, "args": arguments}, copy]})
    spans = {span.name: span.details for span in trace.timeline().spans}
    assert spans["k"]["grid"] == "4,2,1"
    assert spans["k"]["occupancy"] == 0.5
    assert "grid" not in spans["c"]
    path, _ = write_xplane(trace.timeline(), tmp_path, "run")
    assert (
        b"regs:40 static_shared:0 dynamic_shared:1024 grid:4,2,1 block:256,1,1 occ_pct:50"
        in path.read_bytes()
    )


# tsl/profiler/protobuf/xplane.proto: message -> field -> (number, type); maps are repeated entries.
SCHEMA = {
    "XSpace": {"planes": (1, "XPlane*"), "warnings": (3, "string*"), "hostnames": (4, "string*")},
    "XPlane": {
        "id": (1, "int64"),
        "name": (2, "string"),
        "lines": (3, "XLine*"),
        "event_metadata": (4, "Entry*"),
        "stat_metadata": (5, "Entry*"),
    },
    "Entry": {"key": (1, "int64"), "value": (2, "Metadata")},
    "Metadata": {"id": (1, "int64"), "name": (2, "string")},
    "XLine": {"id": (1, "int64"), "name": (2, "string"), "events": (4, "XEvent*")},
    "XEvent": {
        "metadata_id": (1, "int64"),
        "offset_ps": (2, "int64"),
        "duration_ps": (3, "int64"),
        "stats": (4, "XStat*"),
    },
    "XStat": {
        "metadata_id": (1, "int64"),
        "double_value": (2, "double"),
        "int64_value": (4, "int64"),
        "str_value": (5, "string"),
    },
}


def decode(path: Path) -> Any:
    """By Google's own decoder."""
    file = descriptor_pb2.FileDescriptorProto(name="xplane.proto", package="x", syntax="proto3")
    types = descriptor_pb2.FieldDescriptorProto
    for message, fields in SCHEMA.items():
        added = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            field = added.field.add(name=name, number=number)
            field.label = types.LABEL_REPEATED if kind.endswith("*") else types.LABEL_OPTIONAL
            if kind.rstrip("*") in SCHEMA:
                field.type, field.type_name = types.TYPE_MESSAGE, f".x.{kind.rstrip('*')}"
            else:
                field.type = getattr(types, f"TYPE_{kind.rstrip('*').upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("x.XSpace")).FromString(
        path.read_bytes()
    )


def test_xplane_decodes_to_the_timeline(tmp_path: Path) -> None:
    path, _ = write_xplane(timeline(), tmp_path, "version_0")
    assert path.parent == tmp_path / "plugins" / "profile" / "version_0"
    space = decode(path)
    assert [f"{name}.xplane.pb" for name in space.hostnames] == [path.name]
    planes = {plane.name: plane for plane in space.planes}
    assert list(planes) == ["/host:CPU", "/device:GPU:0"]
    gpu = planes["/device:GPU:0"]
    names = {entry.key: entry.value.name for entry in gpu.event_metadata}
    stats = {entry.key: entry.value.name for entry in gpu.stat_metadata}
    (line,) = gpu.lines
    assert line.name == "Stream #7"
    assert [(names[e.metadata_id], e.offset_ps, e.duration_ps) for e in line.events] == [
        ("flash_forward_kernel", step * 10**9 + 10**8, 4 * 10**8) for step in range(3)
    ]
    details = {stats[stat.metadata_id]: stat.str_value for stat in line.events[0].stats}
    launch = "regs:168 static_shared:0 dynamic_shared:98304 grid:64,8,1 block:128,1,1 occ_pct:25"
    assert details == {"module": "layers.0", "kernel_details": launch}
    lines = {line.name: line for line in planes["/host:CPU"].lines}
    assert list(lines) == ["profiler/steps", "CPU/thread 11", "_counters_"]
    names = {entry.key: entry.value.name for entry in planes["/host:CPU"].event_metadata}
    counters = [(names[e.metadata_id], e.stats[0].double_value) for e in lines["_counters_"].events]
    assert counters[2] == ("power, W", 301.0)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**40, 2**63 - 1, -1])
def test_varints_are_googles(value: int) -> None:
    from google.protobuf.internal.encoder import _VarintEncoder

    written: list[bytes] = []
    _VarintEncoder()(written.append, value & (1 << 64) - 1)
    assert varint(value) == b"".join(written)


@pytest.mark.skipif(importlib.util.find_spec("xprof") is None, reason="xprof is not installed")
def test_xprof_tables_the_kernel(tmp_path: Path) -> None:
    from xprof.convert import raw_to_tool_data

    path, _ = write_xplane(timeline(), tmp_path, "version_0")
    content, _ = raw_to_tool_data.xspace_to_tool_data(
        [str(path)], "kernel_stats", {"use_saved_result": False}
    )
    table = json.loads(content)
    (row,) = [[cell["v"] for cell in row["c"]] for row in table["rows"]]
    found = dict(zip((column["id"] for column in table["cols"]), row, strict=True))
    assert found["kernel_name"] == "flash_forward_kernel"
    assert found["registers_per_thread"] == 168
    assert found["shmem_bytes"] == 98304
    assert (found["grid_dim"], found["block_dim"]) == ("64,8,1", "128,1,1")
    assert found["occupancy_pct"] == 25
    assert (found["occurrences"], found["total_duration_us"]) == (3, 1200)
    content, _ = raw_to_tool_data.xspace_to_tool_data(
        [str(path)], "trace_viewer", {"use_saved_result": False}
    )
    assert "step 2" in str(content)
