"""What goes wrong on one rank: all stop together, and the checkpoints that were there stay whole."""

from __future__ import annotations

import resource
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_eff.errors import UserError
from lit_eff.parallel import fsdp
from lit_eff.parallel.consolidate import consolidate
from lit_eff.training.callbacks import SaveOnInterrupt
from tests.parallel.ranks import alone, exit_codes, run_ranks, start_ranks
from tests.parallel.runs import MAX_STEPS, SAVED_AT, fit, fit_sharded, read_result
from tests.training.callbacks.tiny import same

pytestmark = pytest.mark.distributed


class OnRank1(Callback):
    """Does something on rank 1 at a batch."""

    def __init__(self, batch: int, action: Any) -> None:
        self.batch = batch
        self.action = action

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.batch and trainer.global_rank == 1:
            self.action()


def no_more_than(size: int) -> None:
    """From now on no file of this process may be larger: a write fails half-way, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def fit_on_a_full_disk(folder: Path, text: Path) -> None:
    full = OnRank1(SAVED_AT + 1, partial(no_more_than, 2000))
    with pytest.raises(UserError, match=r"cannot write checkpoint .*step=8"):
        fit_sharded(folder, text, callbacks=(full,))


def test_full_disk_on_one_rank(tmp_path: Path, text: Path) -> None:
    run_ranks(fit_on_a_full_disk, tmp_path, text)
    kept = tmp_path / "kept" / f"step={SAVED_AT}.ckpt"
    assert list(kept.parent.iterdir()) == [kept]
    assert torch.load(consolidate(kept), weights_only=True)["global_step"] == SAVED_AT


def test_a_signal_to_one_rank_stops_all_at_one_step(tmp_path: Path, text: Path, two: Path) -> None:
    ask = OnRank1(2, partial(signal.raise_signal, signal.SIGTERM))
    ranks = start_ranks(partial(fit_sharded, callbacks=(ask,)), tmp_path / "first", text)
    assert exit_codes(ranks) == [128 + signal.SIGTERM, 0]
    saved = tmp_path / "first" / "kept" / SaveOnInterrupt.filename
    assert saved.is_dir()
    assert alone(saved)

    run_ranks(partial(fit_sharded, ckpt_path=saved), tmp_path / "second", text, tmp_path / "result.pt")
    resumed, whole = read_result(tmp_path), read_result(two)
    assert resumed["losses"] == whole["losses"][3:]
    assert len(whole["losses"]) == MAX_STEPS
    assert same(resumed["weights"], whole["weights"]) == []


class SeenDtypes(Callback):
    """The dtype in which a layer finds its weights while it runs."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen: set[torch.dtype] = set()
        layer: Any = pl_module.model.blocks[1].mlp  # type: ignore[union-attr,index]
        layer.register_forward_pre_hook(lambda part, _: self.seen.add(next(part.parameters()).dtype))


def fit_in_bfloat16(folder: Path, text: Path, result: Path) -> None:
    dtypes = SeenDtypes()
    fsdp.shard_model = partial(fsdp.shard_model, precision="bf16-mixed")  # type: ignore[assignment]
    fit_sharded(folder, text, result, precision="bf16-mixed", callbacks=(dtypes,))
    assert dtypes.seen == {torch.bfloat16}


def test_bfloat16_parameters_are_gathered_and_float32_kept(tmp_path: Path, text: Path) -> None:
    run_ranks(fit_in_bfloat16, tmp_path, text, tmp_path / "two.pt")
    fit(tmp_path / "one", text, tmp_path / "one.pt", precision="bf16-mixed")
    two, one = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("two", "one"))
    assert {weight.dtype for weight in two["weights"].values()} == {torch.float32}
    torch.testing.assert_close(two["losses"], one["losses"], rtol=2e-2, atol=2e-2)
    assert two["losses"] != one["losses"]
