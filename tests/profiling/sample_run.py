"""A small report, a timeline and figures: made up, so that every number can be told by hand."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from lit_eff.profiling.devices import get_device
from lit_eff.profiling.report import ProfileReport, ReportTable
from lit_eff.profiling.roofline_plot import roofline_figure
from lit_eff.profiling.timeline import Sample, Span, Timeline
from lit_eff.profiling.torch_trace import STEPS
from lit_eff.profiling.traffic import KernelTraffic, LineTraffic, Number
from lit_eff.profiling.write import write_report

LAUNCH = {
    "registers_per_thread": 168,
    "shared_memory_bytes": 98304,
    "grid": "64,8,1",
    "block": "128,1,1",
    "occupancy": 0.25,
}
HOSTILE = "<script>alert('x')</script> & \"quotes\""


def record(kernel: str = "flash_forward_kernel", length: int = 1024, **numbers: Number) -> KernelTraffic:
    """Counted and modelled alike; 8,000 FLOP, 1,000 bytes."""
    both = {
        name: (Number(value, "counted", "interpreter"), Number(value, "modelled", "formula"))
        for name, value in {"read_bytes": 750, "written_bytes": 250}.items()
    }
    flops = {"flops": (Number(8000, "modelled", "formula"),)}
    shape = {"length": length, "dtype": "float16"}
    return KernelTraffic(
        kernel, shape, {**both, **flops, **{name: (each,) for name, each in numbers.items()}}
    )


def report() -> ProfileReport:
    standard = KernelTraffic(
        "standard",
        {"length": 1024},
        {
            name: (Number(value, "modelled", "formula"),)
            for name, value in {"read_bytes": 6000, "written_bytes": 3000}.items()
        },
    )
    lines = tuple(
        LineTraffic("forward.py", line, f"k = tl.load(p_k)  # {HOSTILE}", "k", "loads", size, size - 32, 5)
        for line, size in ((12, 400), (9, 350))
    )
    measured = {
        "dram_read_bytes": Number(600, "measured", "ncu"),
        "dram_written_bytes": Number(200, "measured", "ncu"),
        "seconds": Number(1e-6, "measured", "events"),
        "occupancy": Number(0.5, "measured", "ncu"),
        "joules": Number(None, "unavailable", "no NVML"),
    }
    flash = record(**measured)
    flash = KernelTraffic(flash.kernel, flash.shape, flash.numbers, baseline=standard, lines=lines)
    return ProfileReport(
        name=f"sample {HOSTILE}",
        environment={"device": "H100 SXM", "torch": "2.13.0", "command": "lit-eff profile --config x.yaml"},
        records=(flash, record(length=2048), record("flash_backward_kernel")),
        tables=(
            ReportTable(
                "Bytes by module",
                "Sorted | by bytes.",
                ("module", "bytes", "nothing", "note"),
                (("layers.2", 300, None, HOSTILE), ("layers.10", 2000, None, "b"), ("head", 45.5, None, "c")),
            ),
        ),
        notes=("measured bytes of flash_backward_kernel unavailable: ncu may not read counters",),
    )


def timeline(steps: int = 3) -> Timeline:
    """Of each step of a millisecond: an operator with one within it, and a kernel; power and bytes/s."""
    found = Timeline()
    for step in range(steps):
        start = step * 1e-3
        found.spans += [
            Span(f"step {step}", STEPS, start, 0.9e-3),
            Span("aten::linear", "CPU/thread 11", start + 1e-5, 8e-5),
            Span("aten::mm", "CPU/thread 11", start + 2e-5, 5e-5),
            Span(
                "flash_forward_kernel", "GPU 0/stream 7", start + 1e-4, 4e-4, {**LAUNCH, "module": "layers.0"}
            ),
        ]
        found.samples += [Sample("power, W", start, 300.0 + step), Sample("HBM bytes/s", start, 2e12)]
    return found


def write_run(folder: Path) -> list[Path]:
    """All files of a run as TensorBoard sees it."""
    from torch.utils.tensorboard import SummaryWriter

    sample = report()
    roofline = roofline_figure(sample.records, get_device("H100 SXM"))
    assert roofline is not None
    figures: dict[str, Figure] = {"roofline": roofline}
    with SummaryWriter(str(folder)) as writer:
        return write_report(sample, timeline(), figures, folder, writer)
