"""What Nsight Compute prints, by hand after its format, and a program that answers as ncu does."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

RANGES = "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg"
UNITS = {
    "dram__bytes_read.sum": "byte",
    "dram__bytes_write.sum": "byte",
    "gpu__time_duration.sum": "ns",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum": "",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_st.sum": "",
    "launch__registers_per_thread": "register/thread",
    "launch__shared_mem_per_block_dynamic": "byte/block",
    "launch__shared_mem_per_block_static": "byte/block",
    "lts__t_bytes.sum": "byte",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "%",
}
COPY = dict(
    zip(
        UNITS,
        ("1,048,832", "524288", "2,784", "10", "20", "32", "16384", "128", "3,145,728", "48.71"),
        strict=True,
    )
)
REFUSED = (
    "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance "
    "Counters on the target device 0. For instructions on enabling permissions and to get more information "
    "see https://developer.nvidia.com/ERR_NVGPUCTRPERM\n"
)


def stack(*names: str) -> str:
    """The cell of open ranges: thread, then each range in quotes."""
    return "".join(["7123 ", *(f' "{name}:none:none:none:none:none:none" ' for name in names)])


def page(*launches: tuple[str, str, Mapping[str, str]]) -> str:
    """A raw page of launches (kernel, cell of ranges, values by metric) among ncu's messages."""
    out = io.StringIO()
    out.write("==PROF== Connected to process 7123 (/usr/bin/python3.12)\n")
    out.write('==PROF== Profiling "copy_kernel" - 0: 0%....50%....100% - 4 passes\n')
    out.write("==PROF== Disconnected from process 7123\n")
    table = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    table.writerow(["ID", "Process ID", "Process Name", RANGES, "Kernel Name", "Block Size", *UNITS])
    table.writerow(["", "", "", "", "", "", *UNITS.values()])
    for index, (kernel, ranges, values) in enumerate(launches):
        cells = [values.get(name, "n/a") for name in UNITS]
        table.writerow([str(index), "7123", "python3.12", ranges, kernel, "(128, 1, 1)", *cells])
    return out.getvalue()


def fake_ncu(folder: Path, log: str, *, stderr: str = "", code: int = 0) -> Path:
    """A program ``ncu`` in ``folder`` that writes ``log`` to its --log-file and keeps its arguments."""
    (folder / "answer").write_text(log, encoding="utf-8")
    program = folder / "ncu"
    program.write_text(
        "#!/bin/sh\n"
        f'printf "%s\\n" "$@" > {shlex.quote(str(folder / "arguments"))}\n'
        'while [ "$1" != --log-file ]; do shift; done\n'
        f'cat {shlex.quote(str(folder / "answer"))} > "$2"\n'
        f"printf %s {shlex.quote(stderr)} >&2\nexit {code}\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    return program


def arguments(folder: Path) -> Sequence[str]:
    """What :func:`fake_ncu` was called with."""
    return (folder / "arguments").read_text(encoding="utf-8").splitlines()
