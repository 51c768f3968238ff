"""Every shipped kernel by operation, its launches beside their I/O models: counted, compiled and measured.

An operation's cases are frozen dataclasses of plain values, so a case travels to another process as JSON.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

from lit_eff.errors import UserError, nearest
from lit_eff.profiling.modelled import ModelledLaunch

# Folder by operation; each has a module ``specimens`` whose ``OPERATIONS`` are imported only when asked for.
FOLDERS = {
    "swiglu": "swiglu",
    "attention": "attention",
    "attention_packed": "attention",
    "standard_attention": "attention.standard",
    "norm": "norm",
    "linear": "linear",
    "attention_with_cache": "attention.with_cache",
    "rope": "rope",
    "propagate": "propagate",
    "confidence": "confidence",
    "cross_entropy": "cross_entropy",
}


@dataclass(frozen=True)
class Operation:
    """One operation: its cases, and the launches of a case.

    Args:
        case: the class of its cases.
        small: a dozen cases that the interpreter takes seconds for, ragged and with every feature.
        typical: a size of real use on a GPU.
        draw: any small case.
        launches: ``(case, device, capability)`` to launches on new tensors, in order. ``device`` is ``cpu``
            (for the interpreter), ``meta`` (to compile) or ``cuda``; ``capability`` (10 * major + minor)
            chooses tiles. Contents are drawn with a fixed seed.
        gluon: written in Gluon, for which there is no interpreter: modelled, compiled and measured only.
    """

    name: str
    case: type[Any]
    small: tuple[Any, ...]
    typical: Any
    draw: Callable[[Random], Any]
    launches: Callable[[Any, torch.device, int], list[ModelledLaunch]]
    gluon: bool = False


def get_operation(name: str) -> Operation:
    """Look up an operation.

    Raises:
        UserError: for a name that is none, naming the nearest.
    """
    if name not in FOLDERS:
        raise UserError(f"no kernel operation {name!r}{nearest(name, FOLDERS)}")
    module = importlib.import_module(f"lit_eff.kernels.{FOLDERS[name]}.specimens")
    operations: tuple[Operation, ...] = module.OPERATIONS
    return next(each for each in operations if each.name == name)
