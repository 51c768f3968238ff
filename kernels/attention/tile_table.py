"""The shipped tiles: data, chosen by measurement on an H100 and by compiling for the rest.

Two families of devices: ``80`` fits the 99 KB of shared memory that every device from sm_80 on gives a block
(A100 gives 163), ``90`` the 227 KB of Hopper and data-centre Blackwell. A row serves head dims up to its key,
padded to a power of two. `tests/kernels/test_tiles.py` compiles every row: it fits and does not spill, but
for float32 gradients of head dims over 128, whose smallest tiles still do. With grouped heads, dK and dV
spill up to eight registers.

Figures behind the choices stand in docs/lab_log.md. Entries are (block_m, block_n, num_warps, num_stages).
"""

from __future__ import annotations

Entry = tuple[int, int, int, int]
# kernel -> (family, element bytes) -> head dim up to -> entry
TABLE: dict[str, dict[tuple[int, int], dict[int, Entry]]] = {
    "forward": {
        (80, 2): {64: (128, 64, 8, 3), 128: (128, 64, 8, 2), 256: (64, 32, 8, 2)},
        (90, 2): {64: (128, 128, 8, 3), 128: (128, 128, 8, 2), 256: (128, 64, 8, 2)},
        (80, 4): {64: (64, 32, 8, 1), 128: (32, 32, 8, 1), 256: (32, 16, 8, 1)},
        (90, 4): {64: (64, 32, 8, 1), 128: (32, 32, 8, 1), 256: (32, 16, 8, 1)},
    },
    "key_gradient": {
        (80, 2): {64: (32, 128, 8, 2), 128: (32, 64, 8, 2), 256: (32, 32, 8, 2)},
        (90, 2): {64: (64, 128, 8, 2), 128: (32, 128, 8, 2), 256: (64, 32, 8, 2)},
        (80, 4): {64: (32, 32, 8, 1), 128: (16, 16, 8, 1), 256: (16, 16, 8, 1)},
        (90, 4): {64: (32, 32, 8, 1), 128: (16, 16, 8, 1), 256: (16, 16, 8, 1)},
    },
    "query_gradient": {
        (80, 2): {64: (64, 64, 4, 2), 128: (128, 32, 8, 2), 256: (64, 16, 8, 2)},
        (90, 2): {64: (128, 64, 8, 2), 128: (128, 64, 8, 2), 256: (128, 32, 8, 2)},
        (80, 4): {64: (32, 32, 8, 1), 128: (16, 16, 8, 1), 256: (16, 16, 8, 1)},
        (90, 4): {64: (32, 32, 8, 1), 128: (16, 16, 8, 1), 256: (16, 16, 8, 1)},
    },
}
