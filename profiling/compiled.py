"""What a Triton kernel takes of a streaming multiprocessor, found by compiling it: no GPU needed.

Triton compiles for any target with the assembler in its wheel. It never refuses too much shared memory (the
launch does), so compare :attr:`CompiledResources.shared_memory_bytes` with the device table yourself.
"""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from typing import Any

import torch

from lit_eff.errors import UserError
from lit_eff.profiling.launch import Launch

POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.float8_e5m2: "*fp8e5",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
ALIGNED = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class CompiledResources:
    """One kernel compiled for one target (10 * major + minor); spills are bytes a thread, to local memory."""

    kernel: str
    capability: int
    num_warps: int
    num_stages: int
    shared_memory_bytes: int
    registers_per_thread: int
    spill_store_bytes: int
    spill_load_bytes: int


def compile_launch(launch: Launch, capability: int) -> CompiledResources:
    """Compile ``launch`` for an NVIDIA target (80 is the A100, 90 the H100), always afresh, running nothing.

    Tensors in the launch may lie on any device, ``meta`` too; they count as 16-byte aligned, which is what
    torch's allocator gives.

    Raises:
        UserError: if Triton's interpreter is on, which replaces the compiler.
    """
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = launch.kernel
    if not isinstance(kernel, triton.JITFunction):
        raise UserError(f"{launch.name} was imported with TRITON_INTERPRET set; unset it to compile kernels")
    signature, constants, attributes = _signature(kernel, launch.arguments)
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    log = io.StringIO()
    # Registers and spills stand only in the assembler's own log, which a cached kernel no longer has.
    with knobs.nvidia.scope(), knobs.compilation.scope(), contextlib.redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.always_compile = True
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return CompiledResources(
        kernel=launch.name,
        capability=capability,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        shared_memory_bytes=int(compiled.metadata.shared),
        registers_per_thread=_from_log(log.getvalue(), r"Used (\d+) registers"),
        spill_store_bytes=_from_log(log.getvalue(), r"(\d+) bytes spill stores"),
        spill_load_bytes=_from_log(log.getvalue(), r"(\d+) bytes spill loads"),
    )


def _from_log(log: str, pattern: str) -> int:
    found = re.findall(pattern, log)
    if not found:
        raise RuntimeError(f"ptxas printed no {pattern!r}:\n{log}")
    return max(map(int, found))


def _signature(
    kernel: Any, arguments: dict[str, Any]
) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
    """Types, constants and alignments as Triton would derive them when launching with these arguments."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, parameter in enumerate(kernel.params):
        name, value = parameter.name, arguments[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name] = "constexpr"
            constants[name] = value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(index,)] = ALIGNED
        elif type(value) is int:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = ALIGNED
        elif type(value) is float:
            signature[name] = "fp32"
        else:
            raise TypeError(
                f"argument {name} of {kernel.__name__}: no Triton type for {type(value).__name__}"
            )
    return signature, constants, attributes
