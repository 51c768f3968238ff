"""What programs of one launch need of one another: waiting for all, and clocks to see how long they do.

Prefixes: p_ pointer.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def wait_for_all(p_arrived, target):
    """Arrive, then wait until ``target`` arrivals have been counted in all (modulo 2^32).

    Whatever any program stored before is visible after, to loads that bypass the L1 cache (``.cg``). One
    thread arrives and polls. Its release and acquire reach the other threads' accesses through the block's
    own barriers on either side (PTX memory model: causality order is transitive). All programs must be
    resident: a cooperative launch.
    """
    tl.debug_barrier()
    tl.inline_asm_elementwise(
        """
        {
        .reg .pred others, early;
        .reg .u32 thread, seen;
        mov.u32 thread, %tid.x;
        setp.ne.u32 others, thread, 0;
        @others bra done;
        red.release.gpu.global.add.u32 [$1], 1;
        again:
        ld.acquire.gpu.global.u32 seen, [$1];
        sub.u32 seen, seen, $2;
        setp.lt.s32 early, seen, 0;
        @early bra again;
        done:
        mov.u32 $0, 0;
        }
        """,
        "=r,l,r",
        [p_arrived.to(tl.int64), target],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
    tl.debug_barrier()


@triton.jit
def stamp(p_trace, i, programs, event):
    """Note the multiprocessor's clock for an event of this program: (events, P) int64."""
    if p_trace is not None:
        clock = tl.inline_asm_elementwise(
            "mov.u64 $0, %clock64;", "=l", [], dtype=tl.int64, is_pure=False, pack=1
        )
        tl.store(p_trace + event * programs + i, clock)


@triton.jit
def next_phase(work, p_trace, i, programs, target, event):
    """Wait for all; returns the arrivals and the event counted so far. Two events: before and after."""
    stamp(p_trace, i, programs, event)
    wait_for_all(work.barrier, target + programs)
    stamp(p_trace, i, programs, event + 1)
    return target + programs, event + 2
