"""The two Lightning modules, trained for real on rows that a tiny model can learn."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_eff.errors import UserError
from lit_eff.models.config import ExitConfig, ModelConfig
from lit_eff.training import (
    Curriculum,
    ExitLoss,
    LayerDropout,
    LitClassifier,
    LitLanguageModel,
    MuonAdamW,
    Schedule,
)
from lit_eff.training.base import LitEarlyExit
from lit_eff.training.exit_loss import weights_at
from lit_eff.training.optimizers import parameter_groups

V, T, ROWS = 23, 16, 8


class Counting(LightningDataModule):
    """Rows that count up by a step of 1 to 3, modulo V; a row's class is the third its first token is in."""

    vocab_size = V
    context = T
    class_names = ("low", "middle", "high")

    def batches(self, count: int, seed: int) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        out = []
        for _ in range(count):
            first = torch.randint(0, V, (ROWS, 1), generator=generator)
            step = torch.randint(1, 4, (ROWS, 1), generator=generator)
            row = (first + step * torch.arange(T + 1)) % V
            documents = torch.zeros(ROWS, T, dtype=torch.int64)
            out.append(
                {
                    "tokens_BT": row[:, :-1],
                    "targets_BT": row[:, 1:],
                    "documents_BT": documents,
                    "labels_B": first[:, 0] * 3 // V,
                }
            )
        return out

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.batches(20, seed=0), batch_size=None)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.batches(4, seed=1), batch_size=None)

    test_dataloader = predict_dataloader = val_dataloader


def config(**settings: Any) -> ModelConfig:
    settings = {"exits": ExitConfig((1, 2)), **settings}
    return ModelConfig(vocab_size=V, layers=3, model_dim=32, heads=2, mlp_dim=64, context=T, **settings)


def trainer(max_steps: int = 60, **settings: Any) -> Trainer:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
    }
    return Trainer(max_steps=max_steps, **{**quiet, **settings})


def adamw(lr: float = 5e-3) -> Any:
    return lambda params: torch.optim.AdamW(params, lr=lr, fused=True)


RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "layerskip": {
        "exit_loss": ExitLoss("layerskip", curriculum=Curriculum("rotational", 2)),
        "layer_dropout": LayerDropout(0.1, "exponential"),
    },
    "distilled": {"exit_loss": ExitLoss("uniform", distillation=0.5, curriculum=Curriculum("gradual"))},
    "muon": {"optimizer": lambda params: MuonAdamW(params, lr=5e-3), "schedule": Schedule("wsd")},
}
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"gradient_clip_val": 1.0},
    "layerskip": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
    "distilled": {},
    "muon": {"precision": "bf16-mixed", "gradient_clip_val": 1.0},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_language_model_learns_at_every_exit(recipe: str) -> None:
    lit = LitLanguageModel(config(), **{"optimizer": adamw(), **RECIPES[recipe]})
    run = trainer(**RUNS[recipe])
    before = run.validate(lit, datamodule=Counting(), verbose=False)[0]
    assert before["validation/perplexity_exit_3"] == pytest.approx(V, rel=0.15)
    run.fit(lit, datamodule=Counting())
    assert run.global_step == 60
    after = run.validate(lit, datamodule=Counting(), verbose=False)[0]
    for layer in (1, 2, 3):
        assert (
            after[f"validation/perplexity_exit_{layer}"] < 0.6 * before[f"validation/perplexity_exit_{layer}"]
        )
        assert 0.0 <= after[f"validation/ece_exit_{layer}"] < 1.0
    assert after["validation/agreement_exit_3"] == 1.0
    assert after["validation/loss"] < before["validation/loss"] - 0.5
    logged = run.callback_metrics.keys() | set(run.logged_metrics)
    assert set(after) <= set(before)
    assert logged >= set(after)


def test_a_model_without_early_exits_trains_and_validates() -> None:
    lit = LitLanguageModel(config(exits=ExitConfig()), optimizer=adamw())
    run = trainer(4)
    run.fit(lit, datamodule=Counting())
    after = run.validate(lit, datamodule=Counting(), verbose=False)[0]
    assert {name for name in after if "exit" in name} == {
        f"validation/{measure}_exit_3" for measure in ("perplexity", "accuracy", "agreement", "ece")
    }


