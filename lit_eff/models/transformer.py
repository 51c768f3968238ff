"""The early-exit transformer: embed, layers, and a head at every exit.

Notable features:
- one class for the Llama/Qwen and GPT-2 families and BERT-type encoders, chosen by :class:`ModelConfig`
- ``run_layers`` runs any span of layers, so training, drafting, verifying and export share one path
- masks and rotary tables are made once per forward pass, not once per layer
- a KV cache may be at different depths in different layers (``models/cache.py``)

Shapes: B batch, T query length, S key slots, C model dim, V vocabulary (or labels), E exits, L layers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_eff.errors import UserError
from lit_eff.models import counting
from lit_eff.models.attention_backend import BackendChoice, choose_backend, plan_attention
from lit_eff.models.block import Block, LayerInputs
from lit_eff.models.cache import KVCache
from lit_eff.models.config import AttentionBackend, ModelConfig
from lit_eff.models.heads import Head, exit_score, pool
from lit_eff.models.layers import init_weights, make_norm, rotary_table

log = logging.getLogger(__name__)


@dataclass
class LayerContext:
    """What the layers need beside the hidden state.

    Attributes:
        positions_BT: int64 positions, (B, T), or (1, T) when all rows agree.
        documents_BT: ids; tokens attend only within equal ids of their row. Padding has id -1 and sees only
            other padding.
        cache: keys and values of earlier tokens; needs ``starts_B``.
        starts_B: int64, cache slot of each row's first query token (in a language model, slot == position).
        key_slots: read only this many leading cache slots; the caller knows that no query reaches further.
        layer_keep_LB: layer dropout: 0/1 float per layer and row; a dropped layer is its row's identity.
    """

    positions_BT: Tensor
    documents_BT: Tensor | None = None
    cache: KVCache | None = None
    starts_B: Tensor | None = None
    key_slots: int | None = None
    layer_keep_LB: Tensor | None = None


class Embeddings(nn.Module):
    """Token embedding, plus learned positions, segment types, norm and dropout where the family has them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.tokens = nn.Embedding(config.vocab_size, config.model_dim)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.context, config.model_dim) if learned else None
        self.types = nn.Embedding(config.token_types, config.model_dim) if config.token_types else None
        self.norm = make_norm(config) if config.embedding_norm else None

    def forward(self, tokens_BT: Tensor, positions_BT: Tensor, token_types_BT: Tensor | None) -> Tensor:
        x_BTC: Tensor = self.tokens(tokens_BT)
        if self.positions is not None:
            x_BTC = x_BTC + self.positions(positions_BT)
        if self.types is not None:
            x_BTC = x_BTC + (self.types.weight[0] if token_types_BT is None else self.types(token_types_BT))
        if self.norm is not None:
            x_BTC = self.norm(x_BTC)
        return F.dropout(x_BTC, self.dropout, self.training) if self.dropout else x_BTC


