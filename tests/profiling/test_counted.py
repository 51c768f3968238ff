"""The counter against accesses whose bytes are known by construction."""

from __future__ import annotations

import inspect

import pytest
import torch
import triton
from packaging import version
from triton.tools.tensor_descriptor import TensorDescriptor

from lit_eff.errors import UserError
from lit_eff.profiling.counted import count_traffic
from lit_eff.profiling.counter import KernelCount
from lit_eff.profiling.traffic import LineTraffic
from tests.profiling import toy_kernels

pytestmark = pytest.mark.skipif(
    isinstance(toy_kernels.add_kernel, triton.JITFunction), reason="needs TRITON_INTERPRET=1 from the start"
)


def aligned(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Torch aligns CPU tensors to 64 bytes, so sectors fall where expected."""
    tensor = torch.ones(count, dtype=dtype)
    assert tensor.data_ptr() % 32 == 0
    return tensor


def test_masked_loads_and_stores_by_tensor() -> None:
    x, y, total = (aligned(100) for _ in range(3))
    with count_traffic() as launches:
        toy_kernels.add_kernel[(2,)](x, y, total, 100, BLOCK=64)
    (count,) = launches
    assert count.kernel == "add_kernel"
    assert set(count.tensors) == {"x", "y", "sum"}
    assert count.tensors["x"].loads.requested_bytes == 400
    assert count.tensors["sum"].stores.requested_bytes == 400
    assert count.tensors["sum"].loads.requested_bytes == 0
    assert (count.read_bytes, count.written_bytes, count.atomic_bytes) == (800, 400, 0)
    assert count.masked_lanes == 3 * 28
    assert (count.read_sector_bytes, count.written_sector_bytes) == (2 * 416, 416)
    assert total.eq(2).all()


def test_lanes_that_are_all_off_ask_for_nothing() -> None:
    x, y, total = (aligned(64) for _ in range(3))
    with count_traffic() as launches:
        toy_kernels.add_kernel[(2,)](x, y, total, 64, BLOCK=64)  # all of the second program's are off
    (count,) = launches
    assert (count.read_bytes, count.written_bytes, count.masked_lanes) == (512, 256, 3 * 64)
    assert {name: each.loads.masked_lanes for name, each in count.tensors.items()} == {
        "x": 0,
        "y": 0,
        "sum": 0,
        "nothing": 2 * 64,
    }


def test_bytes_outside_every_tensor_are_counted_elsewhere() -> None:
    buffer, out = aligned(128), aligned(64)
    with count_traffic() as launches:
        toy_kernels.strided_read_kernel[(1,)](buffer[:32], out, 1, BLOCK=64)  # 32 beyond the view's end
    tensors = launches[0].tensors
    assert (tensors["x"].loads.requested_bytes, tensors["elsewhere"].loads.requested_bytes) == (128, 128)


def test_sectors_tell_strided_reads_from_dense_ones() -> None:
    x, out = aligned(64 * 16), aligned(64)
    for stride, sectors in ((0, 1), (1, 8), (2, 16), (8, 64), (16, 64)):
        with count_traffic() as launches:
            toy_kernels.strided_read_kernel[(1,)](x, out, stride, BLOCK=64)
        loads = launches[0].tensors["x"].loads
        assert loads.requested_bytes == 256
        assert loads.sector_bytes == 32 * sectors


def test_atomics_are_their_own_kind() -> None:
    x = torch.tensor([0, 1, 1, 3] * 4, dtype=torch.int32)
    counts, lock = torch.zeros(4, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with count_traffic() as launches:
        toy_kernels.histogram_kernel[(1,)](x, counts, lock, BLOCK=16)
    (count,) = launches
    assert count.tensors["counts"].atomics.requested_bytes == 64
    assert count.tensors["lock"].atomics.requested_bytes == 4
    assert (count.read_bytes, count.written_bytes, count.atomic_bytes) == (64, 0, 68)
    assert counts.tolist() == [4, 8, 0, 4]


def test_descriptors_are_seen() -> None:
    x, y = aligned(40 * 16).view(40, 16), aligned(40 * 16).view(40, 16)
    with count_traffic() as launches:
        descriptors = [TensorDescriptor.from_tensor(tensor, [16, 16]) for tensor in (x, y)]
        toy_kernels.descriptor_copy_kernel[(3,)](*descriptors, BLOCK=16)
    assert launches[0].tensors["x"].loads.requested_bytes == 40 * 16 * 4
    assert launches[0].tensors["y"].stores.requested_bytes == 40 * 16 * 4


@pytest.mark.skipif(version.parse(triton.__version__).release >= (3, 8), reason="Triton 3.9 has none left")
@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
def test_block_pointers_are_seen() -> None:
    x, y = aligned(40 * 16).view(40, 16), aligned(40 * 16).view(40, 16)
    with count_traffic() as launches:
        toy_kernels.block_pointer_copy_kernel[(1,)](x, y, 10, 16, BLOCK=16)
    assert launches[0].tensors["x"].loads.requested_bytes == 10 * 16 * 4
    assert launches[0].masked_lanes == 2 * 6 * 16


def test_views_of_one_buffer_are_counted_together() -> None:
    buffer, out = aligned(128), aligned(64)
    with count_traffic() as launches:
        toy_kernels.add_kernel[(1,)](buffer[::2], buffer[1::2], out, 60, BLOCK=64)
    assert launches[0].tensors["x+y"].loads.requested_bytes == 480


def by_line(count: KernelCount) -> dict[tuple[str, str], LineTraffic]:
    """The lines of a count by kind and tensor, which must be one each; their sums are the totals."""
    for kind, total in (("loads", "read_bytes"), ("stores", "written_bytes"), ("atomics", "atomic_bytes")):
        requested = sum(line.requested_bytes for line in count.lines if line.kind == kind)
        assert requested == getattr(count, total)
    assert sum(line.masked_lanes for line in count.lines) == count.masked_lanes
    lines = {(line.kind, line.tensor): line for line in count.lines}
    assert len(lines) == len(count.lines)
    return lines


def test_a_line_tells_file_text_and_tensor() -> None:
    x, y, total = (aligned(100) for _ in range(3))
    with count_traffic() as launches:
        toy_kernels.add_kernel[(2,)](x, y, total, 100, BLOCK=64)
    text = "tl.store(p_sum + o, tl.load(p_x + o, mask=m) + tl.load(p_y + o, mask=m), mask=m)"
    source = inspect.getsource(toy_kernels).splitlines()
    (number,) = (n for n, line in enumerate(source, start=1) if line.strip() == text)
    place = ("toy_kernels.py", number, text)
    assert launches[0].lines == (
        LineTraffic(*place, "sum", "stores", 400, 416, 28),
        LineTraffic(*place, "x", "loads", 400, 416, 28),
        LineTraffic(*place, "y", "loads", 400, 416, 28),
    )


def test_a_device_function_counts_where_it_stands() -> None:
    """Called from two lines for two tensors, it is one line of its own file for each."""
    x, out = aligned(64 + 8), aligned(64)
    with count_traffic() as launches:
        toy_kernels.twice_kernel[(1,)](x, out, 60, BLOCK=64)
    helper = {line.tensor: line for line in launches[0].lines if line.file == "toy_functions.py"}
    assert set(helper) == {"x", "out"}
    for line in helper.values():
        assert (line.kind, line.text) == ("loads", "return tl.load(p_x + o, mask=o < count)")
        assert (line.requested_bytes, line.sector_bytes, line.masked_lanes) == (240, 256, 4)
    own = [line for line in launches[0].lines if line.file == "toy_kernels.py"]
    assert [(line.kind, line.tensor) for line in own] == [("loads", "x"), ("stores", "out")]
    assert [line.text for line in own] == ["again = tl.load(p_x + o + 8)", "tl.store("]


def test_sectors_on_two_lines_are_distinct_in_the_total() -> None:
    """Elements 0 to 59 on one line, 8 to 71 on another: 8 sectors each, 9 together."""
    x, out = aligned(64 + 8), aligned(64)
    with count_traffic() as launches:
        toy_kernels.twice_kernel[(1,)](x, out, 60, BLOCK=64)
    assert [line.sector_bytes for line in launches[0].lines if line.tensor == "x"] == [256, 256]
    assert launches[0].tensors["x"].loads.sector_bytes == 9 * 32
    assert launches[0].tensors["x"].loads.requested_bytes == 240 + 256
    assert launches[0].read_sector_bytes == 9 * 32 + 256


def test_sectors_of_a_line_are_distinct_however_often_it_runs() -> None:
    """Both programs read the same row: asked for twice, one set of sectors; in total as by line."""
    x, y = aligned(16 * 16).view(16, 16), aligned(16 * 16).view(16, 16)
    rows = torch.tensor([3, 1, 3, 3, 0, 1, 3, 9], dtype=torch.int32)
    with count_traffic() as launches:
        descriptors = [TensorDescriptor.from_tensor(tensor, [1, 16]) for tensor in (x, y)]
        toy_kernels.gather_kernel[(2,)](descriptors[0], rows, descriptors[1], BLOCK=8)
    lines = by_line(launches[0])
    assert lines["loads", "rows"].requested_bytes == 2 * 8 * 4
    for key in (("loads", "x"), ("stores", "y")):
        assert lines[key].text == "y.scatter(x.gather(rows, 0), rows, 0)"
        assert (lines[key].requested_bytes, lines[key].sector_bytes) == (2 * 8 * 64, 4 * 64)


def test_atomics_by_line() -> None:
    x = torch.tensor([0, 1, 1, 3] * 4, dtype=torch.int32)
    counts, lock = torch.zeros(4, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with count_traffic() as launches:
        toy_kernels.histogram_kernel[(1,)](x, counts, lock, BLOCK=16)
    lines = by_line(launches[0])
    assert lines["atomics", "counts"].text == "tl.atomic_add(p_counts + tl.load(p_x + o), 1)"
    assert lines["atomics", "counts"].line == lines["loads", "x"].line
    assert lines["atomics", "lock"].text == "tl.atomic_cas(p_lock, 0, 1)"


def test_interpreter_is_left_as_it_was() -> None:
    from triton.runtime import interpreter

    before = dict(vars(interpreter.InterpreterBuilder)), dict(vars(interpreter.GridExecutor))
    with pytest.raises(ZeroDivisionError), count_traffic():
        _ = 1 / 0
    assert (dict(vars(interpreter.InterpreterBuilder)), dict(vars(interpreter.GridExecutor))) == before


def test_counting_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match="nothing was counted"), count_traffic():
        pass