def test_a_classifier_learns_at_every_exit() -> None:
    lit = LitClassifier(config(labels=3, causal=False, pooling="first"), optimizer=adamw())
    run = trainer()
    run.fit(lit, datamodule=Counting())
    names = {f"train/loss_exit_{layer}" for layer in (1, 2, 3)} | {"train/loss", "train/lr"}
    assert names <= set(run.logged_metrics)
    metrics = run.validate(lit, datamodule=Counting(), verbose=False)[0]
    for layer in (1, 2, 3):
        assert metrics[f"validation/accuracy_exit_{layer}"] > 0.7
    tested = run.test(lit, datamodule=Counting(), verbose=False)[0]
    assert tested["test/loss"] == metrics["validation/loss"]
    predicted = run.predict(lit, datamodule=Counting())
    assert predicted is not None
    right = torch.cat([one.prediction_EN[-1] for one in predicted])
    labels = torch.cat([batch["labels_B"] for batch in Counting().batches(4, seed=1)])
    assert (right == labels).float().mean().item() == pytest.approx(metrics["validation/accuracy_exit_3"])


def test_a_step_trains_the_weighted_sum_of_its_exits_losses() -> None:
    """training_step's loss and gradients against the exits' losses computed one by one in float64."""
    exit_loss = ExitLoss("geometric", curriculum=Curriculum("rotational", 2))
    lit = LitLanguageModel(config(exits=ExitConfig((1, 2), "linear")), exit_loss)
    run = trainer()
    lit.trainer = run
    lit.configure_model()
    lit.double()
    lit.log = lit.log_dict = lambda *args, **kwargs: None
    run.strategy._optimizers = [torch.optim.SGD(lit.parameters(), lr=0.1)]
    batch = Counting().batches(1, seed=0)[0]
    loss = lit.training_step(batch, 0)
    parameters = list(lit.model.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    weights = weights_at(exit_loss, (1, 2, 3), 0, 60)
    assert list(weights) == [0, 2]
    expected = torch.zeros((), dtype=torch.float64)
    for index, weight in weights.items():
        hidden = lit.model(batch["tokens_BT"], documents_BT=batch["documents_BT"], exits=[index])[0]
        logits = lit.model.logits(hidden, index)
        expected = expected + weight * nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["targets_BT"].flatten()
        )
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    skipped = 0
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        skipped += one is None
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert skipped == 2  # the second exit's own norm and matrix: its head did not run


@pytest.mark.parametrize("head", ["norm", "linear", "mlp"])
def test_only_exits_trains_the_heads_alone(head: Any) -> None:
    lit = LitLanguageModel(
        config(exits=ExitConfig((1, 2), head), dropout=0.2),
        ExitLoss("only_exits", distillation=1.0),
        optimizer=adamw(),
    )
    lit.configure_model()
    before = {name: value.clone() for name, value in lit.model.state_dict().items()}
    trainer(3).fit(lit, datamodule=Counting())
    for name, value in lit.model.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("exit_heads.")), name
    assert not lit.model.training  # no dropout in a frozen backbone


def test_only_exits_needs_heads_of_its_own() -> None:
    with pytest.raises(UserError, match="use head norm, linear or mlp"):
        LitLanguageModel(config(), ExitLoss("only_exits"))
    with pytest.raises(UserError, match=r"layer_dropout\.rate is 0\.1"):
        LitLanguageModel(
            config(exits=ExitConfig((1,), "norm")), ExitLoss("only_exits"), layer_dropout=LayerDropout(0.1)
        )


class Poisoned(LitLanguageModel):
    """Multiplies the loss by NaN in the named training batches."""

    poison: range

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * math.nan if batch_idx in self.poison else loss


@pytest.mark.parametrize("optimizer", [adamw(), lambda params: MuonAdamW(params, lr=5e-3)])
def test_a_step_with_nonfinite_gradients_is_skipped_and_counted(optimizer: Any) -> None:
    lit = Poisoned(config(), optimizer=optimizer, max_nonfinite_steps=3)
    lit.poison = range(2, 4)
    seen: list[dict[str, Tensor]] = []
    lit.on_train_batch_end = lambda *args: seen.append(
        {name: value.clone() for name, value in lit.model.state_dict().items()}
    )
    run = trainer(6, gradient_clip_val=1.0)
    run.fit(lit, datamodule=Counting())
    assert lit.nonfinite_steps == 2
    assert lit.nonfinite_in_a_row == 0
    assert run.logged_metrics["train/nonfinite_steps"] == 2
    name = "blocks.0.mlp.up.weight"
    moved = [not torch.equal(one[name], other[name]) for one, other in pairwise(seen)]
    assert moved == [True, False, False, True, True]
    assert all(torch.isfinite(value).all() for value in seen[-1].values())
    saved: dict[str, Any] = {}
    lit.on_save_checkpoint(saved)
    again = Poisoned(config())
    again.on_load_checkpoint(saved)
    assert again.nonfinite_steps == 2


