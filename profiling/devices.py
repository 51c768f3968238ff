"""What GPUs can do at most: the physical limits that traffic and time are held against.

Figures are the vendor's for dense (not 2:4 sparse) arithmetic with float32 accumulation; where a datasheet
prints only the sparse figure, half of it stands here. Each device names its sources.
"""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
from dataclasses import dataclass

from lit_eff.errors import UserError

KIB, MIB, GB = 1024, 1024**2, 10**9
TERA = 10**12

A100 = "NVIDIA A100 Tensor Core GPU architecture whitepaper (V1.0) and A100 datasheet"
H100 = "NVIDIA H100 Tensor Core GPU architecture whitepaper and H100 datasheet"
TUNING = "CUDA C++ Programming Guide, table of compute capabilities (shared memory, warps, blocks, registers)"
ADA = "NVIDIA Ada GPU architecture whitepaper (V2)"


@dataclass(frozen=True)
class Device:
    """One GPU model.

    ``torch_names`` are what ``torch.cuda.get_device_name`` prints for it; ``capability`` is 10 * major +
    minor. An SM holds at most ``warps_per_sm`` warps in at most ``blocks_per_sm`` blocks (programs), and
    ``registers_per_sm`` 32-bit registers. Memory sizes are bytes, ``hbm_bandwidth`` is bytes a second (the
    GDDR cards' memory stands under the same name), peaks are FLOP a second. ``l2_bytes`` is the whole cache;
    ``board_power_watts`` the most that the board may draw (TDP or TGP).
    """

    name: str
    torch_names: tuple[str, ...]
    capability: int
    sms: int
    shared_memory_per_sm: int
    shared_memory_per_block: int
    warps_per_sm: int
    blocks_per_sm: int
    registers_per_sm: int
    l2_bytes: int
    hbm_bytes: int
    hbm_bandwidth: float
    board_power_watts: float
    peaks: dict[str, float]
    sources: tuple[str, ...]

    def peak(self, dtype: str) -> float:
        """Dense peak in FLOP/s for ``bfloat16``, ``float16``, ``tf32``, ``float32`` (CUDA cores) or
        ``float8``.

        Raises:
            UserError: if the device has no such arithmetic.
        """
        if dtype not in self.peaks:
            raise UserError(f"{self.name} has no {dtype} peak; it has {', '.join(self.peaks)}")
        return self.peaks[dtype]


def _peaks(half: float, tf32: float, single: float, eighth: float | None) -> dict[str, float]:
    """Peaks from TFLOP/s: tensor cores at 16 bits, TF32, CUDA cores at float32, tensor cores at 8 bits."""
    peaks = {"bfloat16": half, "float16": half, "tf32": tf32, "float32": single}
    if eighth is not None:
        peaks["float8"] = eighth
    return {dtype: tera * TERA for dtype, tera in peaks.items()}


LIKE_A100 = {"warps_per_sm": 64, "blocks_per_sm": 32, "registers_per_sm": 64 * KIB}
AMPERE = {
    "capability": 80,
    "sms": 108,
    "shared_memory_per_sm": 164 * KIB,
    "shared_memory_per_block": 163 * KIB,
    **LIKE_A100,
}
HOPPER = {
    "capability": 90,
    "shared_memory_per_sm": 228 * KIB,
    "shared_memory_per_block": 227 * KIB,
    **LIKE_A100,
}
LOVELACE = {
    "capability": 89,
    "shared_memory_per_sm": 100 * KIB,
    "shared_memory_per_block": 99 * KIB,
    "warps_per_sm": 48,
    "blocks_per_sm": 24,
    "registers_per_sm": 64 * KIB,
}

A100_PEAKS = _peaks(312, 156, 19.5, None)
H100_SXM_PEAKS = _peaks(989.4, 494.7, 66.9, 1978.9)
NVL_PEAKS = _peaks(835.5, 417.5, 60, 1670.5)

