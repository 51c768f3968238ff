"""Cells of decoding and verifying: a few new tokens a row on a long key/value cache, bfloat16.

The work is reading K and V once, so the rate is their bytes over time. Each contender is captured as one CUDA
graph of many calls on caches that rotate past the L2 size: nobody's launches are timed, no cache is warm.
Peers see every slot from every query token (they share no bottom-right mask): a little less work than ours,
which masks the new tokens causally or by a tree.

Shapes: B batch, T query tokens, S cache slots, P pages a row, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lit_eff.bench.attention_cases import random_tree
from lit_eff.bench.attention_peers import (
    SDPA,
    attempt,
    compiled_flex,
    flash4,
    reason_of,
    sdpa,
)
from lit_eff.bench.attention_training import TOLERANCE, raise_if_lost, relative_error
from lit_eff.bench.measure import Replay, Stopwatch, interleaved, peak_extra_bytes
from lit_eff.bench.results import Measurement, timed, with_ratios
from lit_eff.bench.rotated import GRAPH_BYTES, ROTATED_BYTES, WrongError, graph_of
from lit_eff.kernels.attention import attention_reference
from lit_eff.kernels.attention.with_cache import attention_with_cache, attention_with_cache_reference

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
PAGE_SIZES = (16, 64, 256)

Call = Callable[[Tensor, Tensor, Tensor], Tensor]  # q (B, T, H, D), caches (B, S, K, D) -> (B, T, H, D)


@dataclass(frozen=True)
class Contender:
    """``call`` runs it; ``expected(row)`` is the exact output of one batch row, (1, T, H, D) float32."""

    name: str
    call: Callable[[], Call]
    expected: Callable[[int], Tensor]
    ours: bool = False


@dataclass(frozen=True)
class CachedCell:
    batch: int
    slots: int
    queries: int

    @property
    def section(self) -> str:
        return "decode" if self.queries == 1 else "verify"

    @property
    def label(self) -> str:
        tokens = "1 token" if self.queries == 1 else f"{self.queries} tokens"
        return f"{self.batch} x {self.slots // 1024}k, {tokens}"

    @property
    def bytes_read(self) -> int:
        return 2 * 2 * self.batch * self.slots * KV_HEADS * HEAD_DIM

    @property
    def rotations(self) -> int:
        return max(2, math.ceil(ROTATED_BYTES / self.bytes_read))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, and ``rotations`` caches of K and of V."""
        generator = torch.Generator("cuda").manual_seed(0)
        options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
        q_BTHD = torch.randn(self.batch, self.queries, HEADS, HEAD_DIM, **options)
        shape = (self.rotations, self.batch, self.slots, KV_HEADS, HEAD_DIM)
        return q_BTHD, torch.randn(shape, **options), torch.randn(shape, **options)

    @torch.inference_mode()
    def warm(self) -> None:
        """Compile whatever the contenders compile."""
        q_BTHD, k_RBSKD, v_RBSKD = self.tensors()
        for contender in self.contenders(q_BTHD, k_RBSKD[0], v_RBSKD[0]):
            try:
                contender.call()(q_BTHD, k_RBSKD[0], v_RBSKD[0])
            except Exception:  # the run that follows says why
                continue

    def contenders(self, q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> Iterator[Contender]:
        """Ours in each form, then the peers; what is expected is worked out on the tensors given."""
        lengths_B = torch.full((self.batch,), self.slots - self.queries, dtype=torch.int32, device="cuda")

        def exact(row: int, table_BP: Tensor | None = None, tree_BTT: Tensor | None = None) -> Tensor:
            one = slice(row, row + 1)
            k_cache, v_cache = k_BSKD[one], v_BSKD[one]
            options: dict[str, Any] = {}
            if table_BP is not None:
                page_size = self.slots // table_BP.shape[1]
                k_cache, v_cache = pages(k_BSKD, page_size), pages(v_BSKD, page_size)
                options["page_table_BP"] = table_BP[one]
            if tree_BTT is not None:
                options["tree_mask_BTT"] = tree_BTT[one]
            return attention_with_cache_reference(  # type: ignore[return-value]
                q_BTHD[one].float(), k_cache, v_cache, lengths_B[one], **options
            )

        def all_seen(row: int) -> Tensor:
            one = slice(row, row + 1)
            return attention_reference(q_BTHD[one].float(), k_BSKD[one], v_BSKD[one])  # type: ignore[return-value]

        def own(name: str, page_size: int | None = None, tree: Tensor | None = None) -> Contender:
            table_BP = None if page_size is None else self.page_table(page_size)

            def call(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> Tensor:
                if page_size is not None:
                    k_BSKD, v_BSKD = pages(k_BSKD, page_size), pages(v_BSKD, page_size)
                return attention_with_cache(  # type: ignore[return-value]
                    q_BTHD, k_BSKD, v_BSKD, lengths_B, page_table_BP=table_BP, tree_mask_BTT=tree
                )

            return Contender(name, lambda: call, lambda row: exact(row, table_BP, tree), ours=True)

        yield own("ours")
        for page_size in PAGE_SIZES:
            yield own(f"ours, paged {page_size}", page_size)
        tree_BTT = None
        if self.queries > 1:
            generator = torch.Generator().manual_seed(0)
            tree_BTT = random_tree(self.batch, self.queries, generator).to("cuda")
            yield own("ours, tree", tree=tree_BTT)
        for name, backend in SDPA.items():
            yield Contender(name, functools.partial(sdpa, backend), all_seen)
        if tree_BTT is not None:
            mask_B1TS = torch.ones(self.batch, 1, self.queries, self.slots, dtype=torch.bool, device="cuda")
            mask_B1TS[..., -self.queries :] = tree_BTT[:, None]
            for name in ("SDPA cuDNN", "SDPA efficient"):
                call = functools.partial(sdpa, SDPA[name], mask=mask_B1TS)
                yield Contender(f"{name}, tree", call, functools.partial(exact, tree_BTT=tree_BTT))
        yield Contender("FlexAttention", lambda: _flex, all_seen)
        yield Contender("flash-attn 4", lambda: flash4(causal=False), all_seen)

    def page_table(self, page_size: int) -> Tensor:
        """Pages of all rows, shuffled: no two that follow each other in a row lie side by side."""
        count = self.batch * self.slots // page_size
        generator = torch.Generator().manual_seed(0)
        table = torch.randperm(count, generator=generator, dtype=torch.int32)
        return table.reshape(self.batch, -1).to("cuda")

    @torch.inference_mode()
    def run(self, stopwatch: Stopwatch, rounds: int) -> list[Measurement]:
        q_BTHD, k_RBSKD, v_RBSKD = self.tensors()
        calls = max(self.rotations, math.ceil(GRAPH_BYTES / self.bytes_read))
        replays: dict[str, Replay] = {}
        found: dict[str, Measurement] = {}
        for contender in self.contenders(q_BTHD, k_RBSKD[0], v_RBSKD[0]):
            name = contender.name
            found[name] = Measurement(self.section, self.label, name, "forward", "GB/s", contender.ours)
            try:
                with attempt() as caught:
                    call = contender.call()
                    out_BTHD = call(q_BTHD, k_RBSKD[0], v_RBSKD[0])
                for row in {0, self.batch - 1}:
                    error = relative_error(out_BTHD[row : row + 1], contender.expected(row))
                    if not error <= TOLERANCE:
                        raise WrongError(f"wrong: row {row} is off by {error:.1%}")
                extra = peak_extra_bytes(lambda call=call: call(q_BTHD, k_RBSKD[0], v_RBSKD[0]))  # type: ignore[misc]
                found[name] = replace(found[name], extra_bytes=extra)
                turns = [
                    functools.partial(call, q_BTHD, *caches) for caches in zip(k_RBSKD, v_RBSKD, strict=True)
                ]
                replays[name] = Replay(graph_of(turns, calls), call)  # lengths, page tables, masks
            except Exception as error:
                raise_if_lost(error)
                wrong = isinstance(error, WrongError)
                found[name] = replace(found[name], unavailable=reason_of(error, caught), wrong=wrong)
        for name, sample in interleaved(replays, rounds, stopwatch).items():
            found[name] = timed(found[name], sample, self.bytes_read / 1e6, calls)
        return with_ratios(list(found.values()))


def pages(cache_BSKD: Tensor, page_size: int) -> Tensor:
    """The same memory as a pool of pages: (B S / page size, page size, K, D)."""
    return cache_BSKD.view(-1, page_size, *cache_BSKD.shape[2:])


def _flex(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> Tensor:
    tensors = [x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKD)]
    return compiled_flex()(*tensors, enable_gqa=True).transpose(1, 2)


def cells() -> list[CachedCell]:
    return [
        CachedCell(batch, slots, queries)
        for queries in (1, 8)
        for batch, slots in ((1, 8192), (1, 65536), (16, 8192), (64, 4096))
    ]
