"""Generated cases of attention: every feature alone and in pairs, head dims, lengths, mixtures.

The list is the same in every run and on every machine: seeds hang on a case's name.

Shapes: B batch, T query length, S key length, N packed queries, M packed keys, H query heads, K kv heads,
D head dim.
"""

from __future__ import annotations

import functools
import itertools
import random
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

DTYPES = ("bfloat16", "float16", "float32")
HEAD_DIMS = (16, 24, 32, 40, 48, 64, 72, 80, 96, 112, 128, 160, 192, 224, 256)
# What a feature sets; GROUPS lists those of which a case takes at most one.
FEATURES: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "window": {"window": 23},
    "grouped": {"heads": 4, "kv_heads": 2},
    "one kv head": {"heads": 3, "kv_heads": 1},
    "documents": {"documents": 3},
    "starts": {"starts": True, "queries": 37, "keys": 150},
    "packed": {"packed": ((70, 70), (0, 5), (33, 64), (1, 1), (17, 0))},
    "softcap": {"softcap": 3.0},
    "sinks": {"sinks": True},
    "alibi": {"alibi": True},
    "dropout": {"dropout_p": 0.25},
    "strided": {"strided": True},
    "lse gradient": {"lse_gradient": True},
    "more keys": {"queries": 65, "keys": 190},
    "fewer keys": {"queries": 150, "keys": 77},
    "padded head dim": {"head_dim": 40},
}
GROUPS = (
    {"grouped", "one kv head"},
    {"documents", "packed"},
    {"starts", "packed", "more keys", "fewer keys"},
)
LENGTHS = (0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 257, 513)
MIXED_LENGTHS: tuple[tuple[int, int], ...] = (
    (0, 64),
    (64, 0),
    (1, 0),
    (0, 1),
    (1, 257),
    (257, 1),
    (63, 65),
    (65, 63),
    (127, 513),
    (513, 127),
)
MIXED_LENGTHS += ((16, 1024), (129, 1023), (777, 1111), (1111, 777), (2, 129), (1024, 1024))
VARIANTS = (
    {"batch": 1},
    {"batch": 3, "queries": 61, "keys": 61},
    {"queries": 129, "keys": 131},
    {"window": 5},
)
MIXTURES = 60


