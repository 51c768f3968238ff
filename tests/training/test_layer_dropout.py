"""Layer dropout: LayerSkip's probabilities, the rates that come out, and what a dropped layer does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from lit_eff.errors import UserError
from lit_eff.models.config import ModelConfig
from lit_eff.models.transformer import Transformer
from lit_eff.training.layer_dropout import LayerDropout, drop_probabilities, keep_mask


@pytest.mark.parametrize("growth", ["constant", "exponential"])
@pytest.mark.parametrize("step", [0, 1, 57, 99])
def test_probabilities_equal_the_paper(growth: str, step: int) -> None:
    layers, max_steps, rate = 24, 100, 0.3
    layer = np.arange(layers, dtype=np.float64)
    depth = np.exp(layer * np.log(2.0) / (layers - 1)) - 1.0
    scale = 1.0 if growth == "constant" else np.exp(step * np.log(2.0) / (max_steps - 1)) - 1.0
    found = drop_probabilities(LayerDropout(rate, growth), layers, step, max_steps)
    np.testing.assert_allclose(found, scale * depth * rate, rtol=1e-13, atol=1e-15)
    if step == 99:
        assert found[0] == 0.0
        assert found[-1] == pytest.approx(rate)


def test_empirical_rates() -> None:
    dropout, layers, max_steps, batch, steps = LayerDropout(0.5, "exponential"), 6, 4000, 8, 2000
    counts = np.zeros((2, layers))
    for half in range(2):
        for step in range(steps):
            mask = keep_mask(
                dropout,
                layers=layers,
                batch=batch,
                step=half * 2000,
                max_steps=max_steps,
                seed=step,
                micro_batch=0,
            )
            assert mask is not None
            counts[half] += (1 - mask.numpy()).sum(1)
    for half in range(2):
        expected = drop_probabilities(dropout, layers, half * 2000, max_steps)
        for layer in range(layers):
            drawn = binomtest(int(counts[half, layer]), batch * steps, expected[layer])
            assert drawn.pvalue > 1e-4, (half, layer, counts[half, layer] / (batch * steps), expected[layer])


def test_draws_differ_by_step_micro_batch_seed_row_and_layer_and_nothing_else() -> None:
    def draw(step: int = 3, seed: int = 1, micro_batch: int = 0) -> torch.Tensor:
        mask = keep_mask(
            LayerDropout(0.9),
            layers=32,
            batch=64,
            step=step,
            max_steps=10,
            seed=seed,
            micro_batch=micro_batch,
        )
        assert mask is not None
        return mask

    torch.manual_seed(0)
    first = draw()
    torch.manual_seed(1)
    torch.testing.assert_close(draw(), first, rtol=0, atol=0)
    for other in (draw(step=4), draw(seed=2), draw(micro_batch=1)):
        assert not torch.equal(other, first)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first[-1], first[-2])
    assert not torch.equal(first[:, 0], first[:, 1])


def test_off_is_none_and_bad_rates_are_refused() -> None:
    assert keep_mask(LayerDropout(), layers=4, batch=2, step=0, max_steps=1, seed=0, micro_batch=0) is None
    with pytest.raises(UserError, match=r"layer_dropout\.rate is 1\.0"):
        LayerDropout(1.0)


def test_a_dropped_layer_is_the_identity_for_its_row_alone() -> None:
    config = ModelConfig(vocab_size=17, layers=3, model_dim=16, heads=2, context=8)
    model = Transformer(config)
    tokens = torch.randint(0, 17, (2, 8), generator=torch.Generator().manual_seed(0))
    keep_LB = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    both = model(tokens, layer_keep_LB=keep_LB)[-1]
    torch.testing.assert_close(both[1], model(tokens)[-1][1])
    shorter = Transformer(config)
    shorter.load_state_dict(model.state_dict())
    del shorter.blocks[1]
    shorter.config = ModelConfig(vocab_size=17, layers=2, model_dim=16, heads=2, context=8)
    torch.testing.assert_close(both[0], shorter(tokens)[-1][0])
