"""The decode step in plain PyTorch with a static cache, compiled, in a CUDA graph: gpt-fast's manner.

As in gpt-fast (PyTorch blog, November 2023) the cache has a fixed length that attention always spans, masked,
and torch.compile fuses what it can; for one row it also tunes its reductions, by which products of one row
are computed. A layer is compiled once, for all layers, with the residual sum of the layer before inside, so
that it is fused as it would be in one graph of all of them.

Shapes: L layers, B sequences, T tokens of each, S cache slots, C model dim, H query heads, K kv heads, D head
dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_eff.kernels.decode_step import Shape, Weights


def start(
    embedding_VC: Tensor, cosines: Tensor, sines: Tensor, token_BT: Tensor, position_T: Tensor, slots: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states before the first layer, angles (T, 1, D / 2), and what each token sees, (T, S)."""
    seen_TS = torch.arange(slots, device=position_T.device) <= position_T[:, None]
    return embedding_VC[token_BT], cosines[position_T][:, None], sines[position_T][:, None], seen_TS


def turn(x_BTHD: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = x_BTHD.float().chunk(2, dim=-1)
    turned = torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
    return turned.to(x_BTHD.dtype)


def layer(
    shape: Shape,
    x_BTC: Tensor,
    added_BTC: Tensor,
    gain: Tensor,
    mlp_gain: Tensor,
    qkv: Tensor,
    output: Tensor,
    gate_up: Tensor,
    down: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    cosines: Tensor,
    sines: Tensor,
    position_T: Tensor,
    seen_TS: Tensor,
) -> tuple[Tensor, Tensor]:
    """The residual stream in the middle of the layer, and what its MLP adds to it."""
    batch, length, channels = x_BTC.shape
    heads, kv_heads, head_dim = shape.heads, shape.kv_heads, shape.head_dim
    x_BTC = x_BTC + added_BTC
    normed_BTC = F.rms_norm(x_BTC, (channels,), gain, shape.epsilon)
    qkv_BTHD = F.linear(normed_BTC, qkv).view(batch, length, -1, head_dim)
    q_BTHD, k_BTKD, v_BTKD = torch.split(qkv_BTHD, [heads, kv_heads, kv_heads], dim=2)
    q_BTHD, k_BTKD = turn(q_BTHD, cosines, sines), turn(k_BTKD, cosines, sines)
    k_BKSD[:, :, position_T] = k_BTKD.transpose(1, 2)
    v_BKSD[:, :, position_T] = v_BTKD.transpose(1, 2)
    q_BKTGD = q_BTHD.view(batch, length, kv_heads, -1, head_dim).transpose(1, 2)
    scores = q_BKTGD.flatten(2, 3) @ k_BKSD.transpose(2, 3) * head_dim**-0.5
    scores_BKTGS = scores.float().unflatten(2, (length, -1))
    scores_BKTGS = scores_BKTGS.masked_fill(~seen_TS[:, None], float("-inf"))
    weights = scores_BKTGS.softmax(dim=-1).to(v_BKSD.dtype).flatten(2, 3)
    out_BKTGD = (weights @ v_BKSD).unflatten(2, (length, -1))
    x_BTC = x_BTC + F.linear(out_BKTGD.transpose(1, 2).reshape(batch, length, -1), output)
    normed_BTC = F.rms_norm(x_BTC, (channels,), mlp_gain, shape.epsilon)
    gate, up = F.linear(normed_BTC, gate_up).chunk(2, dim=-1)
    return x_BTC, F.linear(F.silu(gate) * up, down)


def finish(
    shape: Shape,
    x_BTC: Tensor,
    added_BTC: Tensor,
    gain: Tensor,
    output_VC: Tensor,
    token_BT: Tensor,
    position_T: Tensor,
    advance: int,
) -> Tensor:
    """Hidden states after the last layer; each one's most likely token, and where it goes."""
    x_BTC = x_BTC + added_BTC
    normed_BTC = F.rms_norm(x_BTC, x_BTC.shape[-1:], gain, shape.epsilon)
    token_BT.copy_(F.linear(normed_BTC, output_VC).argmax(dim=-1))
    position_T.add_(advance)
    return x_BTC


class PlainStep:
    """A step on its own static cache (L, B, K, S, D), a copy of what ``k_LBSKD`` and ``v_LBSKD`` hold.

    ``position_T`` are those of all sequences alike.
    """

    def __init__(
        self,
        shape: Shape,
        weights: Weights,
        output_VC: Tensor,
        k_LBSKD: Tensor,
        v_LBSKD: Tensor,
        tokens: int,
        *,
        advance: int,
        compiled: bool,
    ) -> None:
        self.shape, self.weights, self.output_VC, self.advance = shape, weights, output_VC, advance
        self.k_LBKSD, self.v_LBKSD = (x.transpose(2, 3).contiguous() for x in (k_LBSKD, v_LBSKD))
        sequences, self.slots = k_LBSKD.shape[1:3]
        device = output_VC.device
        self.token_BT = torch.zeros(sequences, tokens, dtype=torch.int64, device=device)
        self.position_T = torch.zeros(tokens, dtype=torch.int64, device=device)
        self.hidden_BTC = output_VC.new_zeros(sequences, tokens, shape.channels)
        self._none_BTC = torch.zeros_like(self.hidden_BTC)

        def made(function: Callable[..., Any]) -> Callable[..., Any]:
            tunes: dict[str, Any] | None = (
                {"coordinate_descent_tuning": True} if sequences * tokens == 1 else None
            )
            if not compiled:
                return function
            return torch.compile(function, fullgraph=True, dynamic=False, options=tunes)

        self._start, self._layer, self._finish = made(start), made(layer), made(finish)

    def run(self) -> None:
        shape, weights = self.shape, self.weights
        x_BTC, cosines, sines, seen_TS = self._start(
            weights.embedding, weights.cosines, weights.sines, self.token_BT, self.position_T, self.slots
        )
        added_BTC = self._none_BTC
        for index in range(shape.layers):
            x_BTC, added_BTC = self._layer(
                shape, x_BTC, added_BTC, weights.gains[2 * index], weights.gains[2 * index + 1],
                weights.qkv[index], weights.output[index], weights.gate_up[index], weights.down[index],
                self.k_LBKSD[index], self.v_LBKSD[index], cosines, sines, self.position_T, seen_TS,
            )  # fmt: skip
        self.hidden_BTC = self._finish(
            shape, x_BTC, added_BTC, weights.gains[-1], self.output_VC, self.token_BT, self.position_T,
            self.advance,
        )  # fmt: skip
