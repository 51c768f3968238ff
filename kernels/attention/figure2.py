"""FlashAttention's figure 2 again: HBM traffic and time of a forward and backward, standard against flash.

Dao et al. 2022, figure 2 left: GPT-2 medium's attention (N 1,024, d 64, 16 heads, batch 64) on an A100. The
paper printed GFLOP figures of 66.6 and 75.2 that do not fit this workload, whose matrix products alone are
825 and 962 GFLOP; its bytes and its ratios of 9.2 (HBM) and 5.7 (time) are what is compared here.

``python -m lit_eff.kernels.attention.figure2 STEPS`` runs each step once for a profiler that counts what it
moves, within an NVTX range of its number, and tells the profiler when to watch.

Shapes: B batch, T query length (the paper's N), H heads, D head dim.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lit_eff.kernels.attention.io_model import (
    AttentionShape,
    backward_flops,
    forward_flops,
    standard_backward,
    standard_forward,
)
from lit_eff.kernels.attention.paths import use_path
from lit_eff.kernels.attention.tiles import Tiles, forward_tiles, key_gradient_tiles, query_gradient_tiles
from lit_eff.kernels.attention.traffic_model import (
    delta_traffic,
    forward_traffic,
    key_gradient_traffic,
    query_gradient_traffic,
)
from lit_eff.profiling.modelled import Traffic

# The paper's own figures, of an A100: (GB of HBM traffic, milliseconds).
PAPER = {"standard": (40.3, 41.7), "flash": (4.4, 7.3)}
PAPER_RATIOS = {"hbm": 9.2, "time": 5.7}
PAPER_GFLOPS = {"standard": 66.6, "flash": 75.2}


@dataclass(frozen=True)
class Case:
    """One workload: self-attention, not causal, as in the figure."""

    batch: int = 64
    length: int = 1024
    heads: int = 16
    head_dim: int = 64
    dtype: str = "float16"

    @property
    def shape(self) -> AttentionShape:
        size = getattr(torch, self.dtype).itemsize
        return AttentionShape(
            self.batch, self.length, self.length, self.heads, self.heads, self.head_dim, size
        )

    @property
    def flops(self) -> int:
        """Of the five (standard: without recomputation) matrix products and two of the forward."""
        return forward_flops(self.shape) + backward_flops(self.shape)


def cases(lengths: Sequence[int], batch: int = 64, **sizes: Any) -> list[Case]:
    """A case a length; ``batch`` is the shortest one's, and falls so that scores take no more memory."""
    shortest = min(lengths)
    return [Case(max(1, batch * shortest**2 // length**2), length, **sizes) for length in sorted(lengths)]


def standard(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, dropout: float = 0.0) -> Tensor:
    """Algorithms 0 and 3 as PyTorch operators: scores and weights go to HBM and come back."""
    scores_BHTT: Tensor = (q_BHTD * q_BHTD.shape[3] ** -0.5) @ k_BHTD.transpose(2, 3)
    weights_BHTT = scores_BHTT.softmax(dim=3)
    del scores_BHTT  # or it would lie in memory beside the weights
    if dropout:
        weights_BHTT = F.dropout(weights_BHTT, dropout)
    return weights_BHTT @ v_BHTD


def flash(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, dropout: float = 0.0) -> Tensor:
    """Ours, on views of its own layout."""
    from lit_eff.kernels.attention import attention

    q_BTHD, k_BTHD, v_BTHD = (x.transpose(1, 2) for x in (q_BHTD, k_BHTD, v_BHTD))
    out_BTHD = attention(q_BTHD, k_BTHD, v_BTHD, dropout_p=dropout, seed=0 if dropout else None)
    assert isinstance(out_BTHD, Tensor)
    return out_BTHD.transpose(1, 2)


@dataclass(frozen=True)
class Contender:
    """An implementation over (B, H, T, D), and the one that it is held against.

    ``context`` surrounds its steps.
    """

    forward: Callable[[Tensor, Tensor, Tensor], Tensor]
    baseline: str | None = "standard"
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


DROPOUT = 0.1  # GPT-2's; the paper's baseline had it too
CONTENDERS = {
    "standard": Contender(standard, None),
    "flash": Contender(flash),
    "flash in Triton": Contender(flash, context=partial(use_path, "portable")),
    "SDPA flash": Contender(
        F.scaled_dot_product_attention, context=partial(sdpa_kernel, SDPBackend.FLASH_ATTENTION)
    ),
    "SDPA cuDNN": Contender(
        F.scaled_dot_product_attention, context=partial(sdpa_kernel, SDPBackend.CUDNN_ATTENTION)
    ),
    "standard, dropout": Contender(partial(standard, dropout=DROPOUT), None),
    "flash, dropout": Contender(partial(flash, dropout=DROPOUT), "standard, dropout"),
}


def step(contender: str, case: Case) -> Callable[[], None]:
    """One forward and backward on random tensors of the current CUDA device; gradients are made anew."""
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (case.batch, case.length, case.heads, case.head_dim)
    q, k, v, dout = (
        torch.randn(shape, generator=generator, device="cuda").to(getattr(torch, case.dtype))
        for _ in range(4)
    )
    if contender.startswith("standard"):  # its products want heads apart; as its users would, once
        q, k, v, dout = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v, dout))
    inputs = [x.transpose(1, 2).requires_grad_() for x in (q, k, v)]
    chosen = CONTENDERS[contender]

    def run() -> None:
        with chosen.context():
            out_BHTD = chosen.forward(*inputs)
            torch.autograd.grad(out_BHTD, inputs, dout.transpose(1, 2))

    return run


def modelled(contender: str, case: Case, capability: int) -> Traffic | None:
    """HBM bytes requested, by formula; None for implementations that are not ours.

    Standard attention's is the paper's (11 N^2 + 12 N d elements a head); flash is our Triton kernels'
    exact requests, whose re-reads of K and V a cache may serve.
    """
    shape = case.shape
    if contender == "standard":
        return _sum([standard_forward(shape), standard_backward(shape)])
    if contender != "flash in Triton":
        return None
    size = shape.element_bytes
    return _sum(
        [
            forward_traffic(shape, forward_tiles(case.head_dim, size, capability)),
            delta_traffic(shape),
            key_gradient_traffic(shape, key_gradient_tiles(case.head_dim, size, capability)),
            query_gradient_traffic(shape, query_gradient_tiles(case.head_dim, size, capability)),
        ]
    )


def _sum(kernels: Sequence[Traffic]) -> Traffic:
    reads, writes = Counter[str](), Counter[str]()
    for kernel in kernels:
        reads.update(kernel.reads)
        writes.update(kernel.writes)
    return Traffic(dict(reads), dict(writes))


def least_bytes(case: Case) -> int:
    """Any exact attention: q, k, v read and out written; all those and dout read, three gradients written."""
    rows = case.batch * case.heads * case.length * case.head_dim
    return (4 + 8) * rows * case.shape.element_bytes


def seconds(run: Callable[[], None], milliseconds: int = 300) -> float:
    """Median time by CUDA events, the L2 cache flushed before each run."""
    from triton.testing import do_bench

    return float(do_bench(run, rep=milliseconds, return_mode="median")) / 1e3


def forward_with_tiles(case: Case, tiles: Tiles) -> Callable[[], None]:
    """The Triton forward alone with given block sizes: figure 2, middle."""
    from lit_eff.kernels.attention.tuning import Problem

    problem = Problem(
        case.batch, case.length, case.heads, case.head_dim, getattr(torch, case.dtype), causal=False
    )
    capability = int("{}{}".format(*torch.cuda.get_device_capability()))
    launch = problem.launch("forward", tiles, problem.tensors("cuda"), capability)
    return launch.run


class Step(NamedTuple):
    """One forward and backward; with ``tiles`` the Triton forward alone."""

    contender: str
    case: Case
    tiles: Tiles | None = None

    def make(self) -> Callable[[], None]:
        """On new tensors of the current CUDA device."""
        if self.tiles is not None:
            return forward_with_tiles(self.case, self.tiles)
        return step(self.contender, self.case)


def command(steps: Sequence[Step]) -> list[str]:
    """What runs ``steps`` in a process of its own."""
    plain = [(each.contender, asdict(each.case), each.tiles and asdict(each.tiles)) for each in steps]
    return [sys.executable, "-m", __spec__.name, json.dumps(plain)]


def main(argv: Sequence[str]) -> None:
    for number, (contender, case, tiles) in enumerate(json.loads(argv[0])):
        run = Step(contender, Case(**case), tiles and Tiles(**tiles)).make()
        run()  # compiles, and fills the allocator's cache
        torch.cuda.synchronize()
        with torch.cuda.profiler.profile(), torch.cuda.nvtx.range(str(number)):
            run()
            torch.cuda.synchronize()
        del run


if __name__ == "__main__":
    main(sys.argv[1:])