DEVICES = (
    Device(
        name="A100 SXM 40 GB",
        torch_names=("NVIDIA A100-SXM4-40GB",),
        l2_bytes=40 * MIB,
        hbm_bytes=40 * GB,
        hbm_bandwidth=1555 * GB,
        board_power_watts=400,
        peaks=A100_PEAKS,
        sources=(A100, TUNING),
        **AMPERE,
    ),
    Device(
        name="A100 SXM 80 GB",
        torch_names=("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM-80GB"),
        l2_bytes=40 * MIB,
        hbm_bytes=80 * GB,
        hbm_bandwidth=2039 * GB,
        board_power_watts=400,
        peaks=A100_PEAKS,
        sources=(A100, TUNING),
        **AMPERE,
    ),
    Device(
        name="A100 PCIe 40 GB",
        torch_names=("NVIDIA A100-PCIE-40GB",),
        l2_bytes=40 * MIB,
        hbm_bytes=40 * GB,
        hbm_bandwidth=1555 * GB,
        board_power_watts=250,
        peaks=A100_PEAKS,
        sources=(A100, TUNING),
        **AMPERE,
    ),
    Device(
        name="A100 PCIe 80 GB",
        torch_names=("NVIDIA A100 80GB PCIe", "NVIDIA A100-PCIE-80GB"),
        l2_bytes=40 * MIB,
        hbm_bytes=80 * GB,
        hbm_bandwidth=1935 * GB,
        board_power_watts=300,
        peaks=A100_PEAKS,
        sources=(A100, TUNING),
        **AMPERE,
    ),
    Device(
        name="H100 SXM",
        torch_names=("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM5 80GB"),
        sms=132,
        l2_bytes=50 * MIB,
        hbm_bytes=80 * GB,
        hbm_bandwidth=3350 * GB,
        board_power_watts=700,
        peaks=H100_SXM_PEAKS,
        sources=(H100, TUNING),
        **HOPPER,
    ),
    Device(
        name="H100 PCIe",
        torch_names=("NVIDIA H100 PCIe",),
        sms=114,
        l2_bytes=50 * MIB,
        hbm_bytes=80 * GB,
        hbm_bandwidth=2039 * GB,
        board_power_watts=350,
        peaks=_peaks(756, 378, 51.2, 1513),
        sources=(H100, TUNING),
        **HOPPER,
    ),
    Device(
        name="H100 NVL",
        torch_names=("NVIDIA H100 NVL",),
        sms=132,
        l2_bytes=50 * MIB,
        hbm_bytes=94 * GB,
        hbm_bandwidth=3938 * GB,
        board_power_watts=400,
        peaks=NVL_PEAKS,
        sources=(H100, "NVIDIA H100 NVL product brief (bandwidth, power)", TUNING),
        **HOPPER,
    ),
    Device(
        name="H200 SXM",
        torch_names=("NVIDIA H200",),
        sms=132,
        l2_bytes=60 * MIB,
        hbm_bytes=141 * GB,
        hbm_bandwidth=4800 * GB,
        board_power_watts=700,
        peaks=H100_SXM_PEAKS,
        sources=("NVIDIA H200 datasheet", "L2 and SMs as the CUDA runtime reports them", TUNING),
        **HOPPER,
    ),
    Device(
        name="H200 NVL",
        torch_names=("NVIDIA H200 NVL",),
        sms=132,
        l2_bytes=60 * MIB,
        hbm_bytes=141 * GB,
        hbm_bandwidth=4800 * GB,
        board_power_watts=600,
        peaks=NVL_PEAKS,
        sources=("NVIDIA H200 datasheet", "L2 and SMs as the CUDA runtime reports them", TUNING),
        **HOPPER,
    ),
    Device(
        name="L4",
        torch_names=("NVIDIA L4",),
        sms=58,
        l2_bytes=48 * MIB,
        hbm_bytes=24 * GB,
        hbm_bandwidth=300 * GB,
        board_power_watts=72,
        peaks=_peaks(121, 60, 30.3, 242.5),
        sources=("NVIDIA L4 datasheet (sparse figures halved)", ADA, TUNING),
        **LOVELACE,
    ),
    Device(
        name="RTX 4090",
        torch_names=("NVIDIA GeForce RTX 4090",),
        sms=128,
        l2_bytes=72 * MIB,
        hbm_bytes=24 * GB,
        hbm_bandwidth=1008 * GB,
        board_power_watts=450,
        peaks=_peaks(165.2, 82.6, 82.6, 330.3),
        sources=(ADA, TUNING),
        **LOVELACE,
    ),
    Device(
        name="B200",
        torch_names=("NVIDIA B200",),
        capability=100,
        sms=148,
        shared_memory_per_sm=228 * KIB,
        shared_memory_per_block=227 * KIB,
        l2_bytes=126 * MIB,
        hbm_bytes=180 * GB,
        hbm_bandwidth=7700 * GB,
        board_power_watts=1000,
        peaks=_peaks(2250, 1125, 75, 4500),
        sources=(
            "NVIDIA HGX B200 datasheet (a GPU's share; sparse figures halved)",
            "NVIDIA Blackwell tuning guide (L2, shared memory, warps, blocks, registers)",
            "SMs as the CUDA runtime reports them",
        ),
        **LIKE_A100,
    ),
)


def find_device(name: str) -> Device | None:
    """The table's row for a name as ``torch.cuda.get_device_name`` prints it (or as the table does), else
    None.

    A MIG slice (its name ends in such as ``MIG 1g.10gb``) is not the whole device, so it is not found.
    """
    wanted = _normal(name)
    for device in DEVICES:
        if wanted in map(_normal, (device.name, *device.torch_names)):
            return device
    return None


def get_device(name: str) -> Device:
    """As :func:`find_device`.

    Raises:
        UserError: if the table lacks the device, naming the nearest it has.
    """
    device = find_device(name)
    if device is None:
        names = [device.name for device in DEVICES]
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.3) or names
        raise UserError(f"no device {name!r} in the table of GPU limits; nearest: {', '.join(close)}")
    return device


def driver_version() -> str | None:
    """The NVIDIA driver's version as nvidia-smi tells it, or None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return lines[0] if lines else None


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).removeprefix("nvidia ").strip()