@dataclass(frozen=True)
class AttentionCase:
    """One call. ``packed`` holds (queries, keys) of each sequence and replaces batch, queries and keys."""

    family: str
    features: tuple[str, ...] = ()
    variant: int = 0
    batch: int = 2
    queries: int = 128
    keys: int = 128
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 64
    dtype: str = "bfloat16"
    causal: bool = False
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    alibi: bool = False
    dropout_p: float = 0.0
    documents: int = 0
    starts: bool = False
    packed: tuple[tuple[int, int], ...] = field(default=())
    strided: bool = False
    lse_gradient: bool = False

    @property
    def name(self) -> str:
        words = [
            self.family,
            *self.features,
            f"{self.queries}x{self.keys}",
            f"dim {self.head_dim}",
            self.dtype,
        ]
        return ", ".join([*words, *([f"variant {self.variant}"] if self.variant else [])])

    @property
    def cost(self) -> int:
        """Pairs of a query and a key, over heads: what the interpreter's time hangs on."""
        pairs = sum(t * s for t, s in self.packed) if self.packed else self.batch * self.queries * self.keys
        return pairs * self.heads

    def for_interpreter(self) -> AttentionCase:
        """One batch row of it; float16 for bfloat16, which Triton's interpreter multiplies wrongly."""
        return replace(self, batch=1, dtype="float16" if self.dtype == "bfloat16" else self.dtype)

    def inputs(self, device: str) -> AttentionInputs:
        """The tensors and options of the call, drawn on the CPU, so the same on every device."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))
        dtype: torch.dtype = getattr(torch, self.dtype)
        rows = (self.batch, self.queries), (self.batch, self.keys)
        options: dict[str, Any] = {"causal": self.causal, "window": self.window, "softcap": self.softcap}
        if self.packed:
            ends = torch.tensor([(0, 0), *self.packed], dtype=torch.int32).cumsum(0, dtype=torch.int32)
            rows = (1, int(ends[-1, 0])), (1, int(ends[-1, 1]))
            options["cu_seqlens_q"], options["cu_seqlens_k"] = (
                each.contiguous().to(device) for each in ends.T
            )
        draw = functools.partial(torch.randn, generator=generator)
        q = draw(*rows[0], self.heads, self.head_dim)
        k, v = (draw(*rows[1], self.kv_heads, self.head_dim) for _ in range(2))
        tensors = [_strided(x.to(dtype)) if self.strided else x.to(dtype) for x in (q, k, v)]
        if self.sinks:
            options["sinks"] = draw(self.heads).to(device)
        if self.alibi:
            slopes = 2.0 ** (-8.0 * torch.arange(1, self.heads + 1) / self.heads)
            options["alibi"] = slopes.to(device)
        if self.dropout_p:
            options["dropout_p"], options["seed"] = self.dropout_p, 1234
        if self.documents:
            for name, (batch, count) in zip(("documents_BT", "key_documents_BS"), rows, strict=True):
                ids = torch.randint(0, self.documents, (batch, count), generator=generator)
                options[name] = ids.sort(dim=1).values.to(device)
        if self.starts:
            starts = torch.randint(0, self.keys - self.queries + 1, (self.batch,), generator=generator)
            options["starts_B"] = starts.to(device)
        lse_rows = (rows[0][0], self.heads, rows[0][1])
        return AttentionInputs(
            [x.to(device) for x in tensors],
            {name: value for name, value in options.items() if value is not None},
            dout=draw(q.shape).to(device, dtype),
            dlse=draw(lse_rows).to(device) if self.lse_gradient else None,
        )


@dataclass
class AttentionInputs:
    """q (B, T, H, D), k and v (B, S, K, D); packed sequences with B = 1. ``options`` by argument name."""

    tensors: list[Tensor]
    options: dict[str, Any]
    dout: Tensor
    dlse: Tensor | None


def _strided(x: Tensor) -> Tensor:
    """The same values as a slice of something larger (heads before rows, gaps), NaN all around."""
    batch, rows, heads, head_dim = x.shape
    around = torch.full((batch, heads, rows + 3, 2, head_dim + 8), torch.nan, dtype=x.dtype)
    inside = around[:, :, 1 : rows + 1, 1, :head_dim].transpose(1, 2)
    inside.copy_(x)
    return inside


def _case(family: str, features: tuple[str, ...], **more: Any) -> AttentionCase:
    settings: dict[str, Any] = {}
    for name in features:
        settings |= FEATURES[name]
    return AttentionCase(family, features, **{**settings, **more})


def _compatible(features: tuple[str, ...]) -> bool:
    return all(len(group & set(features)) < 2 for group in GROUPS)


@functools.cache
def cases() -> tuple[AttentionCase, ...]:
    """All of them, each under a name of its own."""
    rng = random.Random(0)
    dims, kinds = itertools.cycle((64, 128, 32)), itertools.cycle((0, 1, 0, 0, 2))
    found = [_case("plain", (), dtype=dtype) for dtype in DTYPES]
    found += [_case("alone", (name,), dtype=dtype) for name in FEATURES for dtype in DTYPES]
    for pair in filter(_compatible, itertools.combinations(FEATURES, 2)):
        head_dim = {} if "padded head dim" in pair else {"head_dim": next(dims)}
        found.append(_case("pair", pair, dtype=DTYPES[next(kinds)], **head_dim))
    for index, (width, dtype) in enumerate(itertools.product(HEAD_DIMS, DTYPES)):
        head_features = ("causal",) if index % 2 else ("causal", "grouped")
        found.append(_case("head dim", head_features, dtype=dtype, head_dim=width, queries=130, keys=130))
    lengths = [(length, length) for length in LENGTHS] + list(MIXED_LENGTHS)
    for (queries, keys), features in itertools.product(
        lengths, [(), ("causal",), ("causal", "grouped", "sinks")]
    ):
        found.append(_case("length", features, queries=queries, keys=keys))
    names = list(FEATURES)
    mixtures: set[tuple[str, ...]] = set()
    while len(mixtures) < MIXTURES:
        chosen = tuple(sorted(rng.sample(names, rng.choice((3, 4, 5))), key=names.index))
        if chosen in mixtures or not _compatible(chosen):
            continue
        mixtures.add(chosen)
        more = {"dtype": DTYPES[next(kinds)], "head_dim": next(dims)}
        fixed = {"starts", "packed", "more keys", "fewer keys"} & set(chosen)
        for number, changes in enumerate(VARIANTS):
            changed = {name: value for name, value in changes.items() if not fixed or name == "batch"}
            if (number and not changed) or ("window" in changes and "window" not in chosen):
                continue
            found.append(_case("mixture", chosen, variant=number, **{**more, **changed}))
    return tuple(found)


def random_tree(batch: int, queries: int, generator: torch.Generator) -> Tensor:
    """Tree masks of drafts, bool (B, T, T): query t sees itself and its ancestors, one earlier query each."""
    mask_BTT = torch.zeros(batch, queries, queries, dtype=torch.bool)
    for b in range(batch):
        for t in range(queries):
            if t:
                parent = int(torch.randint(0, t, (), generator=generator))
                mask_BTT[b, t] = mask_BTT[b, parent]
            mask_BTT[b, t, t] = True
    return mask_BTT
