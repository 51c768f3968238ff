"""Which attention weights dropout keeps: counter-based random numbers, the same on every device and layout.

The decision for one weight depends on the seed and on the weight's own indices alone, so the backward pass,
another tiling, another batch neighbour or a packed layout sees the same mask. The numbers are Philox4x32 with
7 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; the fewest that pass BigCrush).

One call yields four 32-bit words, for the four weights whose query and key indices differ in bit 3 only. In
the register layouts of NVIDIA's matrix instructions these four lie in one thread, whether the tile holds
queries by keys or keys by queries: the kernels write the formula a weight and the compiler computes each
Philox once for four.

Shapes: B batch, T query length, S key length, H query heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 7
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


def keep_threshold(dropout_p: float) -> int:
    """A weight is kept when the upper 31 bits of its word reach this."""
    return min(round(dropout_p * 2**31), 2**31 - 1)


def philox(seed: Tensor, counters: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The four words, int64 in [0, 2^32), for an int64 ``seed`` and counters of the same kind."""
    c0, c1, c2, c3 = counters
    k0, k1 = seed & WORD, seed >> 32 & WORD
    for _ in range(ROUNDS):
        (high0, low0), (high2, low2) = _multiply(c0, MULTIPLIERS[0]), _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + KEY_STEPS[0] & WORD, k1 + KEY_STEPS[1] & WORD
    return c0, c1, c2, c3


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Upper and lower 32 bits of a product of two 32-bit numbers, without leaving int64."""
    low = (a & 0xFFFF) * b
    high = (a >> 16) * b + (low >> 16)
    return high >> 16, (high << 16 | low & 0xFFFF) & WORD


def _without_bit_3(index: Tensor) -> Tensor:
    return index >> 4 << 3 | index & 7


def kept_weights(
    dropout_p: float,
    seed: int | Tensor,
    shape: tuple[int, int, int, int],
    *,
    first_row: int = 0,
    device: torch.device | None = None,
) -> Tensor:
    """Which weights of (B, H, T, S) stay; each is dropped with probability ``dropout_p``.

    Args:
        seed: 64 bits; a tensor holds one int64.
        first_row: index of the first batch row (packed sequences are drawn one at a time).

    Returns:
        bool, (B, H, T, S).
    """
    if isinstance(seed, int):
        seed = torch.tensor(seed, dtype=torch.int64, device=device)
    seed = seed.to(device=device, dtype=torch.int64).reshape(())
    batch, heads, queries, keys = (torch.arange(size, device=device) for size in shape)
    batch = batch + first_row
    counters = (
        _without_bit_3(queries)[:, None],
        _without_bit_3(keys)[None, :],
        heads[:, None, None],
        batch[:, None, None, None],
    )
    words = philox(seed, counters)
    query_bit, key_bit = (queries >> 3 & 1)[:, None] == 1, (keys >> 3 & 1)[None, :] == 1
    upper, lower = torch.where(key_bit, words[3], words[2]), torch.where(key_bit, words[1], words[0])
    return (torch.where(query_bit, upper, lower) >> 1) >= keep_threshold(dropout_p)
