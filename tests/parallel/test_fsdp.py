"""FSDP2 on two gloo processes trains what one process trains, and its checkpoints resume and convert."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_eff.errors import UserError
from lit_eff.models.checkpoint import load_checkpoint
from lit_eff.models.config import ExitConfig
from lit_eff.parallel.consolidate import consolidate, main
from lit_eff.training import ExitLoss, LitLanguageModel, MuonAdamW
from tests.parallel.ranks import alone, run_ranks
from tests.parallel.runs import MAX_STEPS, SAVED_AT, fit, fit_sharded, module, read_result
from tests.training.callbacks.tiny import make_config, make_module, same

pytestmark = pytest.mark.distributed

# Two ranks add gradients in another order than one; the first losses see none of it.
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


def test_same_run_as_one_process(one: dict[str, Any], two: Path) -> None:
    sharded = read_result(two)
    assert one["ignored"] == 0  # every row weighs the same, so the mean over ranks is the mean over rows
    torch.testing.assert_close(sharded["losses"], one["losses"], **CLOSE)
    torch.testing.assert_close(sharded["losses"][0], one["losses"][0], rtol=1e-6, atol=1e-6)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(sharded["weights"][name], weight, **CLOSE)
    for name, value in one["metrics"].items():
        if name.startswith("validation/"):
            assert sharded["metrics"][name] == pytest.approx(value, rel=1e-3)


def test_it_really_shards_and_trains(one: dict[str, Any], two: Path) -> None:
    sharded = read_result(two)
    assert one["share"] == 1.0
    assert sharded["share"] == pytest.approx(0.5, abs=0.05)
    fresh = module()
    fresh.configure_model()
    for name, weight in fresh.state_dict().items():
        assert not torch.equal(weight, sharded["weights"][name]), f"{name} did not change"
    assert sharded["losses"][-1] < sharded["losses"][0] - 0.1


def test_one_rank_reports(two: Path) -> None:
    (report,) = two.rglob("report.json")
    assert json.loads(report.read_text(encoding="utf-8"))["status"] == "finished"
    assert len(list(report.parent.glob("events.out.tfevents.*"))) == 1
    assert len(list(report.parent.glob("*.pt.trace.json.gz"))) == 1
    assert len(list(two.rglob("tokenizer.json"))) == 1


def test_the_profile_of_a_shard_counts_its_own_operators_and_memory(two: Path) -> None:
    (report,) = two.rglob("report.json")
    events = EventAccumulator(str(report.parent), {"scalars": 0, "tensors": 0}).Reload()
    model = make_module().config
    weights = 4 * 3 * (4 * model.model_dim**2 + 3 * model.model_dim * model.mlp_size)
    (peak,) = events.Scalars("profile/peak_memory_megabytes")
    assert weights / 2 < peak.value * 1e6 < 10 * weights
    (table,) = events.Tensors("profile/a_training_step_by_module/text_summary")
    rows = table.tensor_proto.string_val[0].decode()
    assert "model.blocks.0.mlp.up | forward" in rows
    assert "model.blocks.0.mlp.up | backward" in rows
    assert "| optimizer" in rows


def test_sharded_resume_is_exact(two: Path, text: Path, tmp_path: Path) -> None:
    saved = two / "kept" / f"step={SAVED_AT}.ckpt"
    assert saved.is_dir()
    assert alone(saved)
    run_ranks(partial(fit_sharded, ckpt_path=saved), tmp_path, text, tmp_path / "result.pt")
    resumed, whole = read_result(tmp_path), read_result(two)
    assert resumed["losses"] == whole["losses"][SAVED_AT:]
    assert same(resumed["weights"], whole["weights"]) == []
    last = f"step={MAX_STEPS}.ckpt"
    first, second = (
        torch.load(consolidate(folder / "kept" / last, tmp_path / f"{index}.ckpt"), weights_only=True)
        for index, folder in enumerate((two, tmp_path))
    )
    for part in ("ema_state_dict", "optimizer_states", "lr_schedulers"):
        assert same(first[part], second[part], part) == []


def test_consolidated_checkpoint_is_a_plain_one(
    one: dict[str, Any], two: Path, text: Path, tmp_path: Path
) -> None:
    """Its weights load without Lightning or processes, and one process resumes from it; so do two."""
    plain = consolidate(two / "kept" / f"step={SAVED_AT}.ckpt", tmp_path / "plain.ckpt")
    loaded = load_checkpoint(plain)
    assert loaded.metadata["weights"] == "ema"
    assert loaded.recipe == {"a": 1}
    fit(tmp_path / "single", text, tmp_path / "result.pt", ckpt_path=plain)
    torch.testing.assert_close(read_result(tmp_path)["losses"], one["losses"][SAVED_AT:], **CLOSE)

    (tmp_path / "again").mkdir()
    run_ranks(
        partial(fit_sharded, ckpt_path=plain), tmp_path / "again", text, tmp_path / "again" / "result.pt"
    )
    assert read_result(tmp_path / "again")["losses"] == read_result(two)["losses"][SAVED_AT:]


def test_one_process_is_told_what_to_do_with_a_folder(two: Path, text: Path, tmp_path: Path) -> None:
    saved = two / "kept" / f"step={SAVED_AT}.ckpt"
    with pytest.raises(UserError, match=r"sharded checkpoint .* lit_eff\.parallel\.consolidate"):
        fit(tmp_path, text, ckpt_path=saved)


def test_consolidate_from_the_command_line(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = two / "kept" / f"step={SAVED_AT}.ckpt"
    assert main([str(saved), str(tmp_path / "out.ckpt")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out.ckpt")
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is not a sharded checkpoint")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_consolidate_refuses(two: Path, tmp_path: Path, kind: str) -> None:
    saved = two / "kept" / f"step={SAVED_AT}.ckpt"
    with pytest.raises(UserError, match="not a sharded checkpoint" if kind == "file" else "is a folder"):
        consolidate(saved, tmp_path) if kind == "folder" else consolidate(tmp_path / "missing.ckpt")


def fit_with_muon(folder: Path, text: Path, result: Path) -> None:
    fit_sharded(folder, text, result, lit=module(muon))


def muon(params: Any) -> torch.optim.Optimizer:
    return MuonAdamW(params, lr=1e-2)


def test_muon_sees_whole_matrices(text: Path, tmp_path: Path) -> None:
    """Orthogonalising slices would give other steps; whole ones differ by bfloat16 rounding alone."""
    (tmp_path / "one").mkdir()
    fit(tmp_path / "one", text, tmp_path / "one" / "result.pt", lit=module(muon))
    run_ranks(fit_with_muon, tmp_path / "two", text, tmp_path / "result.pt")
    torch.testing.assert_close(
        read_result(tmp_path)["losses"], read_result(tmp_path / "one")["losses"], rtol=1e-4, atol=0.0
    )


def frozen_backbone() -> LitLanguageModel:
    return make_module(exit_loss=ExitLoss("only_exits"))


def fit_exits_alone(folder: Path, text: Path, result: Path) -> None:
    fit_sharded(folder, text, result, lit=frozen_backbone())


def classifier_alone() -> LitLanguageModel:
    classified = make_config(exits=ExitConfig((1, 2), "norm", classifier=True))
    return make_module(classified, exit_classifier="correct")


def fit_classifier_alone(folder: Path, text: Path, result: Path) -> None:
    fit_sharded(folder, text, result, lit=classifier_alone())


@pytest.mark.parametrize(
    ("module_of", "fit_both"),
    [(frozen_backbone, fit_exits_alone), (classifier_alone, fit_classifier_alone)],
    ids=["exit heads", "exit classifier"],
)
def test_what_trains_on_a_frozen_backbone_gets_the_gradients_of_all_ranks(
    module_of: Any, fit_both: Any, text: Path, tmp_path: Path
) -> None:
    """It is used outside the sharded model's forward, where FSDP2 would not reduce their gradients."""
    (tmp_path / "one").mkdir()
    fit(tmp_path / "one", text, tmp_path / "one" / "result.pt", lit=module_of())
    run_ranks(fit_both, tmp_path / "two", text, tmp_path / "result.pt")
    sharded, one = read_result(tmp_path), read_result(tmp_path / "one")
    torch.testing.assert_close(sharded["losses"], one["losses"], **CLOSE)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(sharded["weights"][name], weight, **CLOSE)
    fresh = module_of()
    fresh.configure_model()
    trained = {name: weight for name, weight in fresh.named_parameters() if weight.requires_grad}
    assert 0 < len(trained) < len(sharded["weights"])
    for name, weight in trained.items():
        assert not torch.equal(weight, sharded["weights"][name]), f"{name} did not change"