class Transformer(nn.Module):
    """A transformer with an exit head after each layer count in ``config.exit_layers``.

    An exit index ``e`` counts from 0 into ``config.exit_layers``; the last index is the full model.

    Attributes:
        checkpoint_blocks: recompute each layer in the backward pass instead of keeping its activations.

    Raises:
        UserError: an attention backend was asked for that cannot run here.
    """

    def __init__(self, config: ModelConfig, *, attention_backend: AttentionBackend = "auto") -> None:
        super().__init__()
        self.config = config
        self.checkpoint_blocks = False
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.layers))
        own = () if config.exits.head == "shared" else config.exits.layers
        self.exit_heads = nn.ModuleList(Head(config, config.exits.head) for _ in own)
        self.head = Head(config)
        self.exit_classifier = nn.Linear(config.model_dim, 1) if config.exits.classifier else None
        self._requested_backend = attention_backend
        self._backend: tuple[str, BackendChoice] | None = None
        self._compiled = False
        # A model is built on the CPU and then moved, so a CUDA request is judged by what the machine has.
        likely = "cuda" if torch.cuda.is_available() else "cpu"
        choose_backend(config, likely, attention_backend)
        self.init_weights()

    # --- running -------------------------------------------------------------------------------------------

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor, token_types_BT: Tensor | None = None) -> Tensor:
        """Hidden state before the first layer, (B, T, C); positions are (B, T) or (1, T) int64."""
        hidden_BTC: Tensor = self.embeddings(tokens_BT, positions_BT, token_types_BT)
        return hidden_BTC

    def run_layers(self, hidden_BTC: Tensor, start: int, stop: int, context: LayerContext) -> Tensor:
        """Layers ``start`` to ``stop - 1`` (0-based), (B, T, C) to (B, T, C)."""
        inputs = self._layer_inputs(hidden_BTC, context)
        return self._run(hidden_BTC, start, stop, inputs, context.layer_keep_LB)

    def propagate(
        self,
        hidden_BTC: Tensor,
        start: int,
        stop: int,
        cache: KVCache,
        starts_B: Tensor,
        rows_B: Tensor | None = None,
    ) -> None:
        """Keys and values of layers ``start`` to ``stop - 1`` at slots ``starts_B ..``, of one hidden state.

        What CALM (Schuster et al. 2022, section 3.4) gives the layers that a token skipped: each applies its
        own norm, W_K and W_V to the state that the token left with. ``rows_B``: as in :meth:`KVCache.write`.
        """
        cos, sin = None, None
        if self.config.positions == "rope":
            positions_BT = starts_B[:, None] + torch.arange(hidden_BTC.shape[1], device=starts_B.device)
            cos, sin = rotary_table(self.config, positions_BT, hidden_BTC.dtype)
        for index in range(start, stop):
            block = self.blocks[index]
            assert isinstance(block, Block)
            cache.write(index, *block.keys_values(hidden_BTC, cos, sin), starts_B, rows_B)

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        token_types_BT: Tensor | None = None,
        layer_keep_LB: Tensor | None = None,
        cache: KVCache | None = None,
        starts_B: Tensor | None = None,
        exits: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Hidden states (B, T, C) at the asked exit indices (default all), shallow to deep.

        Layers beyond the deepest asked exit do not run. ``positions_BT`` defaults to 0..T-1, or with a cache
        to ``starts_B`` onwards. See :class:`LayerContext` for the rest.

        Raises:
            UserError: more tokens than learned positions; an exit index that does not exist.
        """
        exit_layers = self.config.exit_layers
        wanted = range(len(exit_layers)) if exits is None else sorted(set(exits))
        if not wanted or wanted[0] < 0 or wanted[-1] >= len(exit_layers):
            raise UserError(f"exit indices {list(wanted)}; expected some of 0 to {len(exit_layers) - 1}")
        if positions_BT is None:
            positions_BT = self._default_positions(tokens_BT, starts_B)
        context = LayerContext(positions_BT, documents_BT, cache, starts_B, layer_keep_LB=layer_keep_LB)
        hidden_BTC = self.embed(tokens_BT, positions_BT, token_types_BT)
        inputs = self._layer_inputs(hidden_BTC, context)
        states: list[Tensor] = []
        done = 0
        for exit_index in wanted:
            hidden_BTC = self._run(hidden_BTC, done, exit_layers[exit_index], inputs, layer_keep_LB)
            done = exit_layers[exit_index]
            states.append(hidden_BTC)
        return states

    def _default_positions(self, tokens_BT: Tensor, starts_B: Tensor | None) -> Tensor:
        length = tokens_BT.shape[1]
        if self.config.positions == "learned" and length > self.config.context:
            raise UserError(
                f"{length} tokens in a row, but this model has {self.config.context} learned positions; "
                "shorten the input"
            )
        index_1T = torch.arange(length, device=tokens_BT.device)[None]
        return index_1T if starts_B is None else starts_B[:, None] + index_1T

    def _layer_inputs(self, hidden_BTC: Tensor, context: LayerContext) -> LayerInputs:
        key_slots = None
        if context.cache is not None:
            if context.starts_B is None:
                raise UserError("a KV cache needs starts_B, the slot of each row's first query token")
            key_slots = context.key_slots or context.cache.capacity
        plan = plan_attention(
            self.config,
            self.attention_backend.name,
            hidden_BTC,
            documents_BT=context.documents_BT,
            starts_B=context.starts_B if context.cache is not None else None,
            key_slots=key_slots,
            static=self._compiled,
            masked=self.attention_backend.masked,
        )
        cos, sin = None, None
        if self.config.positions == "rope":
            cos, sin = rotary_table(self.config, context.positions_BT, hidden_BTC.dtype)
        return LayerInputs(plan, cos, sin, context.cache, context.starts_B, key_slots)

    def _run(
        self, hidden_BTC: Tensor, start: int, stop: int, inputs: LayerInputs, layer_keep_LB: Tensor | None
    ) -> Tensor:
        recompute = self.checkpoint_blocks and self.training and torch.is_grad_enabled()
        for index in range(start, stop):
            keep_B = None if layer_keep_LB is None else layer_keep_LB[index]
            block = self.blocks[index]
            if recompute:
                hidden_BTC = checkpoint(block, hidden_BTC, inputs, keep_B, use_reentrant=False)
            else:
                hidden_BTC = block(hidden_BTC, inputs, keep_B)
        return hidden_BTC

    # --- heads ---------------------------------------------------------------------------------------------

    def logits(self, hidden: Tensor, exit_index: int, *, documents_BT: Tensor | None = None) -> Tensor:
        """Head ``exit_index`` on a hidden state.

        A language model takes any leading dimensions, (..., C) to (..., V). A classifier takes the states of
        whole sequences, (B, T, C), pools the tokens with ``documents_BT >= 0``, and gives (B, labels).
        """
        if self.config.labels:
            hidden = pool(hidden, self.config.pooling, documents_BT)
        return self.project(self.head_norm(hidden, exit_index), exit_index)

    def exit_score(self, hidden: Tensor, *, documents_BT: Tensor | None = None) -> Tensor:
        """The exit classifier's log-odds that a hidden state at any exit may leave; see :func:`exit_score`.

        Shapes as in :meth:`logits`, less the last dimension: a language model takes (..., C) to (...), a
        classifier (B, T, C) to (B,). At least float32; the confidence is its sigmoid.

        Raises:
            UserError: the model has no exit classifier.
        """
        if self.exit_classifier is None:
            raise UserError("this model has no exit classifier; train one with recipes/exit_classifier.yaml")
        if self.config.labels:
            hidden = pool(hidden, self.config.pooling, documents_BT)
        return exit_score(hidden, self.exit_classifier)

    def head_norm(self, hidden: Tensor, exit_index: int) -> Tensor:
        """All of a head but its output matrix: MLP block, norm, transform; (..., C) to (..., C)."""
        head = self._head(exit_index)
        if head.block is not None:
            hidden = head.block(hidden)
        hidden = head.norm(hidden)
        transform = head.transform if head.transform is not None else self.head.transform
        return hidden if transform is None else transform(hidden)

    def head_weight(self, exit_index: int) -> Tensor:
        """The output matrix (V, C) that head ``exit_index`` reads."""
        for head in (self._head(exit_index), self.head):
            if head.output is not None:
                return head.output.weight
        return self.embeddings.tokens.weight

    def head_bias(self, exit_index: int) -> Tensor | None:
        """The output bias (V,) of head ``exit_index``, if the model has one."""
        for head in (self._head(exit_index), self.head):
            if head.output is not None:
                return head.output.bias
        return self.head.bias

    def project(self, normed: Tensor, exit_index: int) -> Tensor:
        """Logits from what :meth:`head_norm` returned: output matrix, bias, softcap."""
        logits = F.linear(normed, self.head_weight(exit_index), self.head_bias(exit_index))
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _head(self, exit_index: int) -> Head:
        last = len(self.config.exit_layers) - 1
        if not 0 <= exit_index <= last:
            raise UserError(f"exit index {exit_index}; expected 0 to {last}")
        if exit_index == last or self.config.exits.head == "shared":
            return self.head
        head = self.exit_heads[exit_index]
        assert isinstance(head, Head)
        return head

    # --- set-up --------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.embeddings.tokens.weight.device

    @property
    def attention_backend(self) -> BackendChoice:
        """The attention form in use and why; chosen at the first use on a device and logged."""
        kind = self.device.type
        if self._backend is None or self._backend[0] != kind:
            choice = choose_backend(self.config, self.device, self._requested_backend)
            log.info("attention backend: %s (%s)", choice.name, choice.reason)
            self._backend = (kind, choice)
        return self._backend[1]

    def init_weights(self) -> None:
        """Fresh weights (GPT-2's scheme, ``config.init_std``); also fills a model made on the meta device."""
        init_weights(self, self.config.init_std)
        if self.config.norm_position == "pre":
            scaled = self.config.init_std / (2 * self.config.layers) ** 0.5
            for name, weight in self.blocks.named_parameters():
                if name.endswith(("attention.output.weight", "mlp.down.weight")):
                    nn.init.normal_(weight, std=scaled)

    def compile_blocks(self, **options: Any) -> None:
        """``torch.compile`` each layer in place (parameter names stay); ``options`` go to ``torch.compile``.

        Layers share one graph. Packed documents then use a dense mask, because a plan that follows each
        batch's document lengths would compile anew every step.
        """
        self._compiled = True
        for block in self.blocks:
            block.compile(**options)

    # --- counting ------------------------------------------------------------------------------------------

    def parameter_count(self, *, embeddings: bool = True, trainable: bool = False) -> int:
        """Parameters, tied ones once; without the embedding tables, or only those that are trained."""
        return counting.parameter_count(self, embeddings=embeddings, trainable=trainable)

    def flops_per_token(self, context: int, exits: Sequence[int] | None = None) -> float:
        """Forward floating-point operations a token; see :func:`lit_eff.models.counting.flops_per_token`."""
        return counting.flops_per_token(self.config, context, exits)
