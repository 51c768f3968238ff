"""The counter against accesses whose bytes are known by construction."""

from __future__ import annotations

import pytest
import torch
import triton
from packaging import version
from triton.tools.tensor_descriptor import TensorDescriptor

from lit_eff.errors import UserError
from lit_eff.profiling.counted import count_traffic
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


def test_interpreter_is_left_as_it_was() -> None:
    from triton.runtime import interpreter

    before = dict(vars(interpreter.InterpreterBuilder)), dict(vars(interpreter.GridExecutor))
    with pytest.raises(ZeroDivisionError), count_traffic():
        _ = 1 / 0
    assert (dict(vars(interpreter.InterpreterBuilder)), dict(vars(interpreter.GridExecutor))) == before


def test_counting_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match="nothing was counted"), count_traffic():
        pass
