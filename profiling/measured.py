"""Hardware counters of any command's kernels, by Nsight Compute (``ncu``): bytes moved, registers, occupancy.

ncu runs each kernel several times, alone and from cold caches, with its memory restored in between: right for
bytes, wrong for time. Times of record come from CUDA events (``kernels/measure.py``). A program compiles
its Triton kernels while ncu watches, so run them once before the range that is profiled.

Source: Nsight Compute CLI and Profiling Guide (metric names, replay, cache control).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_eff.errors import UserError
from lit_eff.profiling.ncu_csv import ProfiledLaunch, parse_launches
from lit_eff.profiling.traffic import Number
from lit_eff.profiling.unavailable import UnavailableError

PLACES = ("/usr/local/cuda/bin", "/opt/nvidia/nsight-compute/*")
DRIVER_PARAMETERS = Path("/proc/driver/nvidia/params")
ALLOW_COUNTERS = "load the nvidia module with NVreg_RestrictProfilingToAdminUsers=0"
WAVEFRONT_BYTES = 128  # the most that shared memory serves in one pass: 32 banks of 4 bytes
LSU = "; at most 128 bytes a wavefront; TMA and wgmma bypass this counter"
SHARED = "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_"


@dataclass(frozen=True)
class Metric:
    """How a quantity of a record is made of ncu's metrics: their sum times ``scale``."""

    names: tuple[str, ...]
    scale: int = 1
    note: str = ""
    whole: bool = True  # a count, not a fraction


METRICS: Mapping[str, Metric] = {
    "dram_read_bytes": Metric(("dram__bytes_read.sum",)),
    "dram_written_bytes": Metric(("dram__bytes_write.sum",)),
    "l2_bytes": Metric(("lts__t_bytes.sum",)),
    "shared_read_bytes": Metric((f"{SHARED}ld.sum",), WAVEFRONT_BYTES, LSU),
    "shared_written_bytes": Metric((f"{SHARED}st.sum",), WAVEFRONT_BYTES, LSU),
    "shared_memory_bytes": Metric(
        ("launch__shared_mem_per_block_static", "launch__shared_mem_per_block_dynamic")
    ),
    "registers_per_thread": Metric(("launch__registers_per_thread",)),
    "occupancy": Metric(("sm__warps_active.avg.pct_of_peak_sustained_active",), whole=False),
    "seconds": Metric(("gpu__time_duration.sum",), note="; replayed from cold caches", whole=False),
}


@dataclass(frozen=True)
class MeasuredKernel:
    """One launch as ncu saw it. ``ranges`` are the open NVTX ranges, outermost first.

    ``values`` maps quantities of :data:`lit_eff.profiling.traffic.UNITS` to bytes, counts, seconds or shares.
    """

    kernel: str
    ranges: tuple[str, ...]
    values: Mapping[str, float | int]

    @property
    def numbers(self) -> dict[str, tuple[Number, ...]]:
        """The values for a record, each with the name of its metric."""
        return {
            quantity: (Number(value, "measured", _detail(METRICS[quantity])),)
            for quantity, value in self.values.items()
        }


def _detail(metric: Metric) -> str:
    return f"ncu {' + '.join(metric.names)}{metric.note}"


def find_ncu() -> str:
    """The path of ncu: on PATH, or where CUDA and Nsight Compute install it (the newest).

    Raises:
        UnavailableError: if there is none.
    """
    found = shutil.which("ncu")
    if found is not None:
        return found
    for place in PLACES:
        folders = sorted(Path("/").glob(place.lstrip("/")), reverse=True)
        for folder in folders:
            if os.access(folder / "ncu", os.X_OK):
                return str(folder / "ncu")
    raise UnavailableError(
        "ncu is neither on PATH nor in /usr/local/cuda/bin or /opt/nvidia/nsight-compute",
        "install NVIDIA Nsight Compute",
    )


def counters_need_root() -> bool:
    """Whether this machine's driver gives counters to root alone, and this process is not root's."""
    try:
        parameters = DRIVER_PARAMETERS.read_text(encoding="utf-8")
    except OSError:
        return False
    return "RmProfilingAdminOnly: 1" in parameters and os.geteuid() != 0


