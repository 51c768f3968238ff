"""Exit-loss weights and curricula against the papers' formulas, written out again in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_eff.errors import UserError
from lit_eff.training.exit_loss import Curriculum, ExitLoss, is_active, raw_weights, weights_at

LAYERS = 8
EVERY_LAYER = tuple(range(1, LAYERS + 1))


def all_exits(**settings: object) -> ExitLoss:
    return ExitLoss(**settings)


@pytest.mark.parametrize("layers", [2, 8, 32])
@pytest.mark.parametrize("e_scale", [0.0, 0.2, 1.0])
def test_layerskip_weights_equal_the_papers_sums(layers: int, e_scale: float) -> None:
    expected = np.empty(layers, dtype=np.float64)
    for layer in range(layers - 1):
        expected[layer] = e_scale * np.arange(layer + 1, dtype=np.float64).sum()
    expected[-1] = layers - 1 + e_scale * np.arange(layers - 1, dtype=np.float64).sum()
    loss = all_exits(weights="layerskip", e_scale=e_scale)
    np.testing.assert_allclose(raw_weights(loss, tuple(range(1, layers + 1))), expected, rtol=1e-15)
    weights = weights_at(loss, tuple(range(1, layers + 1)), step=3, max_steps=10)
    for index, weight in weights.items():
        assert weight == pytest.approx(expected[index] / expected.sum(), rel=1e-15)


def test_other_weights() -> None:
    layers = (2, 4, 8)
    assert raw_weights(all_exits(weights="uniform"), layers) == (1, 1, 1)
    assert raw_weights(all_exits(weights="geometric"), layers) == (1, 2, 4)
    calm = weights_at(all_exits(weights="linear"), EVERY_LAYER, step=0, max_steps=1)
    assert calm == pytest.approx({index: (index + 1) / 36 for index in range(8)})
    assert weights_at(all_exits(weights="only_last"), layers, step=0, max_steps=1) == {2: 1.0}
    assert weights_at(all_exits(weights="only_exits"), layers, step=0, max_steps=1) == {0: 0.5, 1: 0.5}


@given(
    weights=st.sampled_from(["uniform", "linear", "layerskip", "geometric", "only_last", "only_exits"]),
    kind=st.sampled_from(["all", "rotational", "gradual"]),
    every=st.integers(1, 5),
    exits=st.sets(st.integers(1, 11), min_size=1),
    step=st.integers(0, 99),
)
def test_every_step_trains_the_deepest_exit_and_weights_sum_to_one(
    weights: str, kind: str, every: int, exits: set[int], step: int
) -> None:
    layers = (*sorted(exits), 12)
    loss = all_exits(weights=weights, curriculum=Curriculum(kind, every))
    trained = weights_at(loss, layers, step=step, max_steps=100)
    assert sum(trained.values()) == pytest.approx(1.0)
    assert max(trained) == (len(layers) - 2 if weights == "only_exits" else len(layers) - 1)
    assert list(trained) == sorted(trained)
    assert all(weight > 0 for weight in trained.values())
    # Among the exits of this step the proportions are those of the weights.
    raw = raw_weights(loss, layers)
    total = sum(raw[index] for index in trained)
    assert all(weight == pytest.approx(raw[index] / total) for index, weight in trained.items())


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_rotational_trains_each_exit_once_in_every_r_steps(every: int) -> None:
    loss = all_exits(weights="uniform", curriculum=Curriculum("rotational", every))
    for start in (0, 5):
        steps = [weights_at(loss, EVERY_LAYER, step, max_steps=100) for step in range(start, start + every)]
        for index in range(LAYERS - 1):
            assert sum(index in step for step in steps) == 1
        assert all(LAYERS - 1 in step for step in steps)
    # Shifted by one each step: exit e at step t, exit e + 1 at step t + 1.
    for step in range(10):
        now, later = (weights_at(loss, EVERY_LAYER, t, max_steps=100) for t in (step, step + 1))
        assert {index + 1 for index in now if index + 1 < LAYERS - 1} <= set(later)


def test_gradual_adds_one_layer_every_t_over_2l_steps() -> None:
    max_steps = 160  # one more exit every 160 / 16 = 10 steps
    loss = all_exits(weights="uniform", curriculum=Curriculum("gradual"))
    for step in range(max_steps):
        trained = weights_at(loss, EVERY_LAYER, step, max_steps)
        expected = min(1 + step // 10, LAYERS)
        assert set(trained) == set(range(LAYERS - expected, LAYERS))


def test_gradual_counts_layers_not_exits() -> None:
    curriculum = Curriculum("gradual")
    first = next(step for step in range(160) if is_active(curriculum, 0, (2, 8), step, 160))
    assert first == 60  # six layers up from the last, ten steps each


@pytest.mark.parametrize(
    "settings", [{"e_scale": 1.5}, {"distillation": -0.1}, {"temperature": 0.0}], ids=lambda s: next(iter(s))
)
def test_bad_values_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        all_exits(**settings)
    with pytest.raises(UserError, match=r"curriculum\.every is 0"):
        Curriculum("rotational", 0)
