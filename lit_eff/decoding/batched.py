"""Free-running early-exit generation of many prompts under a whole grid of exit rules, for calibration.

Semantics: greedy :func:`lit_eff.runtime.decode.generate` in ``certified`` mode without stop tokens, for every
prompt and rule. Under the KV policies that are exact every emitted token gets the keys and values the full
model would give it, so the model's state depends on the tokens alone, not on the rule that chose them. Rules
that have emitted the same tokens therefore share one *row*, which computes all layers once and lets each rule
take its own exit; a row forks where its rules choose different tokens. That makes a trie of token prefixes
for each prompt, computed once each: its paths are the rules' texts, and its prompt is run once.

Under ``propagate`` the state also depends on where tokens left: a row forks where tokens or exits differ, and
each branch's skipped layers get the keys and values of its own exit.

Shapes: B prompts, K rules, N steps, E exits, R rows (prefixes alive), P pairs of prompt and rule, C, V.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_eff.decoding.leaving import leave
from lit_eff.errors import UserError
from lit_eff.models.cache import KVCache
from lit_eff.models.transformer import Transformer
from lit_eff.runtime.confidence import Measure
from lit_eff.runtime.exit_rule import ExitRule

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Continuations:
    """What every rule did with every prompt.

    Attributes:
        tokens_KBN: emitted tokens, int64.
        exits_KBN: the exit index each token came from, int64; the last index is the full model.
        rows_run: token positions run after the prompts: what ``K B (N - 1)`` came down to by sharing.
    """

    tokens_KBN: Ints
    exits_KBN: Ints
    rows_run: int


class Kept(Protocol):
    """Where each batch's continuations are kept, so that an interrupted run can go on."""

    def load(self, first: int, count: int) -> Continuations | None: ...
    def save(self, first: int, part: Continuations) -> None: ...


