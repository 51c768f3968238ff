"""How large the Hopper forward kernel's tiles are and in which order heads come: what was fastest on an H100.

`docs/lab_log.md` has the figures.
"""

from __future__ import annotations

from typing import NamedTuple

from lit_eff.kernels.attention.call import AttentionCall


class ForwardShape(NamedTuple):
    """``consumers`` warpgroups of 64 queries each, ``block_n`` keys a step, ``slots`` tiles a ring."""

    consumers: int
    block_n: int
    slots: int


# Of the 65,536 registers of a multiprocessor: what a launch gives each thread, and what consumers and the
# producer's warpgroup make of it (setmaxnreg).
REGISTERS = {2: (168, 240, 24), 3: (128, 160, 32)}


def forward_shape(call: AttentionCall) -> ForwardShape:
    """The fastest shape measured on an H100 at 1k, 4k and 16k tokens."""
    if call.head_dim == 128:
        return ForwardShape(2, 128, 2)
    options = (call.window, call.softcap, call.sinks_H, call.starts_B)
    if call.causal and call.keys <= 4096 and all(option is None for option in options):
        # Tiles of 192 queries cross the diagonal too often.
        return ForwardShape(2, 128, 4)
    return ForwardShape(3, 128, 3)


def heads_together(call: AttentionCall, programs: int) -> int:
    """How many heads' tiles are taken in turns.

    Without a mask all tiles are equal work, and a kv head's are taken together: its keys are read from memory
    once, and head by head, at an even rate. Under a causal mask many heads', to deal the long and the short
    tiles out evenly: four programs a head.
    """
    return max(1, programs // 4) if call.causal else call.heads // call.k_BSKD.shape[2]
