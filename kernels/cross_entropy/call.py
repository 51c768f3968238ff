"""One checked call of the multi-exit loss, and one chunk of its logits, reduced to what the launches need.

Shapes: N tokens (n those of a chunk), C model dim, V vocabulary (or this shard of it), E exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_eff.kernels.cross_entropy.sizes import RowTiles, chunk_rows, padded, row_tiles
from lit_eff.kernels.device import multiprocessors

# What the row kernel writes of each token: numbers whose sums over tokens are the results. The first carries
# the exit's weight.
ROW_SUMS = ("loss", "nll", "accuracy", "agreement", "confidence")
# What it writes of a row of one shard of the vocabulary; sums are relative to the shard's maximum.
STATES = ("top", "best", "target", "total", "sum", "hot", "cross")


@dataclass(frozen=True)
class Options:
    """The plain numbers of a call. Groups are process groups' names."""

    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float | None
    distillation: float
    temperature: float
    chunk: int | None
    tokens_group: str | None
    vocabulary_group: str | None
    first_column: int  # of the vocabulary, in this shard
    vocabulary: int | None  # columns of all shards
    columns: int | None  # rows of the matrices that are in the vocabulary; the others round up its size


@dataclass(frozen=True)
class LossCall:
    """``matrices`` and ``biases`` hold each tensor once; ``matrix_of`` and ``bias_of_exit`` say whose it is.

    ``wanted``: whether a gradient is wanted of each hidden state, then matrix, then bias.
    """

    hiddens: Sequence[Tensor]  # (N, C) an exit, the last exit last
    matrices: Sequence[Tensor]  # (V, C), in the dtype of the products
    biases: Sequence[Tensor]  # (V,)
    matrix_of: Sequence[int]
    bias_of_exit: Sequence[int]  # -1: none
    exit_weights: Sequence[float]
    targets_N: Tensor
    means_N: Tensor  # float32, what each token counts in the means
    wanted: Sequence[bool]
    options: Options
    row_sums: Tensor  # (5, E, N) float32

    @property
    def exits(self) -> int:
        return len(self.hiddens)

    @property
    def tokens(self) -> int:
        return self.targets_N.numel()

    @property
    def width(self) -> int:
        """Rows of the matrices, those of the padding too: columns of the products."""
        return self.matrices[0].shape[0]

    @property
    def columns(self) -> int:
        """Logits of a row that take part."""
        return self.options.columns or self.width

    @property
    def vocabulary(self) -> int:
        return self.options.vocabulary or self.columns

    @property
    def dtype(self) -> torch.dtype:
        """Of the products and the logits."""
        return self.matrices[0].dtype

    @property
    def magnify(self) -> float:
        """What all gradients are multiplied by until the backward pass.

        float16 has too few exponents for a probability over a number of tokens: it keeps the sum over
        tokens, about, instead of the mean.
        """
        return magnification(self.dtype, self.tokens)

    @property
    def tiles(self) -> RowTiles:
        return row_tiles(self.columns)

    @property
    def processors(self) -> int:
        """Multiprocessors of the device; in the interpreter and without a device, the A100's 108."""
        return multiprocessors(self.targets_N.device)

    @property
    def distils(self) -> bool:
        return self.options.distillation != 0.0 and self.exits > 1

    def bias_of(self, exit_index: int) -> Tensor | None:
        b = self.bias_of_exit[exit_index]
        return None if b < 0 else self.biases[b]

    def wants_hidden(self, exit_index: int) -> bool:
        return self.wanted[exit_index]

    def wants_matrix(self, exit_index: int) -> bool:
        return self.wanted[self.exits + self.matrix_of[exit_index]]

    def wants_bias(self, exit_index: int) -> bool:
        b = self.bias_of_exit[exit_index]
        return b >= 0 and self.wanted[self.exits + len(self.matrices) + b]

    def needs_gradient(self, exit_index: int) -> bool:
        """Whether d loss / d logits of the exit is read by anyone."""
        wants = self.wants_hidden(exit_index) or self.wants_matrix(exit_index) or self.wants_bias(exit_index)
        return wants and self.exit_weights[exit_index] != 0.0

    def chunks(self) -> list[slice]:
        """Equal runs of tokens, but for the last."""
        rows = self.options.chunk or chunk_rows(
            self.tokens, padded(self.width) * self.dtype.itemsize * (1 + self.distils), self.exits
        )
        return [slice(first, min(first + rows, self.tokens)) for first in range(0, self.tokens, max(rows, 1))]


def magnification(dtype: torch.dtype, tokens: int) -> float:
    if dtype != torch.float16:
        return 1.0
    return 2.0 ** min(max(int(tokens), 1).bit_length() - 1, 12)


@dataclass(frozen=True)
class Chunk:
    """The memory of one chunk's rows; the gradient lies over the logits unless those teach other exits."""

    rows: slice
    logits: Tensor  # (n, padded V), this exit's
    gradient: Tensor  # likewise
    teacher: Tensor | None  # likewise, the last exit's logits
    lse: Tensor  # (n,) float32
    best: Tensor  # (n,) int32
    state: Tensor | None  # (7, n) float32, with shards of the vocabulary


@dataclass
class Workspace:
    """What the chunks of a call share: allocated once, for the largest."""

    call: LossCall
    rows: int
    buffers: list[Tensor] = field(init=False)
    lse: Tensor = field(init=False)
    best: Tensor = field(init=False)
    state: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        device: Any = self.call.targets_N.device
        width = padded(self.call.width)
        self.buffers = [
            torch.empty(self.rows, width, dtype=self.call.dtype, device=device)
            for _ in range(1 + self.call.distils)
        ]
        self.lse = torch.empty(self.rows, dtype=torch.float32, device=device)
        self.best = torch.empty(self.rows, dtype=torch.int32, device=device)
        self.state = None
        if self.call.options.vocabulary_group is not None:
            self.state = torch.empty(len(STATES), self.rows, dtype=torch.float32, device=device)

    def chunk(self, rows: slice, exit_index: int) -> Chunk:
        """An exit's view: the last exit's logits stay in the last buffer while they teach."""
        count = rows.stop - rows.start
        work, kept = self.buffers[0][:count], self.buffers[-1][:count]
        last = exit_index == self.call.exits - 1
        return Chunk(
            rows,
            logits=kept if last else work,
            gradient=work,
            teacher=kept if self.call.distils else None,
            lse=self.lse[:count],
            best=self.best[:count],
            state=None if self.state is None else self.state[:, :count],
        )