def test_too_many_nonfinite_steps_end_the_run() -> None:
    lit = Poisoned(config(), max_nonfinite_steps=3)
    lit.poison = range(1, 100)
    with pytest.raises(UserError, match=r"not finite in 3 steps in a row, up to step 3; lower"):
        trainer(20).fit(lit, datamodule=Counting())


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_bounds_the_gradient(algorithm: str) -> None:
    lit = LitLanguageModel(config(), optimizer=adamw())
    largest: list[float] = []

    class Recording(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            closure()
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            norm = torch.nn.utils.get_total_norm(gradients)
            largest.append(
                norm.item() if algorithm == "norm" else max(g.abs().max().item() for g in gradients)
            )

    lit.make_optimizer = lambda params: Recording(params, lr=0.1)
    trainer(2, gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm).fit(lit, datamodule=Counting())
    assert largest == pytest.approx([1e-3, 1e-3], rel=1e-2)


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (
            lambda: LitLanguageModel(config()),
            {"max_steps": -1, "max_epochs": 1},
            "trainer.max_steps is not set",
        ),
        (
            lambda: LitLanguageModel(ModelConfig(vocab_size=V - 1, model_dim=16, heads=2, context=T)),
            {},
            f"the data's tokenizer has {V} tokens but model.vocab_size is {V - 1}",
        ),
        (
            lambda: LitLanguageModel(ModelConfig(vocab_size=V, model_dim=16, heads=2, context=T - 1)),
            {},
            f"data.context {T} is longer than model.context {T - 1}",
        ),
        (lambda: LitClassifier(config(labels=2)), {}, "the data has 3 classes but model.labels is 2"),
    ],
    ids=["max_steps", "vocabulary", "context", "classes"],
)
def test_what_does_not_fit_is_said_before_training(
    module: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        trainer(**{"max_steps": 2, **settings}).fit(module(), datamodule=Counting())


def test_the_command_line_overrides_single_settings() -> None:
    """Every default can be taken apart by jsonargparse, the optimizer's lambda included."""
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(LitEarlyExit, "model", subclass_mode=True)
    base = ["--model=lit_eff.training.LitLanguageModel", "--model.config.vocab_size=9"]

    def build(*arguments: str) -> LitLanguageModel:
        return parser.instantiate_classes(parser.parse_args([*base, *arguments])).model

    lit = build(
        "--model.optimizer.lr=0.5",
        "--model.exit_loss.curriculum.kind=rotational",
        "--model.config.exits.layers=[1,3]",
        "--model.schedule.warmup=0.5",
    )
    lit.configure_model()
    optimizer = lit.make_optimizer(parameter_groups(lit.model))
    assert (type(optimizer), optimizer.defaults["lr"]) == (torch.optim.AdamW, 0.5)
    assert (optimizer.defaults["fused"], optimizer.defaults["weight_decay"]) == (True, 0.1)
    assert lit.exit_loss.curriculum == Curriculum("rotational")
    assert (lit.config.exit_layers, lit.schedule.warmup) == ((1, 3, 8), 0.5)
    muon = build("--model.optimizer=lit_eff.training.MuonAdamW", "--model.optimizer.betas=[0.8,0.9]")
    muon.configure_model()
    assert isinstance(muon.make_optimizer(parameter_groups(muon.model)), MuonAdamW)


def test_tasks_are_not_mixed_up() -> None:
    with pytest.raises(UserError, match="use LitClassifier"):
        LitLanguageModel(config(labels=2))
    with pytest.raises(UserError, match="use LitLanguageModel"):
        LitClassifier(config())


def test_initial_weights_depend_on_the_modules_seed_alone() -> None:
    def weights(seed: int, noise: int) -> Tensor:
        torch.manual_seed(noise)
        lit = LitLanguageModel(config(), seed=seed)
        lit.configure_model()
        drawn_after.append(torch.rand(()).item())
        return lit.model.blocks[0].mlp.up.weight

    drawn_after: list[float] = []
    assert torch.equal(weights(1, noise=0), weights(1, noise=5))
    assert not torch.equal(weights(1, noise=0), weights(2, noise=0))
    assert drawn_after[0] == drawn_after[2] != drawn_after[1]  # nor do they disturb what comes after


def gradients_of(lit: LitEarlyExit) -> dict[str, Tensor]:
    lit.trainer = trainer()
    lit.configure_model()
    batch = Counting().batches(1, seed=0)[0]
    lit.train()
    torch.manual_seed(0)
    exits = [0, 1, 2]
    loss, _ = lit.loss_of_exits(batch, lit.hidden_states(batch, exits), exits, [0.2, 0.3, 0.5])
    loss.backward()
    return {name: p.grad for name, p in lit.model.named_parameters() if p.grad is not None}


def test_activation_checkpointing_changes_no_gradient_dropout_included() -> None:
    plain = gradients_of(LitLanguageModel(config(dropout=0.3)))
    recomputed = gradients_of(LitLanguageModel(config(dropout=0.3), activation_checkpointing=True))
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=0, atol=0)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_gradients() -> None:
    plain = gradients_of(LitLanguageModel(config()))
    compiled = gradients_of(LitLanguageModel(config(), compile_blocks=True))
    assert plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient)


