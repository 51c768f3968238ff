"""The second stage: the loss by hand, the one layer it trains, and scores that tell when an exit is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.models.checkpoint import load_checkpoint
from lit_eff.models.config import ExitConfig, ModelConfig
from lit_eff.training import ExitLoss, LayerDropout, LitClassifier, LitLanguageModel
from lit_eff.training.callbacks.throughput import training_flops
from lit_eff.training.exit_classifier import ScoreMetrics, exit_classifier_loss
from lit_eff.training.optimizers import OUTPUT, parameter_groups
from tests.training.test_modules import ROWS, Counting, T, V, adamw, checkpoint_of, config, trainer

CLASSIFIED = ExitConfig((1, 2), classifier=True)
LAYER = {"exit_classifier.weight", "exit_classifier.bias"}


def classified(**changes: Any) -> ModelConfig:
    return config(exits=CLASSIFIED, **changes)


class HalfNoise(Counting):
    """After a token of the lower half comes the one it determines; after one of the upper half, any."""

    def batches(self, count: int, seed: int) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        out = []
        for _ in range(count):
            row = torch.randint(0, V, (ROWS, T + 1), generator=generator)
            for t in range(T):
                row[:, t + 1] = torch.where(row[:, t] < V // 2, (5 * row[:, t] + 1) % V, row[:, t + 1])
            documents_BT = torch.zeros(ROWS, T, dtype=torch.int64)
            batch = {"tokens_BT": row[:, :-1], "targets_BT": row[:, 1:], "documents_BT": documents_BT}
            out.append(batch)
        return out


# --- the loss ----------------------------------------------------------------------------------------------


def test_agreement_is_the_balanced_logistic_loss_by_hand() -> None:
    scores_FN = torch.tensor([[1.0, -2.0, 0.5, 9.0], [0.3, 0.2, -1.0, 9.0]], dtype=torch.float64)
    last = [5, 6, 7, 8]
    predictions_EN = torch.tensor([[5, 6, 0, 0], [0, 6, 0, 8], last])
    targets_N = torch.tensor([1, 1, 1, -100])  # the last is padding
    loss, loss_F = exit_classifier_loss(scores_FN, predictions_EN, targets_N, "agreement")
    yes, no = (-scores_FN.sigmoid().log()), (-(-scores_FN).sigmoid().log())
    first = (yes[0, 0] + yes[0, 1]) / 2 / 2 + no[0, 2] / 2
    second = yes[1, 1] / 2 + (no[1, 0] + no[1, 2]) / 2 / 2
    torch.testing.assert_close(loss_F, torch.stack([first, second]))
    torch.testing.assert_close(loss, (first + second) / 2)


def test_correct_is_the_squared_error_of_the_confidence_by_hand() -> None:
    scores_FN = torch.tensor([[1.0, -2.0, 0.5, 9.0], [0.3, 0.2, -1.0, 9.0]], dtype=torch.float64)
    predictions_FN = torch.tensor([[1, 0, 3, 4], [0, 0, 3, 4]])  # the last exit is not looked at
    loss, loss_F = exit_classifier_loss(scores_FN, predictions_FN, torch.tensor([1, 2, 3, -100]), "correct")
    p = scores_FN.sigmoid()
    first = ((p[0, 0] - 1) ** 2 + p[0, 1] ** 2 + (p[0, 2] - 1) ** 2) / 3
    second = (p[1, 0] ** 2 + p[1, 1] ** 2 + (p[1, 2] - 1) ** 2) / 3
    torch.testing.assert_close(loss_F, torch.stack([first, second]))
    torch.testing.assert_close(loss, (first + second) / 2)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_classes_balance_whatever_their_shares(tokens: list[tuple[bool, bool]]) -> None:
    """A constant score's gradient vanishes at 0 and only there: neither class outweighs the other."""
    agrees_N = torch.tensor([agrees for agrees, _ in tokens])
    targets_N = torch.tensor([0 if real else -100 for _, real in tokens])
    predictions_EN = torch.stack([torch.where(agrees_N, 7, 3), torch.full_like(targets_N, 7)])

    def gradient(score: float) -> float:
        constant = torch.tensor(score, dtype=torch.float64, requires_grad=True)
        scores_FN = constant.expand(1, len(tokens))
        loss, _ = exit_classifier_loss(scores_FN, predictions_EN, targets_N, "agreement")
        return torch.autograd.grad(loss, constant)[0].item()

    mixed = len(agrees_N[targets_N == 0].unique()) == 2
    assert gradient(0.0) == pytest.approx(0.0, abs=1e-12)
    assert (gradient(1.0) > 0.1) == mixed
    assert (gradient(-1.0) < -0.1) == mixed


