"""Random numbers that depend on nothing but what they are for: seed, position, purpose and slot.

Philox4x32 with 10 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a keyed
function from a counter to four 32-bit words, so a number can be had anywhere without a state to carry. The
same row draws the same whatever is decoded beside it, and the GPU draws what NumPy draws, bit for bit.

The layout, for every form of it: the key is the seed (64 bits); the counter is the position (64 bits), the
purpose and the slot (32 bits each); the number is the first two words, the first of them the low half.

A position's numbers are each looked at once: a draft that is never tested never touches what is emitted, so
drawing it again in a later round with the same number is as good as with a fresh one.
"""

from __future__ import annotations

from enum import IntEnum

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


class Purpose(IntEnum):
    """What a number decides; the slot counts draws of one purpose.

    The position is that of a token in its sequence, and for ``SHADOW`` the number of a request.
    """

    TARGET = 0  # the token the target model chooses, alone or after the last draft that was kept
    DRAFT = 1  # drafted tokens; the slot is the place among siblings
    ACCEPT = 2  # whether a drafted token is kept; the slot is the place among siblings
    SHADOW = 3  # whether a served request is run in full as well


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Four 32-bit words from a key of two and a counter of four."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(ROUNDS):
        product0, product2 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = product2 >> 32 ^ c1 ^ k0, product2 & WORD, product0 >> 32 ^ c3 ^ k1, product0 & WORD
        k0, k1 = k0 + KEY_STEPS[0] & WORD, k1 + KEY_STEPS[1] & WORD
    return c0, c1, c2, c3


def random_word(seed: int, position: int, purpose: Purpose, slot: int = 0) -> int:
    """A uniform integer in [0, 2^64).

    Args:
        seed: of the sequence, at least 0 and below 2^63.
        position: of the token being chosen, counted from the start of the sequence.
        slot: which of several numbers for one position and purpose.
    """
    key, counter = (seed & WORD, seed >> 32), (position & WORD, position >> 32, int(purpose), slot)
    low, high, *_ = philox(key, counter)
    return high << 32 | low
