"""Free-running early-exit generation of many prompts under a whole grid of exit rules, for calibration.

Semantics: greedy :func:`lit_eff.runtime.decode.generate` in ``certified`` mode without stop tokens, for every
prompt and rule. Under the deferred KV policy every emitted token gets the keys and values the full model
would give it, so the model's state depends on the tokens alone, not on the rule that chose them. Rules that
have emitted the same tokens therefore share one *row*, which computes all layers once and lets each rule
take its own exit; a row forks where its rules choose different tokens. That makes a trie of token prefixes
for each prompt, computed once each: its paths are the rules' texts, and its prompt is run once.

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

from lit_eff.decoding.confidence import confidence
from lit_eff.errors import UserError
from lit_eff.models.cache import KVCache
from lit_eff.models.transformer import Transformer
from lit_eff.runtime.exit_rule import ExitRule, Measure

Ints = NDArray[np.int64]
HEAD_ROWS = 256  # rows of logits held at a time


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
        rules: one confidence measure for all.
        batch_size: prompts in flight.
        kept: of the same model, prompts, steps, rules and batch size; a batch is taken from there if it can
            be, and left there once it is generated.
        progress: called with (prompts done, prompts in all).

    Raises:
        UserError: for an empty prompt, one that leaves no room in the context, rules of several measures or
            with thresholds for another number of exits, or a model that yields NaN.
    """
    config = model.config
    longest, exits = max(map(len, prompts), default=0), len(config.exit_layers)
    if min(map(len, prompts), default=0) < 1:
        raise UserError("an empty prompt, or none at all; give each prompt at least one token")
    if longest + steps > config.context:
        raise UserError(
            f"a prompt of {longest} tokens and {steps} more do not fit the context of {config.context}"
        )
    if len({rule.measure for rule in rules}) != 1:
        raise UserError("the exit rules of one run must share one confidence measure")
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
            part = _continue(model, batch, steps, limits_KEN, rules[0].measure)
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
) -> Continuations:
    rules, batch, vocabulary = len(limits_KEN), len(prompts), model.config.vocab_size
    lengths_B = np.array([len(prompt) for prompt in prompts])
    tokens_BT = np.zeros((batch, lengths_B.max()), np.int64)  # padded behind; overwritten before it is seen
    for tokens_T, prompt in zip(tokens_BT, prompts, strict=True):
        tokens_T[: len(prompt)] = prompt
    cache = _ForkingCache(model, batch, int(lengths_B.max()) + steps)
    states_BTC = _forward(model, cache, tokens_BT, np.zeros(batch, np.int64))
    ends_B = torch.from_numpy(lengths_B - 1).to(cache.k.device)
    newest_RC = [x_BTC[torch.arange(batch, device=ends_B.device), ends_B] for x_BTC in states_BTC]

    prompt_R = np.arange(batch)
    row_KB = np.broadcast_to(prompt_R, (rules, batch))
    tokens_KBN = np.empty((rules, batch, steps), np.int64)
    exits_KBN = np.empty_like(tokens_KBN)
    rows_run = 0
    for t in range(steps):
        limits_PE = np.repeat(limits_KEN[:, :, t], batch, axis=0)
        token_P, exit_P = _leave(model, newest_RC, row_KB.ravel(), limits_PE, measure)
        tokens_KBN[:, :, t], exits_KBN[:, :, t] = token_P.reshape(rules, batch), exit_P.reshape(rules, batch)
        if t == steps - 1:
            break
        # One row per distinct (row, next token). Sorted, so a row's first branch stays where it is.
        branches_R, branch_P = np.unique(row_KB.ravel() * vocabulary + token_P, return_inverse=True)
        parent_R, next_R = np.divmod(branches_R, vocabulary)
        forks = np.r_[False, parent_R[1:] == parent_R[:-1]]
        row_R = np.where(forks, len(prompt_R) - 1 + np.cumsum(forks), parent_R)
        cache.fork(parent_R[forks])
        prompt_R = np.concatenate([prompt_R, prompt_R[parent_R[forks]]])
        row_KB = row_R[branch_P].reshape(rules, batch)
        token_R = np.empty_like(prompt_R)
        token_R[row_R] = next_R
        newest_RC = [x[:, 0] for x in _forward(model, cache, token_R[:, None], lengths_B[prompt_R] + t)]
        rows_run += len(token_R)
    return Continuations(tokens_KBN, exits_KBN, rows_run)


def _forward(model: Transformer, cache: KVCache, tokens_RT: Ints, starts_R: Ints) -> list[Tensor]:
    """Hidden states at every exit, each (R, T, C), of tokens at slots ``starts_R ..``."""
    device = cache.k.device
    starts = torch.from_numpy(starts_R).to(device)
    states: list[Tensor] = model(torch.from_numpy(tokens_RT).to(device), cache=cache, starts_B=starts)
    return states


def _leave(
    model: Transformer,
    newest_RC: list[Tensor],
    row_P: Ints,
    limits_PE: NDArray[np.float32],
    measure: Measure,
) -> tuple[Ints, Ints]:
    """Each pair's next token and the exit it comes from; a head is read only for rows where one may leave."""
    token_P, exit_P = np.empty_like(row_P), np.empty_like(row_P)
    inside_P = np.arange(len(row_P))  # pairs that have not left yet
    last = len(newest_RC) - 1
    for e in range(last + 1):
        asking = inside_P if e == last else inside_P[np.isfinite(limits_PE[inside_P, e])]
        if not asking.size:
            continue
        rows, place = np.unique(row_P[asking], return_inverse=True)
        best_R, confidence_R = _read(
            model, newest_RC[e][torch.from_numpy(rows).to(newest_RC[e].device)], e, measure
        )
        leaves = np.full(len(asking), True) if e == last else confidence_R[place] >= limits_PE[asking, e]
        leaving = asking[leaves]
        token_P[leaving], exit_P[leaving] = best_R[place[leaves]], e
        inside_P = np.setdiff1d(inside_P, leaving, assume_unique=True)
    return token_P, exit_P


def _read(
    model: Transformer, hidden_RC: Tensor, e: int, measure: Measure
) -> tuple[Ints, NDArray[np.float32]]:
    """Greedy token and confidence of each row at exit ``e``."""
    best, certain = [], []
    for part_RC in torch.split(hidden_RC, HEAD_ROWS):
        logits_RV = model.logits(part_RC, e)
        best.append(logits_RV.argmax(dim=-1))
        certain.append(confidence(logits_RV, measure))
    best_R, confidence_R = torch.cat(best).cpu().numpy(), torch.cat(certain).cpu().numpy()
    if not np.isfinite(confidence_R).all():
        raise UserError(f"the model yields logits that are not finite at exit {e}; was its training stable?")
    return best_R, confidence_R


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