def test_a_batch_of_padding_trains_nothing() -> None:
    scores_FN = torch.randn(2, 4, requires_grad=True)
    for target in ("agreement", "correct"):
        loss, _ = exit_classifier_loss(scores_FN, torch.zeros(3, 4), torch.full((4,), -100), target)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(loss, scores_FN)
        assert loss.item() == 0.0
        assert not gradient.any()


def test_metrics_are_those_of_every_pair() -> None:
    """AUROC as the share of (right, wrong) pairs in order, ties a half; padding counts nowhere."""
    generator = torch.Generator().manual_seed(0)
    scores_FN = torch.randn(2, 300, generator=generator)
    right_FN = torch.rand(2, 300, generator=generator) < (scores_FN + 0.3).sigmoid()
    targets_N = torch.where(torch.rand(300, generator=generator) < 0.2, -100, 0)
    metrics = ScoreMetrics(2, "agreement")
    for part in (slice(0, 100), slice(100, 300)):
        predictions_EN = torch.cat([right_FN, torch.ones(1, 300, dtype=torch.bool)]).long()[:, part]
        metrics.update(scores_FN[:, part], predictions_EN, targets_N[part])
    found = metrics.compute()
    for index in range(2):
        score_N, right_N = scores_FN[index, targets_N == 0], right_FN[index, targets_N == 0]
        above = (score_N[right_N][:, None] > score_N[~right_N]).double().mean().item()
        assert found["score_auroc"][index].item() == pytest.approx(above, abs=2e-3)  # 500 bins
        balanced = ((score_N[right_N] >= 0).double().mean() + (score_N[~right_N] < 0).double().mean()) / 2
        assert found["score_balanced_accuracy"][index].item() == pytest.approx(balanced.item(), abs=1e-6)


# --- training ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a model that knows what comes after the lower half of the vocabulary."""
    lit = LitLanguageModel(config(), optimizer=adamw(1e-2))
    trainer(60).fit(lit, datamodule=HalfNoise())
    return checkpoint_of(lit, tmp_path_factory.mktemp("first") / "base.ckpt")


# Among the noise, the second exit agrees with the third in more than half the cases, by chance.
@pytest.mark.parametrize(("target", "least"), [("agreement", (0.9, 0.8)), ("correct", (0.95, 0.95))])
def test_scores_tell_what_the_hidden_state_tells(
    target: Any, least: tuple[float, float], first_stage: str
) -> None:
    lit = LitLanguageModel(classified(), exit_classifier=target, optimizer=adamw(5e-2), init_from=first_stage)
    run = trainer(60)
    before = run.validate(lit, datamodule=HalfNoise(), verbose=False)[0]
    run.fit(lit, datamodule=HalfNoise())
    logged = {name for name in run.logged_metrics if name.startswith("train/loss")}
    assert logged == {"train/loss", "train/loss_exit_1", "train/loss_exit_2"}
    after = run.validate(lit, datamodule=HalfNoise(), verbose=False)[0]
    for layer, bound in zip((1, 2), least, strict=True):
        assert before[f"validation/score_auroc_exit_{layer}"] < 0.8
        assert after[f"validation/score_auroc_exit_{layer}"] > bound
        assert after[f"validation/score_balanced_accuracy_exit_{layer}"] > bound - 0.05
    assert {name for name in after if "score" in name and name.endswith("3")} == set()
    assert before["validation/loss"] == after["validation/loss"]  # the exits themselves are as they were


