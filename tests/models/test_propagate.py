"""What propagation writes is what a layer would write of tokens that enter it, for every family."""

from __future__ import annotations

import pytest
import torch

from lit_eff.models.cache import KVCache
from lit_eff.models.transformer import LayerContext
from tests.export.models import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_writes_what_it_writes_of_tokens_that_enter_it(family: str) -> None:
    model = tiny_model(family).double()
    hidden_BTC = torch.randn(2, 3, 64, dtype=torch.float64)
    starts_B = torch.tensor([5, 0])
    positions_BT = starts_B[:, None] + torch.arange(3)
    with torch.inference_mode():
        ours, theirs = (KVCache(model.config, 4, 12, dtype=torch.float64) for _ in "ab")
        # Rows 3 and 1 of a cache of four.
        model.propagate(hidden_BTC, 1, 4, ours, starts_B, torch.tensor([3, 1]))
        for layer in (1, 2, 3):
            one = KVCache(model.config, 2, 12, dtype=torch.float64)
            context = LayerContext(positions_BT, cache=one, starts_B=starts_B)
            model.run_layers(hidden_BTC, layer, layer + 1, context)
            theirs.k[layer, [3, 1]], theirs.v[layer, [3, 1]] = one.k[layer], one.v[layer]
    torch.testing.assert_close(ours.k, theirs.k)
    torch.testing.assert_close(ours.v, theirs.v)
    assert ours.k[1:, [1, 3]].abs().sum() > 0
