"""The launches of the multi-exit loss that are not matrix products, with their modelled bytes.

Shapes: N tokens, C model dim, V vocabulary, E exits.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from lit_eff.kernels.catalogue import Operation
from lit_eff.kernels.cross_entropy.call import ROW_SUMS, STATES, Chunk, LossCall, Options
from lit_eff.kernels.cross_entropy.io_model import VECTOR_BYTES, RowShape, row_traffic, scale_traffic
from lit_eff.kernels.cross_entropy.rows import row_launch
from lit_eff.kernels.cross_entropy.scale import scale_launch
from lit_eff.kernels.cross_entropy.sizes import padded
from lit_eff.profiling.modelled import ModelledLaunch

PEAK = 100.0  # a logit above all others


@dataclass(frozen=True)
class LossCase:
    """One chunk of tokens, all exits.

    Args:
        columns: of the vocabulary; ``padding`` more rows of the output matrix round its size up.
        ignored: every so-manieth token is not counted; 0 for none.
        distillation: the last exit teaches the others, ``hot``: at a temperature.
        sharded: these are the second half of the vocabulary's columns; another process holds the first.
        factor: the incoming gradient of the loss.
    """

    exits: int
    tokens: int
    columns: int
    width: int = 16
    padding: int = 0
    ignored: int = 0
    bias: bool = False
    gradient: bool = True
    distillation: bool = False
    hot: bool = False
    smoothing: bool = False
    capped: bool = False
    sharded: bool = False
    factor: float = 2.0
    dtype: str = "float16"

    @property
    def element(self) -> torch.dtype:
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    @property
    def distils(self) -> bool:
        return self.distillation and self.exits > 1

    @property
    def first_column(self) -> int:
        return self.columns if self.sharded else 0

    @property
    def vocabulary(self) -> int:
        return self.first_column + self.columns

    @property
    def counted(self) -> list[bool]:
        return [not self.ignored or n % self.ignored != 0 for n in range(self.tokens)]

    @property
    def options(self) -> Options:
        return Options(
            ignore_index=-100,
            label_smoothing=0.1 if self.smoothing else 0.0,
            z_loss=0.01,
            softcap=4.0 if self.capped else None,
            distillation=0.4 if self.distillation else 0.0,
            temperature=2.0 if self.hot else 1.0,
            chunk=None,
            tokens_group=None,
            vocabulary_group="vocabulary" if self.sharded else None,
            first_column=self.first_column,
            vocabulary=self.vocabulary,
            columns=self.columns,
        )


def draw(random: Random) -> LossCase:
    def coin() -> bool:
        return random.random() < 0.5

    return LossCase(
        random.randint(1, 3),
        random.randint(1, 12),
        random.randint(1, 1500),
        random.randint(1, 40),
        padding=random.choice((0, random.randint(1, 100))),
        ignored=random.choice((0, 1, 3)),
        bias=coin(),
        gradient=coin(),
        distillation=coin(),
        hot=coin(),
        smoothing=coin(),
        capped=coin(),
        sharded=random.random() < 0.3,
        factor=random.choice((1.0, 0.5)),
        dtype=random.choice(("float16", "float32")),
    )


def launches(case: LossCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    """The rows of each exit, the last exit first; then the hidden states' gradients times the loss's."""
    # Drawn on the CPU whatever the device: the I/O model needs to know.
    counted_N, targets_N = torch.tensor(case.counted), torch.randint(case.vocabulary, (case.tokens,))
    peaks_EN = torch.randint(case.columns, (case.exits, case.tokens))
    call = _call(case, targets_N.to(device), counted_N.to(device))
    here = counted_N & (targets_N >= case.first_column)
    vector = VECTOR_BYTES // case.element.itemsize
    counted, bias_bytes = int(counted_N.sum()), 4 * case.bias
    chunks = _chunks(case, peaks_EN, device)
    found: list[ModelledLaunch] = []
    for e in reversed(range(case.exits)):
        first_N = peaks_EN[e][counted_N] // vector * vector
        for statistics, finish in [(True, False), (False, True)] if case.sharded else [(True, True)]:
            launch = row_launch(call, chunks[e], e, statistics=statistics, finish=finish)
            shape = RowShape(
                case.tokens,
                counted,
                case.columns,
                case.columns + case.padding,
                case.element.itemsize,
                case.gradient,
                taught=case.distils and e < case.exits - 1,
                last=e == case.exits - 1,
                bias_bytes=bias_bytes,
                teacher_bias_bytes=bias_bytes,
                statistics=statistics,
                finish=finish,
                here=int(here.sum()),
                peaks=int((case.columns - first_N).clamp(max=vector).sum()),
            )
            found.append(ModelledLaunch(launch, row_traffic(shape), shape.flops))
    gradient_ENC = torch.randn(case.exits, case.tokens, case.width, dtype=case.element, device=device)
    factor = torch.full((), case.factor, device=device)
    elements, is_one = gradient_ENC.numel(), case.factor == 1.0
    scaled = scale_traffic(elements, case.element.itemsize, factor.itemsize, is_one=is_one)
    found.append(ModelledLaunch(scale_launch(gradient_ENC, factor), scaled, 0 if is_one else elements))
    return found


def _call(case: LossCase, targets_N: Tensor, counted_N: Tensor) -> LossCall:
    """Exits share an output matrix and a bias, if there is one."""
    device, rows = targets_N.device, case.columns + case.padding
    hidden_NC = torch.empty(case.tokens, case.width, dtype=case.element, device=device)
    return LossCall(
        [hidden_NC] * case.exits,
        [torch.empty(rows, case.width, dtype=case.element, device=device)],
        [torch.randn(rows, device=device)] if case.bias else [],
        [0] * case.exits,
        [0 if case.bias else -1] * case.exits,
        [1 / case.exits] * case.exits,
        targets_N,
        counted_N / case.tokens,
        [case.gradient] * (case.exits + 1 + case.bias),
        case.options,
        torch.empty(len(ROW_SUMS), case.exits, case.tokens, device=device),
    )


def _chunks(case: LossCase, peaks_EN: Tensor, device: torch.device) -> list[Chunk]:
    """Of each exit, its products there already, the largest where ``peaks_EN`` says."""
    tokens, kept = case.tokens, None
    lse_n = torch.zeros(tokens, device=device)
    best_n = torch.zeros(tokens, dtype=torch.int32, device=device)
    state_7n = torch.zeros(len(STATES), tokens, device=device) if case.sharded else None
    chunks: list[Chunk] = []
    for e in reversed(range(case.exits)):
        size = (tokens, padded(case.columns + case.padding))
        logits = torch.randn(size, dtype=case.element, device=device)
        logits.scatter_(1, peaks_EN[e].to(device)[:, None], PEAK)
        gradient = logits
        if case.distils and e == case.exits - 1:
            kept, gradient = logits, torch.empty_like(logits)
        chunks.append(Chunk(slice(0, tokens), logits, gradient, kept, lse_n, best_n, state_7n))
    return chunks[::-1]


OPERATIONS = (
    Operation(
        name="cross_entropy",
        case=LossCase,
        small=(
            LossCase(1, 1, 1),
            LossCase(1, 11, 640),
            LossCase(1, 11, 133, padding=59, ignored=5, dtype="float32"),
            LossCase(2, 11, 133, bias=True),
            LossCase(2, 11, 133, bias=True, distillation=True, ignored=5),
            LossCase(2, 11, 133, distillation=True, hot=True, gradient=False, dtype="float32"),
            LossCase(3, 7, 300, smoothing=True, capped=True, ignored=3),
            LossCase(3, 7, 70, distillation=True, hot=True, smoothing=True, capped=True, bias=True),
            LossCase(1, 3, 2500, width=3000, factor=1.0),
            LossCase(1, 5, 70, ignored=1, gradient=False),
            LossCase(2, 9, 100, sharded=True, ignored=4, bias=True),
            LossCase(2, 9, 100, sharded=True, distillation=True, padding=28, dtype="float32"),
        ),
        typical=LossCase(1, 2688, 50304, width=2048, dtype="bfloat16"),
        draw=draw,
        launches=launches,
    ),
)