@pytest.mark.parametrize("target", ["agreement", "correct"])
@pytest.mark.parametrize("head", ["shared", "linear"])
def test_the_classifier_trains_alone(target: Any, head: Any) -> None:
    lit = LitLanguageModel(
        config(exits=ExitConfig((1, 2), head, classifier=True), dropout=0.2, init_std=0.3),
        exit_classifier=target,
        optimizer=adamw(),
    )
    lit.configure_model()
    before = {name: value.clone() for name, value in lit.model.state_dict().items()}
    trainer(3).fit(lit, datamodule=Counting())
    changed = {name for name, value in lit.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == LAYER
    assert {name for name, value in lit.model.named_parameters() if value.requires_grad} == LAYER
    assert not lit.model.training  # no dropout


@pytest.mark.parametrize("target", ["agreement", "correct"])
def test_a_sequence_classifier_learns_scores_of_whole_sequences(target: Any) -> None:
    settings: dict[str, Any] = {"labels": 3, "causal": False, "pooling": "mean"}
    lit = LitClassifier(classified(**settings), exit_classifier=target, optimizer=adamw())
    run = trainer(3)
    run.fit(lit, datamodule=Counting())
    metrics = run.validate(lit, datamodule=Counting(), verbose=False)[0]
    assert 0.0 <= metrics["validation/score_auroc_exit_1"] <= 1.0
    batch = Counting().batches(1, seed=0)[0]
    assert lit.exit_scores(batch, lit.hidden_states(batch)).shape == (2, ROWS)


def test_correct_stops_at_the_deepest_early_exit() -> None:
    ran: list[int] = []
    lit = LitLanguageModel(classified(), exit_classifier="correct")
    lit.configure_model()
    lit.trainer = trainer()
    for index, block in enumerate(lit.model.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    lit.hidden_states(Counting().batches(1, seed=0)[0], lit.exits_computed(0))
    assert ran == [0, 1]
    assert training_flops(lit, T, 0) == lit.model.flops_per_token(T, [0, 1])


# --- where it starts and ends ------------------------------------------------------------------------------


def test_the_first_stage_is_taken_over_and_the_layer_is_fresh(tmp_path: Path) -> None:
    source = LitLanguageModel(config(exits=ExitConfig((1, 2), "mlp")), seed=3)
    path = checkpoint_of(source, tmp_path / "base.ckpt")
    settings: dict[str, Any] = {"exit_classifier": "agreement", "init_from": path}
    lit = LitLanguageModel(config(exits=ExitConfig((1, 2), "mlp", True)), **settings)
    second = checkpoint_of(lit, tmp_path / "second.ckpt")
    ours, theirs = lit.model.state_dict(), source.model.state_dict()
    assert ours.keys() - theirs.keys() == LAYER
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    assert 0.0 < ours["exit_classifier.weight"].std() < 2 * lit.config.init_std
    assert load_checkpoint(second).model.config == lit.config
    # A third stage goes on from the layer of the second.
    third = LitLanguageModel(
        config(exits=ExitConfig((1, 2), "mlp", True)), exit_classifier="correct", init_from=second, seed=9
    )
    third.configure_model()
    assert torch.equal(third.model.state_dict()["exit_classifier.weight"], ours["exit_classifier.weight"])


def test_muon_leaves_the_vector_to_adamw() -> None:
    lit = LitLanguageModel(classified(), exit_classifier="agreement")
    lit.configure_model()
    roles = {
        group["role"]: [tuple(p.shape) for p in group["params"]] for group in parameter_groups(lit.model)
    }
    assert roles == {OUTPUT: [(1, 32)], "vector": [(1,)]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"config": classified()}, r"exits\.classifier is true and model\.exit_classifier is not set"),
        (
            {"config": config(), "exit_classifier": "correct"},
            r"model\.exit_classifier is 'correct' and the model has no exit classifier",
        ),
        (
            {
                "config": config(exits=ExitConfig((1, 2), "norm", True)),
                "exit_classifier": "agreement",
                "exit_loss": ExitLoss("only_exits"),
            },
            "tune the exits first, then their classifier",
        ),
        (
            {
                "config": classified(),
                "exit_classifier": "agreement",
                "layer_dropout": LayerDropout(0.1),
            },
            r"layer_dropout\.rate is 0\.1 with model\.exit_classifier 'agreement'",
        ),
    ],
    ids=["nothing trains it", "nothing to train", "only_exits", "layer dropout"],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LitLanguageModel(**settings)
