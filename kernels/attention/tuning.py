"""Tiles measured on this device, for those who ask: never at import, never within a call.

    python -m lit_eff.kernels.attention.tuning --head-dim 64 --length 4096     # measures and writes the cache
    LIT_EFF_TUNED_TILES=1 lit-eff fit ...                                      # reads it

A candidate is compiled before it may run: one that needs more shared memory than the device has, or that
spills more than the shipped tiles do, is never eligible. What the cache holds counts only for the same
device, versions of torch and Triton, and kernel sources.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from lit_eff.errors import UserError, nearest
from lit_eff.files import atomic_path, sha256_bytes
from lit_eff.kernels.attention.tiles import KERNELS, OPT_IN, Tiles, padded_head_dim, shipped_tiles, use_tiles
from lit_eff.profiling.compiled import CompiledResources, compile_launch
from lit_eff.profiling.launch import Launch

SOURCES = ("arguments", "blocks", "documents", "dropout", "forward", "key_gradient", "query_gradient")
WORTHWHILE = 0.98  # of the shipped tiles' time: closer ones are noise
ROUNDS = 15
SHARED_MEMORY_LIMIT = 227 * 1024  # of any device so far: what surely needs more is not even compiled


@dataclass(frozen=True)
class Problem:
    """One call on random tensors: self-attention of B rows of T tokens, H heads of dim D, K kv heads."""

    batch: int
    length: int
    heads: int
    head_dim: int
    dtype: torch.dtype = torch.bfloat16
    causal: bool = True
    kv_heads: int | None = None  # as many as heads by default

    def launch(self, kernel: str, tiles: Tiles, tensors: Sequence[Tensor], capability: int) -> Launch:
        """The launch of ``kernel`` with these tiles over :meth:`tensors`."""
        from lit_eff.kernels.attention.backward import backward_launches
        from lit_eff.kernels.attention.call import AttentionCall
        from lit_eff.kernels.attention.forward import forward_launches

        q, k, v, out, lse, dout, delta, dq, dk, dv = tensors
        scale = self.head_dim**-0.5
        call = AttentionCall(q, k, v, None, None, None, scale, self.causal, None, None, target=capability)
        with use_tiles(kernel, tiles):
            if kernel == "forward":
                launches = forward_launches(call, out, lse)
            else:
                launches = backward_launches(call, out, lse, dout, None, delta, dq, dk, dv)
        return next(launch for launch in launches if f"attention_{kernel}" in launch.name)

    def tensors(self, device: str) -> list[Tensor]:
        """q, k, v, out, lse, dout, delta, dq, dk, dv; what a call is given is random."""
        like_q = (self.batch, self.length, self.heads, self.head_dim)
        like_k = (self.batch, self.length, self.kv_heads or self.heads, self.head_dim)
        statistic = (self.batch, self.heads, self.length)
        q, k, v, dout = (
            torch.randn(shape, device=device).to(self.dtype) for shape in (like_q, like_k, like_k, like_q)
        )
        lse, delta = (torch.zeros(statistic, device=device) for _ in range(2))
        return [q, k, v, torch.empty_like(q), lse, dout, delta, *map(torch.empty_like, (q, k, v))]


def candidates(kernel: str, head_dim: int, element_bytes: int) -> list[Tiles]:
    """Tiles worth compiling: at most 128 rows either way, and accumulators that suit the registers."""
    padded, found = padded_head_dim(head_dim), []
    rows = (32, 64, 128) if element_bytes == 2 else (16, 32, 64)
    for block_m, block_n, warps, stages in product(rows, rows, (4, 8), (1, 2, 3)):
        owned = 2 * block_n if kernel == "key_gradient" else block_m  # dK and dV, or one of O and dQ
        accumulators = (owned * padded + block_m * block_n) // (32 * warps)  # a thread
        walked = block_m if kernel == "key_gradient" else block_n
        staged = stages * walked * padded * 2 * element_bytes
        if 32 <= accumulators <= 224 and staged <= SHARED_MEMORY_LIMIT:
            found.append(Tiles(block_m, block_n, warps, stages))
    return found


def obstacle(resources: CompiledResources, shared_memory_limit: int, spill_limit: int) -> str | None:
    """Why a compiled candidate may not run, or None. Limits in bytes: a block's, and a thread's."""
    if resources.shared_memory_bytes > shared_memory_limit:
        return f"{resources.shared_memory_bytes:,} B of shared memory, the device has {shared_memory_limit:,}"
    if resources.spill_store_bytes > spill_limit:
        return f"{resources.spill_store_bytes} B of registers spilled a thread, at most {spill_limit} may be"
    return None


Job = tuple[Problem, str, Tiles, int]  # one kernel's tiles, and the capability to compile for


def compile_job(job: Job) -> CompiledResources:
    """Compile on any machine, nothing is run; Triton's cache keeps the result."""
    problem, kernel, tiles, capability = job
    return compile_launch(problem.launch(kernel, tiles, problem.tensors("meta"), capability), capability)