def ncu_command(
    ncu: str,
    argv: Sequence[str],
    log: Path,
    metrics: Sequence[str] = tuple(METRICS),
    nvtx_include: Sequence[str] = (),
    from_start: bool = True,
) -> list[str]:
    """``argv`` under ncu, whose messages and table go to ``log``; see :func:`measure_command`."""
    names = [name for quantity in metrics for name in METRICS[quantity].names]
    command = [ncu, "--target-processes", "all", "--replay-mode", "kernel"]
    command += ["--cache-control", "all", "--clock-control", "none"]
    # Backward kernels are launched by autograd's own threads: a range holds for all threads of its process.
    command += ["--nvtx", "--nvtx-push-pop-scope", "process"]
    command += ["--csv", "--page", "raw", "--print-units", "base", "--log-file", str(log)]
    command += ["--metrics", ",".join(names)]
    for expression in nvtx_include:
        command += ["--nvtx-include", expression]
    if not from_start:
        command += ["--profile-from-start", "off"]
    return [*command, *argv]


def measure_command(
    argv: Sequence[str],
    *,
    metrics: Sequence[str] = tuple(METRICS),
    nvtx_include: Sequence[str] = (),
    from_start: bool = True,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> list[MeasuredKernel]:
    """Run a command under ncu, its child processes too, and give its kernels in the order of their launches.

    Args:
        argv: the command, its program on PATH or by path.
        metrics: quantities of :data:`METRICS`; fewer need fewer passes over each kernel.
        nvtx_include: profile only the launches inside ranges that match one of these expressions of ncu's,
            such as ``"step 3/"``; none for all.
        from_start: False if the command itself calls ``torch.cuda.profiler.start`` and ``stop``.
        env: its environment, this process's if None.
        timeout: seconds that it may take.

    Raises:
        UnavailableError: without ncu, a GPU or the permission to read counters, or if no kernel was profiled.
        UserError: if the command fails or takes too long.
    """
    ncu = find_ncu()
    with tempfile.TemporaryDirectory(prefix="lit_eff_ncu_") as folder:
        log = Path(folder) / "ncu.csv"
        try:
            done = subprocess.run(
                ncu_command(ncu, argv, log, metrics, nvtx_include, from_start),
                env={**(os.environ if env is None else env), "LC_ALL": "C"},
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise UserError(
                f"{' '.join(argv[:3])} took over {timeout:g} s under ncu, which runs each kernel several "
                "times; profile fewer kernels or ask for fewer metrics"
            ) from None
        output = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    launches = parse_launches(output)
    if not launches or done.returncode != 0:
        raise _explain(output, done.stdout + done.stderr, done.returncode)
    return [measured_kernel(launch) for launch in launches]


def measured_kernel(launch: ProfiledLaunch) -> MeasuredKernel:
    """A launch's metrics as quantities; those of which ncu gave no value are absent."""
    values: dict[str, float | int] = {}
    for quantity, metric in METRICS.items():
        if all(name in launch.metrics for name in metric.names):
            value = sum(launch.metrics[name] for name in metric.names) * metric.scale
            values[quantity] = round(value) if metric.whole else value
    return MeasuredKernel(launch.kernel, launch.ranges, values)


# What ncu's messages mean, and what to do about it; the first that is found.
REFUSALS = (
    (
        "ERR_NVGPUCTRPERM",
        "the driver gives hardware counters to administrators only (ERR_NVGPUCTRPERM)",
        f"run as root, or {ALLOW_COUNTERS}",
    ),
    (
        "LibraryNotLoaded",
        "ncu could not load its counter library on this machine (LibraryNotLoaded)",
        "use a container runtime or virtual machine that passes the GPU's counters through",
    ),
    (
        "driver resource was unavailable",
        "another tool holds the GPU's counters",
        "stop other profilers and DCGM's profiling (dcgmi profstats --pause)",
    ),
    (
        "Failed to find metric",
        "ncu has no such metrics for this GPU",
        "list what it has with ncu --query-metrics, or update Nsight Compute",
    ),
)
NO_GPU = ("no CUDA-capable device", "Found no NVIDIA driver", "No CUDA GPUs are available", "libcuda.so")


def _explain(output: str, program: str, returncode: int) -> UserError:
    """Why there is no launch in ncu's output."""
    everything = output + program
    for sign, reason, remedy in REFUSALS:
        if sign in everything:
            return UnavailableError(reason, remedy)
    if any(sign in everything for sign in NO_GPU):
        return UnavailableError("this machine has no NVIDIA GPU that CUDA can use", "run on one that has")
    if "The application returned an error code" in everything:
        return UserError(f"the command failed under ncu: {_last_line(program)}; see that it runs without ncu")
    errors = [line for line in everything.splitlines() if line.startswith("==ERROR==")]
    if returncode == 0 and not errors:
        return UnavailableError(
            "ncu saw no kernel to profile", "check that the command launches one inside the profiled range"
        )
    reason = errors[0].removeprefix("==ERROR==").strip() if errors else _last_line(program)
    return UnavailableError(f"ncu failed: {reason}", "see its manual")


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no output")
