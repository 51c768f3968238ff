"""The decode step in plain PyTorch: the definition that the kernel is tested against.

Shapes: L layers, C model dim, H query heads, K kv heads, D head dim, M MLP inner width, N rows, B sequences,
S cache slots.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_eff.kernels.decode_step.arguments import Weights
from lit_eff.kernels.linear.reference import Norm, normalise


def turn(x_NHD: Tensor, cosines_NE: Tensor, sines_NE: Tensor) -> Tensor:
    """Rotate pairs (i, i + D / 2) by each row's angles (N, D / 2)."""
    first, second = x_NHD.to(cosines_NE.dtype).chunk(2, dim=2)
    cos, sin = cosines_NE[:, None], sines_NE[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=2).to(x_NHD.dtype)


def decode_step_reference(
    weights: Weights,
    token_N: Tensor,
    position_N: Tensor,
    sequence_N: Tensor,
    k_LBSKD: Tensor,
    v_LBSKD: Tensor,
    heads: int,
    epsilon: float,
    layers: tuple[int, int],
    hidden_NC: Tensor | None = None,
) -> Tensor:
    """Hidden states (N, C) after layers [first, last), in the dtype of the weights, which the cache shares.

    Keys and values of the rows are written to the cache; a row sees the slots up to its own of its sequence.
    """
    kv_heads, head_dim = k_LBSKD.shape[3:]
    x_NC = weights.embedding[token_N] if hidden_NC is None else hidden_NC
    cos_NE, sin_NE = weights.cosines[position_N], weights.sines[position_N]
    seen_NS = torch.arange(k_LBSKD.shape[2], device=x_NC.device) <= position_N[:, None]
    wide = torch.promote_types(x_NC.dtype, torch.float32)
    for layer in range(*layers):
        gain, mlp_gain = weights.gains[2 * layer], weights.gains[2 * layer + 1]
        qkv_NHD = F.linear(normalise(x_NC, Norm(gain, None, epsilon), wide), weights.qkv[layer])
        qkv_NHD = qkv_NHD.view(len(x_NC), -1, head_dim)
        q_NHD, k_NKD, v_NKD = torch.split(qkv_NHD, [heads, kv_heads, kv_heads], dim=1)
        q_NHD, k_NKD = turn(q_NHD, cos_NE, sin_NE), turn(k_NKD, cos_NE, sin_NE)
        k_LBSKD[layer, sequence_N, position_N] = k_NKD
        v_LBSKD[layer, sequence_N, position_N] = v_NKD
        # Slots that a row does not see may hold anything.
        v_NKSD = v_LBSKD[layer, sequence_N].masked_fill(~seen_NS[:, :, None, None], 0).transpose(1, 2)
        k_NKSD = k_LBSKD[layer, sequence_N].transpose(1, 2)
        out_NHD = F.scaled_dot_product_attention(
            q_NHD[:, :, None], k_NKSD, v_NKSD, attn_mask=seen_NS[:, None, None], enable_gqa=True
        )[:, :, 0]
        x_NC = x_NC + F.linear(out_NHD.flatten(1), weights.output[layer])
        gate_up = F.linear(normalise(x_NC, Norm(mlp_gain, None, epsilon), wide), weights.gate_up[layer])
        gate, up = gate_up.chunk(2, dim=1)
        x_NC = x_NC + F.linear(F.silu(gate) * up, weights.down[layer])
    return x_NC
