"""Lightning's FSDP2 strategy with checkpoints that are whole or absent, weight averages included."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from lit_eff.errors import UserError
from lit_eff.parallel.durable import publish, scratch_folder, write_failure

METADATA = "meta.pt"  # Lightning's name for what is not sharded
SHARDED = ("state_dict", "ema_state_dict")  # and optimizer_0, optimizer_1, ...


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes; ``LightningModule.configure_model`` shards (:func:`~.fsdp.shard_model`).

    A checkpoint is a folder: each rank writes its slices, rank 0 the rest. It appears under its name when
    every rank has written and synced; a failure on any rank leaves the previous one.
    :func:`~lit_eff.parallel.consolidate.consolidate` turns it into a plain ``.ckpt``.

    Args:
        process_group_backend: ``nccl``, ``gloo`` or ``None`` to go by the device.
        timeout_seconds: how long a rank waits for the others.
    """

    def __init__(self, process_group_backend: str | None = None, timeout_seconds: int = 1800) -> None:
        super().__init__(
            tensor_parallel_size=1,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=timeout_seconds),
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write the folder ``filepath``. All ranks call this.

        Raises:
            UserError: on every rank, when one of them cannot write.
        """
        if storage_options is not None:
            raise TypeError(f"{type(self).__name__} takes no storage_options")
        path = Path(self.broadcast(filepath))
        failure: BaseException | None = None
        scratch: Path | None = None
        try:
            if self.global_rank == 0:
                scratch = scratch_folder(path)
        except OSError as error:
            failure = error
        self._agree(failure, path)
        folder = self.broadcast(scratch or path) / path.name  # rank 0's
        try:
            sharded = {key: checkpoint.pop(key) for key in SHARDED if key in checkpoint}
            for index, state in enumerate(checkpoint.pop("optimizer_states", [])):
                sharded[f"optimizer_{index}"] = state
            try:
                save(sharded, checkpoint_id=folder)
                if self.global_rank == 0:
                    with (folder / METADATA).open("wb") as file:
                        torch.save(checkpoint, file)
            except (OSError, RuntimeError, CheckpointException) as error:
                failure = error
            self._agree(failure, path)
            try:
                if self.global_rank == 0:
                    publish(folder, path)
            except OSError as error:
                failure = error
            self._agree(failure, path)
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)

    def _agree(self, failure: BaseException | None, path: Path) -> None:
        """Raise on every rank if any failed, so that none waits for another."""
        if not self.reduce_boolean_decision(failure is not None, all=False):
            return
        if failure is None:
            raise UserError(
                f"cannot write checkpoint {path}: another process failed; earlier ones are intact"
            )
        if isinstance(failure, CheckpointException):  # holds each failed rank's error
            failure = next(iter(failure.failures.values()))[0]
        raise write_failure(path, failure) or failure

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a sharded folder (of any number of ranks) or a plain ``.ckpt`` into the sharded model."""
        path = Path(self.broadcast(checkpoint_path))
        assert self.model is not None
        if path.is_file():
            return self._load_plain(path, weights_only)
        checkpoint: dict[str, Any] = super().load_checkpoint(path, weights_only=weights_only)
        if _holds(path, "ema_state_dict"):
            average = _like(get_model_state_dict(self.model))
            load({"ema_state_dict": average}, checkpoint_id=path)
            checkpoint["ema_state_dict"] = average
        return checkpoint

    def _load_plain(self, path: Path, weights_only: bool | None) -> dict[str, Any]:
        # Lightning's own way numbers the optimizer's parameters in the model's order, not in that of the
        # groups, and so mixes up their states.
        assert self.model is not None
        assert self.lightning_module is not None
        checkpoint: dict[str, Any] = torch.load(
            path, mmap=True, map_location="cpu", weights_only=weights_only
        )
        options = StateDictOptions(full_state_dict=True, strict=self.lightning_module.strict_loading)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=options)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=False):
            set_optimizer_state_dict(
                self.model, optimizer, _by_name(state, optimizer, names), options=options
            )
        return checkpoint


def _by_name(state: dict[str, Any], optimizer: Optimizer, names: Mapping[Any, str]) -> dict[str, Any]:
    """An optimizer's state with parameters by name; the inverse of the numbering in a plain checkpoint."""
    ordered = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    return {
        "state": {ordered[number]: value for number, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [ordered[number] for number in group["params"]]}
            for group in state["param_groups"]
        ],
    }


def _holds(path: Path, key: str) -> bool:
    names = FileSystemReader(path).read_metadata().state_dict_metadata
    return any(name.startswith(f"{key}.") for name in names)


def _like(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Empty tensors to load an average into: sharded as the weights, floating point ones in float32."""
    return {
        name: torch.empty_like(tensor, dtype=torch.float32 if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in state.items()
    }
