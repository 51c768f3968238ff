"""Records from launches: sums of kernels that make one result, and the sectors of byte ranges."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lit_eff.profiling.modelled import sector_bytes, whole_sectors
from lit_eff.profiling.records import together
from lit_eff.profiling.traffic import KernelTraffic, Number


def part(read: int, seconds: float | None, registers: int) -> KernelTraffic:
    timed = Number(seconds, "measured") if seconds is not None else Number(None, "unavailable", "no GPU")
    return KernelTraffic(
        "part",
        {},
        {
            "read_bytes": (Number(read, "counted", "interpreter"), Number(read + 1, "modelled", "formula")),
            "registers_per_thread": (Number(registers, "counted"),),
            "seconds": (timed,),
        },
    )


def test_parts_add_up_by_source() -> None:
    """What adds up does; registers do not; a time that one part lacks is not made up."""
    parts = (part(10, 1.0, 64), part(5, 2.0, 32))
    whole = together("both", {}, parts)
    assert whole.numbers == {
        "read_bytes": (Number(15, "counted", "interpreter"), Number(17, "modelled", "formula")),
        "seconds": (Number(3.0, "measured"),),
    }
    assert whole.parts == parts
    assert "seconds" not in together("both", {}, (part(1, 1.0, 1), part(1, None, 1))).numbers


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=6))
def test_sectors_are_those_of_the_bytes(ranges: list[tuple[int, int]]) -> None:
    touched = {byte // 32 for start, stop in ranges for byte in range(start, stop)}
    assert sector_bytes(ranges) == 32 * len(touched)


def test_whole_tensors_are_rounded_up() -> None:
    assert whole_sectors(1, 32, 33, 0) == 32 + 32 + 64