def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    def module() -> LitLanguageModel:
        return LitLanguageModel(
            config(dropout=0.2, exits=ExitConfig((1, 2), "norm")),
            ExitLoss("layerskip", distillation=0.3, curriculum=Curriculum("rotational", 2)),
            layer_dropout=LayerDropout(0.3, "exponential"),
            optimizer=lambda params: MuonAdamW(params, lr=5e-3),
            seed=7,
        )

    settings = {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "default_root_dir": tmp_path}
    whole = module()
    trainer(20, **settings).fit(whole, datamodule=Counting())

    class Stop(Callback):  # at a border between epochs, where this data has no position of its own
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "half.ckpt")
            trainer.should_stop = True

    torch.manual_seed(0)
    first = trainer(20, **settings, callbacks=[Stop()])
    first.fit(module(), datamodule=Counting())
    assert first.global_step == 10
    torch.manual_seed(1)  # no random state is carried over
    resumed = module()
    second = trainer(20, **settings)
    second.fit(resumed, datamodule=Counting(), ckpt_path=tmp_path / "half.ckpt")
    assert second.global_step == 20
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    stored = torch.load(tmp_path / "half.ckpt", weights_only=True)  # plain data alone
    assert stored["global_step"] == 10


def test_ranks_share_one_layer_dropout_mask() -> None:
    lit = LitLanguageModel(config(), layer_dropout=LayerDropout(0.5))

    def kept(rank: int, ranks: int) -> Tensor:
        lit._trainer = SimpleNamespace(
            max_steps=9, distributed_sampler_kwargs={"rank": rank, "num_replicas": ranks}
        )
        mask = lit._layers_kept(16 // ranks, step=2, micro_batch=0)
        assert mask is not None
        return mask

    alone = kept(0, 1)
    assert alone.shape == (3, 16)
    for ranks in (2, 4):
        torch.testing.assert_close(torch.cat([kept(rank, ranks) for rank in range(ranks)], dim=1), alone)
    lit._trainer.distributed_sampler_kwargs = None
    torch.testing.assert_close(lit._layers_kept(16, step=2, micro_batch=0), alone)


def checkpoint_of(lit: LitEarlyExit, path: Path) -> str:
    lit.configure_model()
    state = {f"model.{name}": value for name, value in lit.model.state_dict().items()}
    about = {"format": 1, "model_config": lit.config.to_dict(), "tokenizer_json": None, "recipe": {}}
    torch.save({"state_dict": state, "lit_eff": about}, path)
    return str(path)


def test_init_from_a_checkpoint_adds_exits_that_start_as_the_final_head(tmp_path: Path) -> None:
    source = LitLanguageModel(config(exits=ExitConfig()), seed=3)
    path = checkpoint_of(source, tmp_path / "base.ckpt")
    source.model.head.norm.weight.data.fill_(2.0)
    path = checkpoint_of(source, tmp_path / "base.ckpt")
    lit = LitLanguageModel(config(exits=ExitConfig((1, 2), "linear")), init_from=path)
    lit.configure_model()
    tokens = Counting().batches(1, seed=0)[0]["tokens_BT"]
    wanted = source.model(tokens)[-1]
    torch.testing.assert_close(lit.model(tokens)[-1], wanted, rtol=0, atol=0)
    for index in range(3):
        torch.testing.assert_close(lit.model.logits(wanted, index), source.model.logits(wanted, 0))


def test_init_from_a_language_model_gives_a_classifier_its_layers(tmp_path: Path) -> None:
    source = LitLanguageModel(config(), seed=3)
    path = checkpoint_of(source, tmp_path / "base.ckpt")
    lit = LitClassifier(config(labels=3), init_from=path)
    lit.configure_model()
    for name, value in lit.model.state_dict().items():
        if not name.startswith("head."):
            torch.testing.assert_close(value, source.model.state_dict()[name], rtol=0, atol=0)


def test_init_from_another_model_names_the_difference(tmp_path: Path) -> None:
    path = checkpoint_of(LitLanguageModel(config(rope_theta=500.0)), tmp_path / "base.ckpt")
    with pytest.raises(UserError, match=r"model\.rope_theta is 10000\.0 but 500\.0 in init_from"):
        LitLanguageModel(config(), init_from=path).configure_model()