def compile_jobs(jobs: Sequence[Job], processes: int) -> list[CompiledResources]:
    """:func:`compile_job` of each, in fresh processes side by side."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(compile_job, jobs))


def tune(
    problem: Problem,
    *,
    kernels: Sequence[str] = KERNELS,
    processes: int = 4,
    among: Callable[[str, int, int], list[Tiles]] = candidates,
    say: Callable[[str], None] = print,
) -> dict[str, Tiles]:
    """Measure on the current CUDA device and return, by kernel, the fastest eligible tiles.

    The shipped tiles stay unless a candidate is at least 2% faster. Results that differ from theirs by more
    than rounding disqualify a candidate. Compiling takes a few seconds a candidate; nothing is written.

    Args:
        processes: how many compile at once.
        among: which tiles to try, by kernel, head dim and element size in bytes.
        say: called with a line a candidate.

    Raises:
        UserError: no CUDA device, an unknown kernel, or Triton's interpreter is on.
    """
    for kernel in kernels:
        if kernel not in KERNELS:
            raise UserError(f"no attention kernel {kernel!r}{nearest(kernel, KERNELS)}")
    if not torch.cuda.is_available():
        raise UserError("tuning measures on an NVIDIA GPU; none is visible to torch")
    major, minor = torch.cuda.get_device_capability()
    capability, limit = 10 * major + minor, shared_memory_limit()
    torch.manual_seed(0)
    tensors = problem.tensors("cuda")
    size = tensors[0].element_size()
    best = {name: shipped_tiles(name, problem.head_dim, size, capability) for name in KERNELS}
    tried = {
        name: list(dict.fromkeys([best[name], *among(name, problem.head_dim, size)])) for name in kernels
    }
    jobs = [(problem, name, tiles, capability) for name in kernels for tiles in tried[name]]
    say(f"compiling {len(jobs)} candidates, {processes} at a time")
    compiled = dict(zip(jobs, compile_jobs(jobs, processes), strict=True))
    # The gradients read what the forward and the row sums leave.
    for name in ("forward", "delta"):
        problem.launch(name, best["forward"], tensors, capability).run()
    for kernel in kernels:
        shipped = best[kernel]
        allowed = compiled[problem, kernel, shipped, capability].spill_store_bytes
        eligible: dict[Tiles, Launch] = {}
        for tiles in tried[kernel]:
            fault = obstacle(compiled[problem, kernel, tiles, capability], limit, allowed)
            if fault is None:
                eligible[tiles] = problem.launch(kernel, tiles, tensors, capability)
            else:
                say(f"{kernel} {_words(tiles)}: not eligible, {fault}")
        times = _measure(eligible, _results(kernel, tensors))
        for tiles, milliseconds in sorted(times.items(), key=lambda pair: pair[1]):
            say(f"{kernel} {_words(tiles)}: {milliseconds:.3f} ms{' (shipped)' if tiles == shipped else ''}")
        fastest = min(times, key=times.__getitem__)
        if times[fastest] < WORTHWHILE * times[shipped]:
            best[kernel] = fastest
    return {kernel: best[kernel] for kernel in kernels}


def shared_memory_limit() -> int:
    """Bytes of shared memory that one block may have on the current CUDA device."""
    from triton.runtime import driver

    properties = driver.active.utils.get_device_properties(torch.cuda.current_device())
    return int(properties["max_shared_mem"])


def _words(tiles: Tiles) -> str:
    return f"{tiles.block_m} x {tiles.block_n}, {tiles.num_warps} warps, {tiles.num_stages} stages"


def _results(kernel: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    _q, _k, _v, out, lse, _dout, _delta, dq, dk, dv = tensors
    return {"forward": [out, lse], "key_gradient": [dk, dv], "query_gradient": [dq]}[kernel]


def _measure(launches: dict[Tiles, Launch], results: list[Tensor]) -> dict[Tiles, float]:
    """Median milliseconds, in turns; candidates whose results are not the first one's are left out."""
    expected: list[Tensor] | None = None
    times: dict[Tiles, list[float]] = {}
    for tiles, launch in launches.items():
        for result in results:
            result.fill_(torch.nan)
        launch.run()
        if expected is None:
            expected = [result.float() for result in results]
        close = (_close(result.float(), right) for result, right in zip(results, expected, strict=True))
        if all(close):
            times[tiles] = []
    for _ in range(ROUNDS):
        for tiles, series in times.items():
            start, stop = (torch.Event("cuda", enable_timing=True) for _ in range(2))
            start.record()
            launches[tiles].run()
            stop.record()
            stop.synchronize()
            series.append(start.elapsed_time(stop))
    return {tiles: statistics.median(series) for tiles, series in times.items()}


