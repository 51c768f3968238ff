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
    """One kernel compiled for one target (10 * major + minor); spills are bytes a thread, to local memory.

    ``num_warps`` are those of a program, with the ones that a warp-specialised kernel adds to its launch's.
    """

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
    from triton.experimental.gluon._runtime import GluonASTSource

    kernel = launch.kernel
    if not isinstance(kernel, triton.JITFunction):
        raise UserError(f"{launch.name} was imported with TRITON_INTERPRET set; unset it to compile kernels")
    signature, constants, attributes = _signature(kernel, launch.arguments)
    source_type = GluonASTSource if kernel.is_gluon() else ASTSource
    source = source_type(kernel, signature, constants, attributes)
    log = io.StringIO()
    # Registers and spills stand only in the assembler's own log, which a cached kernel no longer has.
    with knobs.nvidia.scope(), knobs.compilation.scope(), contextlib.redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.always_compile = True
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    return CompiledResources(
        kernel=launch.name,
        capability=capability,
        num_warps=int(compiled.metadata.num_warps),
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
) -> tuple[dict[str, Any], dict[tuple[int, ...], Any], dict[tuple[int, ...], list[list[Any]]]]:
    """Types, constants and alignments as Triton would derive them when launching with these arguments.

    Constants and alignments are found by path: the argument's index, then indices within (named) tuples.
    """
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}

    def type_of(value: Any, path: tuple[int, ...], where: str, is_constant: bool, is_special: bool) -> Any:
        if is_constant or value is None or (is_special and type(value) is int and value == 1):
            constants[path] = value
            return "constexpr"
        if isinstance(value, tuple):
            types = [
                type_of(each, (*path, i), f"{where}[{i}]", False, is_special) for i, each in enumerate(value)
            ]
            return type(value)(*types) if hasattr(value, "_fields") else tuple(types)
        if isinstance(value, torch.Tensor):
            attributes[path] = ALIGNED
            return POINTERS[value.dtype]
        if hasattr(value, "block_shape"):  # a tensor descriptor; only Gluon's have a layout
            block = f"{POINTERS[value.base.dtype][1:]}{list(value.block_shape)}"
            layout = f",{value.layout!r}" if hasattr(value, "layout") else ""
            return f"tensordesc<{block}{layout}>"
        if type(value) is int:
            if is_special and value % 16 == 0:
                attributes[path] = ALIGNED
            return "i32" if -(2**31) <= value < 2**31 else "i64"
        if type(value) is float:
            return "fp32"
        raise TypeError(f"argument {where}: no Triton type for {type(value).__name__}")

    signature = {
        parameter.name: type_of(
            arguments[parameter.name],
            (index,),
            f"{parameter.name} of {kernel.__name__}",
            parameter.is_constexpr,
            not parameter.do_not_specialize,
        )
        for index, parameter in enumerate(kernel.params)
    }
    return signature, constants, attributes
