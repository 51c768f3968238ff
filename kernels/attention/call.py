"""One attention call, reduced to what every kernel launch needs: tensors, mask rule and scalars.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_eff.kernels.attention.tiles import padded_head_dim

LOG2E = math.log2(math.e)
TILE_ROWS = 128  # no tile is taller or wider


def addressable(tensor: Tensor) -> Tensor:
    """``tensor``, or a contiguous copy if offsets within one tile would not fit the kernels' 32 bits."""
    reach = TILE_ROWS * (tensor.stride(1) + tensor.stride(3))
    return tensor if reach < 2**31 else tensor.contiguous()


@dataclass(frozen=True)
class AttentionCall:
    """Checked arguments of one call. ``starts_B`` implies ``causal``; a window needs it."""

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
    cu_seqlens_q: Tensor | None = None  # int32 or int64; with these, q is (1, N, H, D) and k, v (1, M, K, D)
    cu_seqlens_k: Tensor | None = None
    max_seqlen_q: int = 0  # of packed sequences
    max_seqlen_k: int = 0

    @property
    def capability(self) -> int:
        """10 * major + minor of the CUDA device; 80 in the interpreter, which has no device."""
        if self.target is not None:
            return self.target
        if not self.q_BTHD.is_cuda:
            return 80
        major, minor = torch.cuda.get_device_capability(self.q_BTHD.device)
        return 10 * major + minor

    @staticmethod
    def strides(letter: str, tensor: Tensor) -> dict[str, int]:
        """Element strides of a four-dimensional tensor under the kernels' argument names."""
        rows = "s" if letter in "kv" else "t"
        names = (f"stride_{letter}{axis}" for axis in f"b{rows}hd")
        return dict(zip(names, tensor.stride(), strict=True))

    def arguments(self) -> dict[str, Any]:
        """The arguments that the forward and both gradient kernels share."""
        documents, key_documents = self.documents_BT, self.key_documents_BS
        # With a softcap the kernels compute cap * tanh(score_scale * qk), the cap carrying log2(e).
        return {
            "p_q": self.q_BTHD,
            "p_k": self.k_BSKD,
            "p_v": self.v_BSKD,
            "p_documents": documents,
            "p_key_documents": key_documents,
            "p_starts": self.starts_B,
            **self.strides("q", self.q_BTHD),
            **self.strides("k", self.k_BSKD),
            **self.strides("v", self.v_BSKD),
            "stride_db": documents.stride(0) if documents is not None else 0,
            "stride_dt": documents.stride(1) if documents is not None else 0,
            "stride_eb": key_documents.stride(0) if key_documents is not None else 0,
            "stride_es": key_documents.stride(1) if key_documents is not None else 0,
            "queries": self.q_BTHD.shape[1],
            "keys": self.k_BSKD.shape[1],
            "group": self.q_BTHD.shape[2] // self.k_BSKD.shape[2],
            "window": self.window or 0,
            "score_scale": self.scale / self.softcap if self.softcap is not None else self.scale * LOG2E,
            "cap": self.softcap * LOG2E if self.softcap is not None else 0.0,
            "HEAD_DIM": self.q_BTHD.shape[3],
            "BLOCK_D": padded_head_dim(self.q_BTHD.shape[3]),
            "CAUSAL": self.causal,
            "WINDOWED": self.window is not None,
            "SOFTCAP": self.softcap is not None,
            "DOCUMENTS": documents is not None,
            "STARTS": self.starts_B is not None,
        }
