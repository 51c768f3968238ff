"""One attention call, reduced to what every kernel launch needs: tensors, mask rule and scalars.

Shapes: B batch, T query length, S key length, N packed queries, M packed keys, H query heads, K kv heads,
D head dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lit_eff.kernels.attention.arguments import Documents, Rows, Rule, Sizes, Statistic
from lit_eff.kernels.attention.documents import document_ranges
from lit_eff.kernels.attention.dropout import ROUNDS, keep_threshold
from lit_eff.kernels.attention.tiles import padded_head_dim
from lit_eff.kernels.device import capability_of
from lit_eff.profiling.launch import Launch

LOG2E = math.log2(math.e)
TILE_ROWS = 128  # no tile is taller or wider


def addressable(tensor: Tensor) -> Tensor:
    """``tensor``, or a contiguous copy if offsets within one tile would not fit the kernels' 32 bits."""
    reach = TILE_ROWS * tensor.stride(1) + padded_head_dim(tensor.shape[3]) * tensor.stride(3)
    return tensor if reach < 2**31 else tensor.contiguous()


@dataclass(frozen=True)
class AttentionCall:
    """Checked arguments of one call. ``starts_B`` implies ``causal``.

    Packed sequences (``cu_seqlens_q`` is there) lie in one row: q is (1, N, H, D), k and v (1, M, K, D).
    """

    q_BTHD: Tensor
    k_BSKD: Tensor
    v_BSKD: Tensor
    documents_BT: Tensor | None
    key_documents_BS: Tensor | None
    starts_B: Tensor | None
    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    target: int | None = None  # choose tiles for this capability rather than for the tensors' device
    sinks_H: Tensor | None = None  # float32
    alibi_H: Tensor | None = None  # float32
    dropout_p: float = 0.0
    seed: Tensor | None = None  # one int64, on the tensors' device; there when dropout_p > 0
    cu_seqlens_q: Tensor | None = None  # int32 or int64, (B + 1,), contiguous
    cu_seqlens_k: Tensor | None = None
    max_seqlen_q: int = 0  # of packed sequences
    max_seqlen_k: int = 0

    @property
    def capability(self) -> int:
        """10 * major + minor of the CUDA device; 80 in the interpreter, which has no device."""
        if self.target is not None:
            return self.target
        return capability_of(self.q_BTHD.device)

    @property
    def is_cuda(self) -> bool:
        return self.q_BTHD.is_cuda

    @property
    def batch(self) -> int:
        return self.q_BTHD.shape[0] if self.cu_seqlens_q is None else self.cu_seqlens_q.shape[0] - 1

    @property
    def queries(self) -> int:
        """Queries of a batch row, or of the longest packed sequence."""
        return self.q_BTHD.shape[1] if self.cu_seqlens_q is None else self.max_seqlen_q

    @property
    def keys(self) -> int:
        return self.k_BSKD.shape[1] if self.cu_seqlens_k is None else self.max_seqlen_k

    @property
    def heads(self) -> int:
        return self.q_BTHD.shape[2]

    @property
    def head_dim(self) -> int:
        return self.q_BTHD.shape[3]

    def rows(self, tensor: Tensor) -> Rows:
        """A four-dimensional tensor; packed sequences differ in their first rows instead of a stride."""
        stride_b, stride_row, stride_h, stride_d = tensor.stride()
        return Rows(tensor, stride_b if self.cu_seqlens_q is None else 0, stride_row, stride_h, stride_d)

    def statistic(self, tensor_BHT: Tensor) -> Statistic:
        stride_b, stride_h, _ = tensor_BHT.stride()
        return Statistic(tensor_BHT, stride_b if self.cu_seqlens_q is None else 0, stride_h)

    def sizes(self) -> Sizes:
        group = self.heads // max(1, self.k_BSKD.shape[2])
        return Sizes(self.queries, self.keys, group, self.starts_B, self.cu_seqlens_q, self.cu_seqlens_k)

    def rule(self) -> Rule:
        return Rule(
            score_scale=self.scale / self.softcap if self.softcap is not None else self.scale * LOG2E,
            cap=self.softcap * LOG2E if self.softcap is not None else None,
            inverse_cap=1 / (self.softcap * LOG2E) if self.softcap is not None else None,
            window=self.window,
            slopes=self.alibi_H,
            seed=self.seed if self.dropout_p > 0 else None,
            drop_below=keep_threshold(self.dropout_p) if self.dropout_p > 0 else None,
            keep_scale=1 / (1 - self.dropout_p) if self.dropout_p > 0 else None,
        )

    def documents(self, block_m: int) -> tuple[list[Launch], Documents | None]:
        """The documents for a kernel whose programs own ``block_m`` queries, and what must run before it."""
        return self._documents(self.documents_BT, self.key_documents_BS, block_m)

    def key_documents(self, block_n: int) -> tuple[list[Launch], Documents | None]:
        """The documents for a kernel whose programs own ``block_n`` keys, and what must run before it."""
        return self._documents(self.key_documents_BS, self.documents_BT, block_n)

    def _documents(
        self, own: Tensor | None, other: Tensor | None, block: int
    ) -> tuple[list[Launch], Documents | None]:
        queries, keys = self.documents_BT, self.key_documents_BS
        if own is None or other is None or queries is None or keys is None:
            return [], None
        launch, ranges = document_ranges(own, other, block)
        (query_b, query_t), (key_b, key_s) = queries.stride(), keys.stride()
        return [launch], Documents(queries, query_b, query_t, keys, key_b, key_s, ranges)

    def arguments(self, documents: Documents | None) -> dict[str, Any]:
        """The arguments that the forward and both gradient kernels share."""
        return {
            "q": self.rows(self.q_BTHD),
            "k": self.rows(self.k_BSKD),
            "v": self.rows(self.v_BSKD),
            "sizes": self.sizes(),
            "rule": self.rule(),
            "documents": documents,
            "HEAD_DIM": self.head_dim,
            "BLOCK_D": padded_head_dim(self.head_dim),
            "CAUSAL": self.causal,
            "ROUNDS": ROUNDS,
        }
