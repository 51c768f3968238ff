"""Comparing two reports: one byte more is found, noise is not, and nothing is passed over silently."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lit_eff.profiling.diff import compare, comparison_text
from lit_eff.profiling.report import ProfileReport, load_report
from lit_eff.profiling.traffic import KernelTraffic, Number, Shape, Source


def record(
    kernel: str = "tiled",
    read: int = 1000,
    written: int = 200,
    source: Source = "counted",
    shape: Shape | None = None,
    **more: float,
) -> KernelTraffic:
    measured = source == "measured"
    names = ("dram_read_bytes", "dram_written_bytes") if measured else ("read_bytes", "written_bytes")
    values = dict(zip(names, (read, written), strict=True)) | more
    numbers = {name: (Number(value, source, "x"),) for name, value in values.items()}
    return KernelTraffic(kernel, {"length": 64} if shape is None else shape, numbers)


def report(*records: KernelTraffic, device: str = "H100") -> ProfileReport:
    return ProfileReport("run", {"device": device}, records)


@pytest.mark.parametrize("source", ["counted", "modelled"])
def test_one_byte_more_is_a_regression(source: Source) -> None:
    before, after = record(source=source), record(source=source, read=1001)
    (change,) = compare(report(before), report(after)).regressions
    assert (change.kernel, change.quantity, change.source) == ("tiled", "HBM bytes", source)
    assert (change.before, change.after) == (1200, 1201)
    assert compare(report(before), report(after)).more_bytes
    fewer = compare(report(after), report(before))
    assert len(fewer.sums) == 1
    assert not fewer.more_bytes


def test_bytes_that_move_from_reads_to_writes_are_no_regression() -> None:
    comparison = compare(report(record(read=1000, written=200)), report(record(read=900, written=300)))
    assert {(change.quantity, change.after) for change in comparison.changes} == {
        ("read_bytes", 900),
        ("written_bytes", 300),
    }
    assert not comparison.sums


def test_atomics_and_sectors_count() -> None:
    old, now = report(record()), report(record(atomic_bytes=4))
    assert compare(old, now).more_bytes
    sectors = {"read_sector_bytes": 64, "written_sector_bytes": 32}
    old, now = report(record(**sectors)), report(record(**{**sectors, "read_sector_bytes": 96}))
    (change,) = compare(old, now).regressions
    assert (change.quantity, change.before, change.after) == ("sector bytes", 96, 128)


def test_measured_bytes_may_vary_by_two_percent() -> None:
    before = report(record(source="measured", read=9000, written=1000))
    for read, more in ((9200, False), (9201, True)):
        after = report(record(source="measured", read=read, written=1000))
        assert compare(before, after).more_bytes is more
    assert compare(before, report(record(source="measured", read=9100))).sums
    assert compare(before, report(record(source="measured", read=9150, written=1000)), 0.01).more_bytes


def test_time_alone_is_reported_and_no_regression() -> None:
    comparison = compare(report(record(seconds=1.0)), report(record(seconds=2.0)))
    (change,) = comparison.changes
    assert (change.quantity, change.share) == ("seconds", 1.0)
    assert not comparison.more_bytes


def test_records_match_by_kernel_shape_and_place() -> None:
    """The second of two alike grew; another shape and another kernel are new, and what went is named."""
    other: Shape = {"length": 128}
    before = report(record(), record(), record("old"))
    after = report(record(), record(read=1500), record(shape=other), record("fused"))
    comparison = compare(before, after)
    (change,) = comparison.sums
    assert (change.before, change.after) == (1200, 1700)
    assert comparison.matched == 2
    assert [(each.kernel, each.shape) for each in comparison.new] == [
        ("tiled", other),
        ("fused", {"length": 64}),
    ]
    assert [each.kernel for each in comparison.gone] == ["old"]


def test_a_report_matches_itself_as_read_from_json(tmp_path: Path) -> None:
    packed = replace(record(), shape={"lengths": (3, 5)})
    original = report(packed)
    original.save(tmp_path / "profile.json")
    comparison = compare(original, load_report(tmp_path / "profile.json"))
    assert (comparison.matched, comparison.changes, comparison.new, comparison.gone) == (1, (), (), ())


def test_measurements_of_two_devices_are_not_compared() -> None:
    before = report(record(source="measured"))
    after = report(record(source="measured", read=5000), device="L4")
    comparison = compare(before, after)
    assert not comparison.more_bytes
    assert comparison.notes == ("measured numbers are not compared: H100 then, L4 now",)


def test_what_is_no_longer_known_is_said() -> None:
    comparison = compare(report(record()), report(record(source="modelled")))
    assert comparison.notes == ("2 counted numbers of then have none now",)
    unavailable = replace(
        record(), numbers={name: (Number(None, "unavailable", "x"),) for name in record().numbers}
    )
    assert compare(report(unavailable), report(record(read=9999))).changes == ()


def test_text_tells_the_change_and_the_verdict() -> None:
    before, after = report(record(), record("old")), report(record(read=1300), record("fused"))
    text = comparison_text(compare(before, after))
    assert text.splitlines()[0] == "run -> run; kernels in both: 1"
    (row,) = (line for line in text.splitlines() if "HBM bytes" in line)
    assert row.split() == [
        *("tiled", "length", "64", "HBM", "bytes", "counted", "1,200", "1,500", "+25.00%", "MORE")
    ]
    assert "fused   length 64  new    1,200  counted" in text
    assert text.splitlines()[-1] == "kernels that move more bytes (measured: by more than 2%): 1"
    same = comparison_text(compare(before, before))
    assert same.splitlines() == [
        "run -> run; kernels in both: 2",
        "",
        "kernels that move more bytes (measured: by more than 2%): none",
    ]


def test_plain_values() -> None:
    values = compare(report(record()), report(record(read=1300), record("fused"))).to_dict()
    assert json.loads(json.dumps(values)) == values | {
        key: json.loads(json.dumps(values[key])) for key in ("sums", "changes", "notes")
    }
    assert values["more_bytes"] is True
    assert values["new"] == [{"kernel": "fused", "shape": {"length": 64}}]
    assert values["regressions"][0]["after"] == 1500
