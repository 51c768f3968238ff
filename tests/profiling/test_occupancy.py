"""Occupancy against NVIDIA's own calculator, whose C header comes with Triton, and worked by hand."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
import triton

from lit_eff.errors import UserError
from lit_eff.profiling.devices import DEVICES, Device, get_device
from lit_eff.profiling.occupancy import occupancy

HEADER = Path(triton.__file__).parent / "backends/nvidia/include/cuda_occupancy.h"
PROGRAM = """
#include <stdio.h>
#include "cuda_occupancy.h"
int main(void) {
    struct cudaOccDeviceProp device = {0};
    struct cudaOccFuncAttributes kernel = {0};
    struct cudaOccDeviceState state = {0};
    int threads, opt_in;
    size_t shared;
    device.maxThreadsPerBlock = 1024;
    device.regsPerBlock = 65536;
    device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 * 1024;
    device.reservedSharedMemPerBlock = 1024;
    device.numSms = 1;
    kernel.maxThreadsPerBlock = 1024;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    while (scanf("%d %d %d %zu %d %d %d %zu", &device.computeMajor, &device.computeMinor,
                 &device.maxThreadsPerMultiprocessor, &device.sharedMemPerMultiprocessor, &opt_in,
                 &threads, &kernel.numRegs, &shared) == 8) {
        struct cudaOccResult result = {0};
        device.sharedMemPerBlockOptin = opt_in;
        kernel.maxDynamicSharedSizeBytes = shared;
        int failure =
            cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared);
        printf("%d %d %u\\n", failure, result.activeBlocksPerMultiprocessor, result.limitingFactors);
    }
    return 0;
}
"""
FACTORS = {"warps": 1, "registers": 2, "shared memory": 4, "blocks": 8}  # bits of cudaOccLimitingFactor


@pytest.fixture(scope="module")
def calculator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or not HEADER.is_file():
        pytest.skip("needs a C compiler, and the header that NVIDIA's backend of Triton brings")
    folder = tmp_path_factory.mktemp("occupancy")
    (folder / "calculator.c").write_text(PROGRAM)
    command = [compiler, "-O1", f"-I{HEADER.parent}", "calculator.c", "-o", "calculator"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "calculator"


def test_as_nvidias_calculator_says(calculator: Path) -> None:
    """Programs and what limits them, for kernels drawn at random and at every limit's edge."""
    draw = random.Random(0)
    cases: list[tuple[Device, int, int, int]] = []
    for device in {device.capability: device for device in DEVICES}.values():
        for _ in range(1500):
            shared = draw.choice((0, draw.randrange(device.shared_memory_per_block + 1)))
            warps = draw.choice((1, 2, 3, 4, 5, 7, 8, 12, 16, 32, 33))
            cases.append((device, warps, draw.randint(1, 255), shared))
        for programs in range(1, 33):
            edge = device.shared_memory_per_sm // programs - 1024
            cases += [(device, 4, 32, edge + step) for step in (-128, -1, 0, 1, 128) if edge + step >= 0]
            cases += [(device, programs, registers, 0) for registers in (64, 65, 128, 168, 200, 255)]
    lines = [
        f"{device.capability // 10} {device.capability % 10} {32 * device.warps_per_sm} "
        f"{device.shared_memory_per_sm} {device.shared_memory_per_block} {32 * warps} {registers} {shared}"
        for device, warps, registers, shared in cases
    ]
    printed = subprocess.run(
        [calculator], input="\n".join(lines), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    seen = set()
    for (device, *case), line in zip(cases, printed, strict=True):
        failure, programs, factors = map(int, line.split())
        found = occupancy(device, *case)
        assert failure == 0
        assert found.programs_per_sm == programs, (device.name, case)
        assert sum(FACTORS[limit] for limit in found.limited_by) == factors, (device.name, case)
        seen.update(found.limited_by)
    assert seen == set(FACTORS)


def test_worked_by_hand() -> None:
    h100, ada = get_device("H100 SXM"), get_device("L4")
    # 168 registers make 5,376 a warp, 3 warps in each 16,384 of a partition: 12 warps, 3 programs of 4.
    found = occupancy(h100, 4, 168, 48 * 1024)
    assert found.limits == {"warps": 16, "blocks": 32, "registers": 3, "shared memory": 4}
    assert (found.programs_per_sm, found.limited_by) == (3, ("registers",))
    assert found.share == 12 / 64
    # 48 KiB and the reserved one, four times, in 228 KiB.
    assert occupancy(h100, 4, 32, 48 * 1024).limited_by == ("shared memory",)
    # Small programs: the 32 blocks of an H100 hold half its warps, the 24 of an L4 half of its 48.
    assert occupancy(h100, 1, 16, 0).share == occupancy(ada, 1, 16, 0).share == 0.5
    assert occupancy(ada, 8, 32, 0).share == 1


def test_what_does_not_fit_says_so() -> None:
    device = get_device("A100 SXM 40 GB")
    assert occupancy(device, 4, 32, device.shared_memory_per_block).programs_per_sm == 1
    over = occupancy(device, 4, 32, device.shared_memory_per_block + 1)
    assert (over.programs_per_sm, over.share) == (0, 0)
    assert over.sentence == "an SM of A100 SXM 40 GB cannot hold one program: too much of its shared memory"
    assert occupancy(device, 32, 65, 0).limited_by == ("registers",)
    with pytest.raises(UserError, match="a kernel of 0 warps"):
        occupancy(device, 0, 32, 0)
