"""ncu's output becomes numbers with their metric, and its refusals a reason with a remedy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lit_eff.errors import UserError
from lit_eff.profiling import measured
from lit_eff.profiling.measured import counters_need_root, find_ncu, measure_command
from lit_eff.profiling.ncu_csv import parse_launches
from lit_eff.profiling.unavailable import UnavailableError
from tests.profiling.ncu_output import COPY, REFUSED, arguments, fake_ncu, page, stack


@pytest.fixture
def ncu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on PATH, for a fake ncu."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_a_launch_with_its_ranges_and_scaled_metrics() -> None:
    ranges = stack(
        "<default domain>:step 3", "NCCL:ncclAllReduce", "<default domain>:blocks.2: attention, heads 4"
    )
    (launch,) = parse_launches(page(("copy_kernel", ranges, COPY)))
    assert launch.kernel == "copy_kernel"
    assert launch.ranges == ("step 3", "blocks.2: attention, heads 4")
    assert launch.metrics["dram__bytes_read.sum"] == 1_048_832
    assert launch.metrics["gpu__time_duration.sum"] == pytest.approx(2.784e-6)
    assert launch.metrics["sm__warps_active.avg.pct_of_peak_sustained_active"] == pytest.approx(0.4871)


def test_names_over_several_lines_missing_values_and_messages_after_the_table() -> None:
    name = 'void at::native::elementwise<"a", int>(\n  float, int)'
    text = page((name, "", {**COPY, "dram__bytes_read.sum": "n/a"}), ("copy_kernel", "", COPY))
    launches = parse_launches(text + "==WARNING== Could not restore the clocks, as asked, at the end\n")
    assert [launch.kernel for launch in launches] == [" ".join(name.split()), "copy_kernel"]
    assert "dram__bytes_read.sum" not in launches[0].metrics
    assert launches[0].ranges == ()
    assert launches[1].metrics["dram__bytes_read.sum"] == 1_048_832


def test_larger_units_are_understood() -> None:
    text = page(("copy_kernel", "", {**COPY, "dram__bytes_read.sum": "1.5"}))
    head, _, tail = text.partition('"byte"')
    (launch,) = parse_launches(f'{head}"Mbyte"{tail}')
    assert launch.metrics["dram__bytes_read.sum"] == 1_500_000


def test_no_table_is_no_launch() -> None:
    assert parse_launches(REFUSED + "==WARNING== No kernels were profiled.\n") == []


def test_a_command_gives_numbers_with_their_metric(ncu: Path) -> None:
    fake_ncu(ncu, page(("copy_kernel", stack("<default domain>:step 0"), COPY)))
    (kernel,) = measure_command(["train", "--steps", "3"], nvtx_include=["step 0/", "step 1/"])
    values = {name: number.value for name, (number,) in kernel.numbers.items()}
    assert values == {
        "dram_read_bytes": 1_048_832,
        "dram_written_bytes": 524_288,
        "l2_bytes": 3_145_728,
        "shared_read_bytes": 10 * 128,
        "shared_written_bytes": 20 * 128,
        "shared_memory_bytes": 16_384 + 128,
        "registers_per_thread": 32,
        "occupancy": pytest.approx(0.4871),
        "seconds": pytest.approx(2.784e-6),
    }
    assert {number.source for (number,) in kernel.numbers.values()} == {"measured"}
    assert kernel.numbers["dram_read_bytes"][0].detail == "ncu dram__bytes_read.sum"
    assert "TMA and wgmma bypass" in kernel.numbers["shared_read_bytes"][0].detail
    assert "cold caches" in kernel.numbers["seconds"][0].detail
    given = arguments(ncu)
    assert given[-3:] == ["train", "--steps", "3"]
    for option, value in {
        "--cache-control": "all",
        "--clock-control": "none",
        "--replay-mode": "kernel",
        "--nvtx-include": "step 0/",
        "--print-units": "base",
    }.items():
        assert given[given.index(option) + 1] == value
    assert "--profile-from-start" not in given


def test_only_the_metrics_asked_for_are_collected(ncu: Path) -> None:
    fake_ncu(ncu, page(("copy_kernel", "", COPY)))
    measure_command(["train"], metrics=["dram_read_bytes", "l2_bytes"], from_start=False)
    given = arguments(ncu)
    assert given[given.index("--metrics") + 1] == "dram__bytes_read.sum,lts__t_bytes.sum"
    assert given[given.index("--profile-from-start") + 1] == "off"


@pytest.mark.parametrize(
    ("log", "stderr", "code", "says"),
    [
        (REFUSED + "==WARNING== No kernels were profiled.\n", "", 1, "NVreg_RestrictProfilingToAdminUsers=0"),
        ("==ERROR== Failed to initialize the profiler: LibraryNotLoaded\n", "", 9, "LibraryNotLoaded"),
        ("==ERROR== Failed to find metric dram__bytes_read.sum\n", "", 1, "--query-metrics"),
        ("", "RuntimeError: Found no NVIDIA driver on your system.\n", 1, "no NVIDIA GPU"),
        ("==WARNING== No kernels were profiled.\n", "", 0, "no kernel to profile; check"),
        ("==ERROR== Something else.\n", "", 1, "ncu failed: Something else."),
    ],
)
def test_a_refusal_is_one_line_with_a_remedy(ncu: Path, log: str, stderr: str, code: int, says: str) -> None:
    fake_ncu(ncu, log, stderr=stderr, code=code)
    with pytest.raises(UnavailableError, match=says) as caught:
        measure_command(["train"])
    message = str(caught.value)
    assert "\n" not in message
    number = caught.value.number()
    assert (number.value, number.source, number.detail) == (None, "unavailable", message)


def test_a_command_that_fails_is_no_refusal(ncu: Path) -> None:
    """Even if ncu saw kernels before: the launches after the failure are missing."""
    log = "==ERROR== The application returned an error code (1).\n"
    fake_ncu(ncu, log + page(("copy_kernel", "", COPY)), stderr="ValueError: no such data\n", code=1)
    with pytest.raises(UserError, match="ValueError: no such data") as caught:
        measure_command(["train"])
    assert not isinstance(caught.value, UnavailableError)


def test_ncu_is_also_found_where_nsight_compute_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(measured, "PLACES", (str(tmp_path / "*"),))
    with pytest.raises(UnavailableError, match="install NVIDIA Nsight Compute"):
        find_ncu()
    for version in ("2024.1.0", "2025.3.1"):
        (tmp_path / version).mkdir()
        fake_ncu(tmp_path / version, "")
    assert find_ncu() == str(tmp_path / "2025.3.1" / "ncu")


def test_the_drivers_restriction_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = tmp_path / "params"
    monkeypatch.setattr(measured, "DRIVER_PARAMETERS", parameters)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not counters_need_root()
    parameters.write_text("ResmanDebugLevel: 4294967295\nRmProfilingAdminOnly: 1\n")
    assert counters_need_root()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not counters_need_root()
