"""Decoding rounds as spans: what each drafted, kept, computed, and where it left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lit_eff.profiling.timeline import Span, Value


class DecodedRound(Protocol):
    """What is needed of :class:`lit_eff.runtime.decode.Round`."""

    @property
    def tokens(self) -> tuple[int, ...]: ...

    @property
    def drafted(self) -> tuple[int, ...]: ...

    @property
    def accepted(self) -> int: ...

    @property
    def exit_index(self) -> int | None: ...

    @property
    def layer_launches(self) -> int: ...

    @property
    def layer_tokens(self) -> int: ...

    @property
    def seconds(self) -> float: ...


def round_span(
    one: DecodedRound, mode: str, exit_layers: Sequence[int], track: str, end: float, **details: Value
) -> Span:
    """A round that ended at ``end`` seconds, named by its outcome, with ``details`` of the caller's.

    ``layers`` counts layers called, ``layer_tokens`` the tokens in them.
    """
    shown: dict[str, Value] = {
        "mode": mode,
        "tokens": len(one.tokens),
        "layers": one.layer_launches,
        "layer_tokens": one.layer_tokens,
        **details,
    }
    name = "full model"
    if one.exit_index is None:
        shown |= {"drafted": len(one.drafted), "accepted": one.accepted}
        name = f"accepted {one.accepted} of {len(one.drafted)}"
    else:
        shown["exit_layer"] = exit_layers[one.exit_index]
        if one.exit_index < len(exit_layers) - 1:
            name = f"left at layer {exit_layers[one.exit_index]}"
    return Span(name, track, end - one.seconds, one.seconds, shown)
