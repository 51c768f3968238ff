"""One plain ``.ckpt`` from a sharded checkpoint folder, in one process, without a model.

``python -m lit_eff.parallel.consolidate FOLDER [OUTPUT]``
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from lit_eff.errors import UserError
from lit_eff.parallel.durable import publish, scratch_folder
from lit_eff.parallel.strategy import METADATA, SHARDED


def consolidate(folder: str | Path, output: str | Path | None = None) -> Path:
    """Write the checkpoint that one process would have written: weights, average, optimizer, all the rest.

    Everything is loaded into this process's memory at once.

    Args:
        folder: what :class:`~lit_eff.parallel.strategy.ShardedStrategy` saved.
        output: the file to write; by default ``NAME.plain.ckpt`` beside ``NAME.ckpt``.

    Raises:
        UserError: ``folder`` is not a sharded checkpoint, or ``output`` is a folder.
    """
    folder = Path(folder)
    output = folder.with_name(f"{folder.stem}.plain.ckpt") if output is None else Path(output)
    if not (folder / METADATA).is_file() or not (folder / ".metadata").is_file():
        raise UserError(
            f"{folder} is not a sharded checkpoint: expected a folder with {METADATA} and .metadata"
        )
    if output.is_dir():
        raise UserError(f"{output} is a folder; name a file to write")
    checkpoint: dict[str, Any] = torch.load(folder / METADATA, map_location="cpu", weights_only=True)
    sharded: dict[str, Any] = {}
    _load_state_dict(
        sharded,
        storage_reader=FileSystemReader(folder),
        planner=_EmptyStateDictLoadPlanner(),  # type: ignore[no-untyped-call]
        no_dist=True,
    )
    checkpoint.update({key: sharded[key] for key in SHARDED if key in sharded})
    optimizers = sorted(key for key in sharded if key.startswith("optimizer_"))
    checkpoint["optimizer_states"] = [_by_index(sharded[key]) for key in optimizers]
    scratch = scratch_folder(output)
    try:
        torch.save(checkpoint, scratch / output.name)
        publish(scratch / output.name, output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return output


def main(argv: list[str]) -> int:
    """``python -m lit_eff.parallel.consolidate FOLDER [OUTPUT]``; 2 with one line for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m lit_eff.parallel.consolidate",
        description="Write one plain .ckpt from a sharded checkpoint folder.",
    )
    parser.add_argument("folder", help="the sharded checkpoint")
    parser.add_argument("output", nargs="?", help="the file to write; default: NAME.plain.ckpt beside it")
    options = parser.parse_args(argv)
    try:
        print(consolidate(options.folder, options.output))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _by_index(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with parameters numbered, as one process's optimizer saves it.

    Sharded checkpoints name parameters instead. Numbers follow the order of the groups.
    """
    groups: list[dict[str, Any]] = []
    number: dict[str, int] = {}
    for group in state["param_groups"]:
        for name in group["params"]:
            number.setdefault(name, len(number))
        groups.append({**group, "params": [number[name] for name in group["params"]]})
    return {"state": {number[name]: value for name, value in state["state"].items()}, "param_groups": groups}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
