"""Which implementation a call takes: the Hopper kernels, the portable ones, or PyTorch's own off the GPU."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from lit_eff.errors import UserError, nearest

if TYPE_CHECKING:
    from lit_eff.kernels.attention.call import AttentionCall

PATHS = ("portable", "hopper")
FORCED = "LIT_EFF_ATTENTION"

_forced: str | None = None


@dataclass(frozen=True)
class Path:
    """``name``: hopper, portable, interpreter, sdpa or reference; ``reason``: a phrase for people."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@contextmanager
def use_path(name: str | None) -> Iterator[None]:
    """Force every attention call on a GPU onto one path, in all threads; None gives the choice back.

    The environment variable LIT_EFF_ATTENTION does the same for a whole process.

    Raises:
        UserError: for a name other than ``portable`` and ``hopper``.
    """
    global _forced
    before, _forced = _forced, _checked(name)
    try:
        yield
    finally:
        _forced = before


def _checked(name: str | None) -> str | None:
    if name is not None and name not in PATHS:
        raise UserError(f"unknown attention path {name!r} (argument or {FORCED}){nearest(name, PATHS)}")
    return name


def forced_path() -> str | None:
    """What :func:`use_path` or the environment asks for."""
    return _forced or _checked(os.environ.get(FORCED) or None)


def path_of(call: AttentionCall, *, backward: bool = False) -> Path:
    """The path of a call that the Triton kernels run: forward, or backward, which decides for itself.

    Raises:
        UserError: the Hopper path was forced and cannot take the call.
    """
    if not call.is_cuda:
        return Path("interpreter", "TRITON_INTERPRET=1: the portable kernels, run in Python")
    forced = forced_path()
    if forced == "portable":
        return Path("portable", "forced")
    obstacle = _hopper_obstacle(call, backward)
    if obstacle is None:
        return Path("hopper", "forced" if forced else "an sm_90 device and a call that its kernels cover")
    if forced == "hopper":
        raise UserError(f"the Hopper attention was forced but cannot run here: {obstacle}")
    return Path("portable", f"not hopper: {obstacle}")


def _hopper_obstacle(call: AttentionCall, backward: bool) -> str | None:
    """Why the Hopper kernels cannot take this call; imported only where they could."""
    if call.capability // 10 != 9:
        return f"the device is sm_{call.capability}, not sm_90"
    if not has_gluon():
        return "this Triton has no Gluon"
    from lit_eff.kernels.attention import hopper

    return hopper.supported(call) if backward else hopper.forward_supported(call)


@cache
def has_gluon() -> bool:
    """Whether this Triton has what the Hopper kernels are written in."""
    try:
        return importlib.util.find_spec("triton.experimental.gluon.language.nvidia.hopper") is not None
    except ModuleNotFoundError:  # not even the packages around it
        return False
