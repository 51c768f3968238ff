"""A :class:`~lit_eff.runtime.segments.SegmentRunner` over the torch model: one sequence, row-invariant.

A row's bits must not depend on how many rows share its call, or greedy speculation would differ from greedy
autoregression. torch's CPU products differ between one row and many, so every call computes whole tiles of
``ROW_TILE`` rows, and attention always spans the cache's whole static buffer (masked slots weigh exactly 0).

Shapes: T tokens of one call, C model dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.models.cache import KVCache
from lit_eff.models.transformer import LayerContext, Transformer

ROW_TILE = 16


class TorchRunner:
    """Runs a causal language model segment by segment. Hidden states are float32 NumPy arrays ``(T, C)``.

    The model is put into eval mode and stays there.

    Attributes:
        exit_layers, vocab_size, context: as in :class:`~lit_eff.runtime.segments.SegmentRunner`.

    Raises:
        UserError: for an encoder or a classifier, which generate nothing.
    """

    def __init__(self, model: Transformer) -> None:
        config = model.config
        if not config.causal or config.labels:
            raise UserError("this model is not a causal language model: it cannot generate text")
        self.model = model.eval()
        self.exit_layers = config.exit_layers
        self.vocab_size = config.vocab_size
        self.context = config.context
        weight = model.head_weight(len(self.exit_layers) - 1)
        self._dtype, self._device = weight.dtype, weight.device

    def new_state(self) -> KVCache:
        """An empty cache of one row; the tile of slots past the context takes the last tile's padding."""
        capacity = self.context + ROW_TILE - 1
        return KVCache(self.model.config, 1, capacity, dtype=self._dtype, device=self._device)

    @torch.inference_mode()
    def embed(self, tokens_T: NDArray[np.int64], start: int) -> NDArray[np.float32]:
        """Hidden states ``(T, C)`` of tokens at positions ``start ..``; a look-up, so it needs no tile."""
        tokens_1T = torch.from_numpy(tokens_T).to(self._device)[None]
        positions_1T = torch.arange(start, start + len(tokens_T), device=self._device)[None]
        return _numpy(self.model.embed(tokens_1T, positions_1T)[0])

    @torch.inference_mode()
    def run_segment(self, state: KVCache, e: int, hidden_TC: NDArray[Any], start: int) -> NDArray[np.float32]:
        """Segment ``e`` on tokens at slots ``start ..``; padding writes only slots beyond them."""
        first = self.exit_layers[e - 1] if e else 0

        def run(tile_TC: Tensor, offset: int) -> Tensor:
            slot = start + offset
            context = LayerContext(
                positions_BT=torch.arange(slot, slot + ROW_TILE, device=self._device)[None],
                cache=state,
                starts_B=torch.tensor([slot], device=self._device),
            )
            return self.model.run_layers(tile_TC[None], first, self.exit_layers[e], context)[0]

        return self._in_tiles(hidden_TC, run)

    @torch.inference_mode()
    def propagate(self, state: KVCache, e: int, hidden_TC: NDArray[Any], start: int) -> None:
        """Keys and values of segment ``e``'s layers at slots ``start ..``, all of ``hidden_TC``."""

        def run(tile_TC: Tensor, offset: int) -> Tensor:
            starts_1 = torch.tensor([start + offset], device=self._device)
            layers = self.exit_layers[e - 1], self.exit_layers[e]
            self.model.propagate(tile_TC[None], *layers, state, starts_1)
            return tile_TC

        self._in_tiles(hidden_TC, run)

    @torch.inference_mode()
    def head(self, e: int, hidden_TC: NDArray[Any]) -> NDArray[np.float32]:
        """Logits ``(T, V)`` of exit ``e``."""
        return self._in_tiles(hidden_TC, lambda tile_TC, _: self.model.logits(tile_TC, e))

    @torch.inference_mode()
    def exit_score(self, hidden_TC: NDArray[Any]) -> NDArray[np.float32]:
        """The exit classifier's log-odds ``(T,)``; raises UserError when the model has none."""
        return self._in_tiles(hidden_TC, lambda tile_TC, _: self.model.exit_score(tile_TC))

    def _in_tiles(
        self, hidden_TC: NDArray[Any], function: Callable[[Tensor, int], Tensor]
    ) -> NDArray[np.float32]:
        rows = len(hidden_TC)
        padded_TC = np.zeros((-(-rows // ROW_TILE) * ROW_TILE, hidden_TC.shape[1]), np.float32)
        padded_TC[:rows] = hidden_TC
        tiles = torch.split(torch.from_numpy(padded_TC).to(self._device, self._dtype), ROW_TILE)
        outputs = [function(tile_TC, index * ROW_TILE) for index, tile_TC in enumerate(tiles)]
        return _numpy(torch.cat(outputs)[:rows])


def _numpy(x: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = x.float().cpu().numpy()
    return array
