"""How large the Hopper forward kernel's tiles are and in which order heads come: what was fastest on an H100.

`docs/lab_log.md` has the figures.
"""

from __future__ import annotations

from typing import NamedTuple

from lit_eff.kernels.attention.call import AttentionCall


class ForwardShape(NamedTuple):
    """``consumers`` warpgroups of 64 queries each, ``block_n`` keys a step, ``slots`` tiles a ring.

    With ``ping_pong`` consumers take turns at the tensor cores: one's softmax meets another's products.
    """

    consumers: int
    block_n: int
    slots: int
    ping_pong: bool


# Of the 65,536 registers of a multiprocessor: what a launch gives each thread, and what consumers and the
# producer's warpgroup make of it (setmaxnreg).
REGISTERS = {2: (168, 240, 24), 3: (128, 160, 32)}
L2_BYTES = 24 << 20  # half of the H100's: what the keys and values in use at one time should fit in


def forward_shape(call: AttentionCall) -> ForwardShape:
    """The fastest shape measured on an H100 at 1k, 4k and 16k tokens."""
    if call.head_dim == 128:
        return ForwardShape(2, 128, 2, ping_pong=True)
    options = (call.window, call.softcap, call.sinks_H, call.starts_B)
    if call.causal and call.keys <= 8192 and all(option is None for option in options):
        # Tiles of 192 queries cross the diagonal too often.
        return ForwardShape(2, 128, 4, ping_pong=False)
    return ForwardShape(3, 128, 3, ping_pong=True)


def heads_together(call: AttentionCall, programs: int) -> int:
    """How many heads' tiles are taken in turns.

    Without a mask all tiles are equal work: as few heads as possible, whose keys fit in L2. Under a causal
    mask more, to deal the long and the short tiles out evenly: four programs a head.
    """
    if call.causal:
        return max(1, programs // 4)
    group = call.heads // call.k_BSKD.shape[2]
    head_bytes = 2 * call.keys * call.head_dim * call.k_BSKD.element_size()
    return max(1, L2_BYTES // head_bytes) * group