@torch.inference_mode()
def generate_with_exits(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    steps: int,
    rules: Sequence[ExitRule],
    *,
    batch_size: int = 64,
    kept: Kept | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Continuations:
    """Continue each prompt by exactly ``steps`` greedy tokens under each rule.

    A rule without thresholds (``ExitRule()``) is the full model's own greedy continuation. The model is put
    into eval mode and stays there.

    Args:
        prompts: token ids; lengths may differ.
        rules: one confidence measure and one KV policy for all.
        batch_size: prompts in flight.
        kept: of the same model, prompts, steps, rules and batch size; a batch is taken from there if it can
            be, and left there once it is generated.
        progress: called with (prompts done, prompts in all).

    Raises:
        UserError: for an empty prompt, one that leaves no room in the context, rules of several measures or
            policies, or with thresholds for another number of exits, a measure that the model lacks, or a
            model that yields NaN.
    """
    config = model.config
    longest, exits = max(map(len, prompts), default=0), len(config.exit_layers)
    if min(map(len, prompts), default=0) < 1:
        raise UserError("an empty prompt, or none at all; give each prompt at least one token")
    if longest + steps > config.context:
        raise UserError(
            f"a prompt of {longest} tokens and {steps} more do not fit the context of {config.context}"
        )
    if len({(rule.measure, rule.kv_policy) for rule in rules}) != 1:
        raise UserError("the exit rules of one run must share one confidence measure and one KV policy")
    measure, propagates = rules[0].measure, rules[0].kv_policy == "propagate"
    for rule in rules:
        if rule.thresholds and len(rule.thresholds) not in (exits - 1, exits):
            raise UserError(f"an exit rule has {len(rule.thresholds)} thresholds for {exits - 1} early exits")
    model.eval()
    time_N = np.arange(steps)
    limits = [rule.threshold(e, time_N) for rule in rules for e in range(exits - 1)]
    limits_KEN = np.array(limits, np.float32).reshape(len(rules), exits - 1, steps)
    parts = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        part = None if kept is None else kept.load(start, len(batch))
        if part is None:
            part = _continue(model, batch, steps, limits_KEN, measure, propagates)
            if kept is not None:
                kept.save(start, part)
        parts.append(part)
        if progress is not None:
            progress(start + len(batch), len(prompts))
    return Continuations(
        np.concatenate([part.tokens_KBN for part in parts], axis=1),
        np.concatenate([part.exits_KBN for part in parts], axis=1),
        sum(part.rows_run for part in parts),
    )


def _continue(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    steps: int,
    limits_KEN: NDArray[np.float32],
    measure: Measure,
    propagates: bool,
) -> Continuations:
    rules, batch = len(limits_KEN), len(prompts)
    vocabulary, exits = model.config.vocab_size, len(model.config.exit_layers)
    lengths_B = np.array([len(prompt) for prompt in prompts])
    tokens_BT = np.zeros((batch, lengths_B.max()), np.int64)  # padded behind; overwritten before it is seen
    for tokens_T, prompt in zip(tokens_BT, prompts, strict=True):
        tokens_T[: len(prompt)] = prompt
    cache = _ForkingCache(model, batch, int(lengths_B.max()) + steps)
    newest = torch.arange(batch, device=model.device), _on(model, lengths_B - 1)
    states_RC = [x_BTC[newest] for x_BTC in _forward(model, cache, tokens_BT, np.zeros(batch, np.int64))]

    prompt_R = np.arange(batch)
    row_KB = np.broadcast_to(prompt_R, (rules, batch))
    tokens_KBN = np.empty((rules, batch, steps), np.int64)
    exits_KBN = np.empty_like(tokens_KBN)
    rows_run = 0
    for t in range(steps):
        limits_PE = np.repeat(limits_KEN[:, :, t], batch, axis=0)
        token_P, exit_P = leave(model, states_RC, row_KB.ravel(), limits_PE, measure)
        tokens_KBN[:, :, t], exits_KBN[:, :, t] = token_P.reshape(rules, batch), exit_P.reshape(rules, batch)
        if t == steps - 1:
            break
        # One row per distinct (row, next token, exit where it tells). Sorted, so a row's first branch stays
        # where it is.
        code_P = (row_KB.ravel() * vocabulary + token_P) * exits + (exit_P if propagates else exits - 1)
        branches_R, branch_P = np.unique(code_P, return_inverse=True)
        rest_R, exit_R = np.divmod(branches_R, exits)
        parent_R, next_R = np.divmod(rest_R, vocabulary)
        forks = np.r_[False, parent_R[1:] == parent_R[:-1]]
        row_R = np.where(forks, len(prompt_R) - 1 + np.cumsum(forks), parent_R)
        cache.fork(parent_R[forks])
        prompt_R = np.concatenate([prompt_R, prompt_R[parent_R[forks]]])
        _propagate(model, cache, states_RC, parent_R, row_R, exit_R, lengths_B[prompt_R[row_R]] + t - 1)
        row_KB = row_R[branch_P].reshape(rules, batch)
        token_R = np.empty_like(prompt_R)
        token_R[row_R] = next_R
        states_BTC = _forward(model, cache, token_R[:, None], lengths_B[prompt_R] + t)
        states_RC = [x_R1C[:, 0] for x_R1C in states_BTC]
        rows_run += len(token_R)
    return Continuations(tokens_KBN, exits_KBN, rows_run)


def _forward(model: Transformer, cache: KVCache, tokens_RT: Ints, starts_R: Ints) -> list[Tensor]:
    """Embeddings and hidden states at every exit, each (R, T, C), of tokens at slots ``starts_R ..``."""
    tokens, starts = _on(model, tokens_RT), _on(model, starts_R)
    positions = starts[:, None] + torch.arange(tokens.shape[1], device=model.device)
    states: list[Tensor] = model(tokens, cache=cache, starts_B=starts)
    return [model.embed(tokens, positions), *states]


def _propagate(
    model: Transformer,
    cache: _ForkingCache,
    states_RC: list[Tensor],
    parent_R: Ints,
    row_R: Ints,
    exit_R: Ints,
    slot_R: Ints,
) -> None:
    """Layers that branches skipped get the keys and values of the state their newest token left with."""
    layers = model.config.exit_layers
    for e in np.unique(exit_R[exit_R < len(layers) - 1]).tolist():
        left = exit_R == e
        hidden_RC = states_RC[e + 1][_on(model, parent_R[left])]
        slots, rows = _on(model, slot_R[left]), _on(model, row_R[left])
        model.propagate(hidden_RC[:, None], layers[e], layers[-1], cache, slots, rows)


def _on(model: Transformer, indices: Ints) -> Tensor:
    return torch.from_numpy(indices).to(model.device)


class _ForkingCache(KVCache):
    """A cache whose rows can be duplicated: the first ``rows`` are in use, the others are room to grow."""

    def __init__(self, model: Transformer, rows: int, capacity: int) -> None:
        weight = model.head_weight(0)
        super().__init__(model.config, rows, capacity, dtype=weight.dtype, device=weight.device)
        self.rows = rows

    def view(self, layer: int, slots: int | None = None) -> tuple[Tensor, Tensor]:
        k_BSKD, v_BSKD = super().view(layer, slots)
        return k_BSKD[: self.rows], v_BSKD[: self.rows]

    def fork(self, parents: Ints) -> None:
        """Append a copy of each parent's row."""
        sources = torch.from_numpy(parents).to(self.k.device)
        first, self.rows = self.rows, self.rows + len(parents)
        if self.rows > self.batch:  # doubling keeps the copying in proportion to the rows
            in_use = torch.arange(first, device=self.k.device)
            spare = torch.zeros(max(0, 2 * first - self.rows), dtype=torch.int64, device=self.k.device)
            self.select(torch.cat([in_use, sources, spare]))
        else:
            self.k[:, first : self.rows] = self.k[:, sources]
            self.v[:, first : self.rows] = self.v[:, sources]
