"""A bound on the bytes that Triton kernels ask of HBM, for the tests of any project: no GPU needed.

::

    def test_fused_norm_reads_its_rows_once():
        assert_hbm_bytes(lambda: fused_norm(x, weight), at_most=2 * x.nbytes + weight.nbytes)

Triton chooses its interpreter when a kernel is decorated, so ``TRITON_INTERPRET=1`` must be set before the
kernels are imported: in ``conftest.py``, or for the whole ``pytest`` command.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from lit_eff.errors import UserError
from lit_eff.profiling.counted import count_traffic
from lit_eff.profiling.counter import KernelCount
from lit_eff.profiling.launch import Launch
from lit_eff.profiling.report import ReportTable
from lit_eff.profiling.text_table import as_text


def assert_hbm_bytes(
    kernel: Callable[[], object] | Launch | Sequence[Launch], *, at_most: int
) -> list[KernelCount]:
    """Run ``kernel`` in Triton's interpreter and assert that it requests at most so many bytes of HBM.

    Args:
        kernel: whatever launches Triton kernels when called without arguments, or launches themselves.
        at_most: bytes of all its launches together: loads, stores and atomics, lane by lane, as
            :attr:`KernelTraffic.hbm_bytes` has them. Masked lanes ask for nothing.

    Returns: a count a launch, in order, by tensor and by source line.

    Raises:
        AssertionError: if they ask for more; the message says which lines ask for how much.
        UserError: if the interpreter is off, or nothing was launched.
    """
    __tracebackhide__ = True  # pytest shows the caller's line instead
    run = kernel if callable(kernel) else _launching(kernel)
    _require_interpreter()
    with count_traffic() as counts:
        run()
    moved = sum(count.read_bytes + count.written_bytes + count.atomic_bytes for count in counts)
    if moved > at_most:
        names = ", ".join(dict.fromkeys(count.kernel for count in counts))
        raise AssertionError(
            f"{names}: {moved:,} bytes requested of HBM, {moved - at_most:,} more than the {at_most:,} "
            f"allowed; by source line:\n{as_text(lines_table(counts, moved))}"
        )
    return counts


def _launching(launches: Launch | Sequence[Launch]) -> Callable[[], None]:
    each_in_turn = [launches] if isinstance(launches, Launch) else launches

    def run() -> None:
        for launch in each_in_turn:
            launch.run()

    return run


def _require_interpreter() -> None:
    from triton import knobs

    if not knobs.runtime.interpret:
        raise UserError(
            "TRITON_INTERPRET is not set, so no bytes can be counted; expected 1: set it before the kernel's "
            "module is imported (in conftest.py, or TRITON_INTERPRET=1 pytest ...)"
        )


def lines_table(counts: Sequence[KernelCount], moved: int) -> ReportTable:
    """The lines that ask for most first, all launches together, with their shares of ``moved`` bytes."""
    requested: Counter[tuple[str, str, str, str]] = Counter()
    for line in (line for count in counts for line in count.lines):
        requested[f"{line.file}:{line.line}", line.kind, line.tensor, line.text] += line.requested_bytes
    rows = [
        (size, f"{size / moved:.0%}", kind, tensor, place, text)
        for (place, kind, tensor, text), size in requested.most_common()
        if size
    ]
    return ReportTable(
        "Bytes requested of HBM by source line",
        "Counted in Triton's interpreter.",
        ("bytes", "share", "kind", "tensor", "line", "source"),
        tuple(rows),
    )
