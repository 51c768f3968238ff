"""Which kernel walks the cache: the one for Hopper, or the portable one."""

from __future__ import annotations

from lit_eff.kernels.attention.paths import has_gluon
from lit_eff.kernels.attention.with_cache.call import CacheCall


def obstacle(call: CacheCall) -> str | None:
    """Why the Hopper kernel cannot take a call; None if it can."""
    if call.capability // 10 != 9:
        return f"the device is sm_{call.capability}, not sm_90"
    if not has_gluon():
        return "this Triton has no Gluon"
    from lit_eff.kernels.attention.hopper import DTYPES, HEAD_DIMS
    from lit_eff.kernels.attention.hopper.pipeline import obstacle_of

    q_BTHD, page_size = call.q_BTHD, call.k_cache.shape[1]
    if q_BTHD.dtype not in DTYPES:
        return f"{q_BTHD.dtype} rather than float16 or bfloat16"
    if q_BTHD.shape[3] not in HEAD_DIMS:
        return f"head dim {q_BTHD.shape[3]} rather than {' or '.join(map(str, HEAD_DIMS))}"
    if 0 in q_BTHD.shape or 0 in call.k_cache.shape:
        return "an empty tensor"
    step = call.tiles.block_n
    if call.page_table_BP is not None and page_size % step and (step % page_size or page_size % 8):
        return f"pages of {page_size} slots, not 8, 16, 32 or a multiple of {step}"
    tensors = {"k_cache": call.k_cache, "v_cache": call.v_cache}
    obstacles = (obstacle_of(name, tensor) for name, tensor in tensors.items())
    return next((obstacle for obstacle in obstacles if obstacle is not None), None)