def _close(value: Tensor, right: Tensor) -> bool:
    return bool(((value - right).abs().max() <= 2e-2 * right.abs().max()).item())


def default_cache() -> Path:
    """``attention_tiles.json`` in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lit_eff" / "attention_tiles.json"


def cache_key() -> str:
    """Device, versions and kernel sources: what measured tiles depend on beside the shape."""
    folder = Path(__file__).parent
    sources = sha256_bytes(*((folder / f"{name}.py").read_bytes() for name in SOURCES))
    versions = f"torch {torch.__version__}, triton {version('triton')}"
    return f"{torch.cuda.get_device_name()}, {versions}, {sources[:16]}"


def write_cache(problem: Problem, tiles: dict[str, Tiles], path: Path | None = None) -> Path:
    """Add measured tiles to the cache; they serve every call of this head dim (padded) and element size."""
    path = path or default_cache()
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    shape = f"{padded_head_dim(problem.head_dim)} x {problem.dtype.itemsize}"
    mine = entries.setdefault(cache_key(), {}).setdefault(shape, {})
    mine.update({kernel: asdict(each) for kernel, each in tiles.items()})
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return path


def read_cache(where: str) -> dict[tuple[str, int, int, int], Tiles]:
    """(kernel, padded head dim, element bytes, capability) -> tiles of this device and versions; often none.

    Args:
        where: ``1`` for the user's own cache, or a file.

    Raises:
        UserError: there is no such file, or it is not a tuning cache.
    """
    path = default_cache() if where == "1" else Path(where)
    if not path.is_file():
        raise UserError(
            f"{OPT_IN}={where}: no file {path}; run python -m lit_eff.kernels.attention.tuning first"
        )
    if not torch.cuda.is_available():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8")).get(cache_key(), {})
        major, minor = torch.cuda.get_device_capability()
        tiles = {}
        for shape, kernels in entries.items():
            padded, size = map(int, shape.split(" x "))
            for kernel, each in kernels.items():
                tiles[kernel, padded, size, 10 * major + minor] = Tiles(**each)
        return tiles
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{OPT_IN}: {path} is not a tuning cache ({error}); delete it and tune again"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Tune head dims on this device and add them to the cache."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m lit_eff.kernels.attention.tuning", description=__doc__)
    parser.add_argument("--head-dim", type=int, nargs="+", required=True)
    parser.add_argument("--length", type=int, default=4096, help="tokens a row")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, help="as many as heads by default")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--full", action="store_true", help="not causal")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="compile so many at once")
    options = parser.parse_args(argv)
    sizes = (options.batch, options.length, options.heads)
    for head_dim in options.head_dim:
        dtype = getattr(torch, options.dtype)
        problem = Problem(*sizes, head_dim, dtype, not options.full, options.kv_heads)
        tiles = tune(problem, processes=options.processes, say=partial(print, f"dim {head_dim}:", flush=True))
        for kernel, each in tiles.items():
            print(f"dim {head_dim}: {kernel} takes {_words(each)}")
        print(f"wrote {write_cache(problem, tiles)}; {OPT_IN}=1 switches it on", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
