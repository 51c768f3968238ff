"""The launches of sampling, of penalties and of acceptance with their modelled bytes.

Shapes: N rows, B sequences, V vocabulary, H histories, M nodes, R parents, J draws, D depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from lit_eff.kernels.catalogue import Operation
from lit_eff.kernels.sampling.accept_model import AcceptModel
from lit_eff.kernels.sampling.call import Parameters, Selection, accept_launches, sample_launches
from lit_eff.kernels.sampling.facts import drafts_of, rows_of, walks_of
from lit_eff.kernels.sampling.io_model import PenaltyShape, Row, SamplingModel, penalty_traffic
from lit_eff.kernels.sampling.penalty import Penalties, penalty_launch
from lit_eff.kernels.sampling.plan import plan_of
from lit_eff.kernels.sampling.reference import PURPOSES
from lit_eff.kernels.sampling.tree import Tree
from lit_eff.profiling.modelled import ModelledLaunch

SPREAD = 4.0  # of logits
# Values that parameters are drawn from; each first one is off, of temperatures greedy.
TEMPERATURES = (0.0, 0.3, 1.0, 4.0)
TOP_K = (0, 1, 2, 7, 50, 5000)
TOP_P = (1.0, 0.97, 0.9, 0.5, 0.01)
MIN_P = (0.0, 0.02, 0.3, 1.0)


@dataclass(frozen=True)
class SelectionCase:
    """Sequences and which truncations there are; each sequence has parameters of its own, some of them off.

    ``ties``: logits in steps of a quarter. ``broken``: the first row has no distribution.
    """

    sequences: int
    vocabulary: int
    top_k: bool = False
    top_p: bool = False
    min_p: bool = False
    ties: bool = False
    broken: bool = False
    dtype: str = "float32"

    @property
    def element(self) -> torch.dtype:
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    def logits(self, rows: int) -> Tensor:
        """On the CPU whatever the device: the I/O model needs to know."""
        logits_NV = SPREAD * torch.randn(rows, self.vocabulary)
        if self.ties:
            logits_NV = (4 * logits_NV).round() / 4
        if self.broken:
            logits_NV[0] = torch.inf
        return logits_NV.to(self.element)

    def parameters(self) -> Parameters:
        """Likewise."""

        def some(wanted: bool, values: tuple[float, ...], dtype: torch.dtype) -> Tensor | None:
            places_B = torch.randint(len(values), (self.sequences,))
            return torch.tensor(values, dtype=dtype)[places_B] if wanted else None

        temperature_B = some(True, TEMPERATURES, torch.float32)
        assert temperature_B is not None
        return Parameters(
            temperature_B,
            some(self.top_k, TOP_K, torch.int32),
            some(self.top_p, TOP_P, torch.float32),
            some(self.min_p, MIN_P, torch.float32),
            torch.randint(2**62, (self.sequences,)),
            torch.randint(2**34, (self.sequences,)),
        )

    def model(self, rows: list[Row]) -> SamplingModel:
        return SamplingModel(
            self.vocabulary,
            plan_of(self.vocabulary),
            rows,
            self.element.itemsize,
            self.top_k,
            self.top_p,
            self.min_p,
        )


@dataclass(frozen=True)
class SampleCase(SelectionCase):
    """A row a sequence; ``draws`` tokens from each, without replacement."""

    draws: int = 1


@dataclass(frozen=True)
class AcceptCase(SelectionCase):
    """Drafts in a tree, given by each node's parent.

    ``sampled``: the draft's distributions, which are ``near`` the target's, are known. A share ``stray`` of
    the drafts is any number instead.
    """

    parents: tuple[int, ...] = (-1,)
    sampled: bool = True
    near: float = 0.5
    stray: float = 0.0

    @property
    def tree(self) -> Tree:
        return Tree(tuple(self.parents))  # a list, if it comes from JSON


def on(device: torch.device, parameters: Parameters) -> Parameters:
    tensors: dict[str, Any] = {
        name: each if each is None else each.to(device) for name, each in vars(parameters).items()
    }
    return Parameters(**tensors)


def counting_device(device: torch.device) -> torch.device:
    """Where contents can be looked at."""
    return torch.device("cpu") if device.type == "meta" else device


def sampling_launches(case: SampleCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    """The passes that find which tokens are kept, and the draw."""
    logits_NV, parameters, there = case.logits(case.sequences), case.parameters(), counting_device(device)
    purpose = PURPOSES["target"]
    rows = rows_of(logits_NV.to(there), on(there, parameters), draws=case.draws, purpose=purpose)
    model = case.model(rows)
    selection = Selection(logits_NV.to(device), None, on(device, parameters), capability)
    token_NJ = torch.empty(case.sequences, case.draws, dtype=torch.int64, device=device)
    found = sample_launches(selection, token_NJ, torch.empty_like(token_NJ, dtype=torch.float32), purpose)
    modelled = [*model.borders(), model.draw(case.draws)]
    return [ModelledLaunch(*each) for each in zip(found, modelled, strict=True)]


def acceptance_launches(case: AcceptCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    """Borders and totals of all rows, drafts looked up, residuals, the walk, the next token."""
    tree, batch, there = case.tree, case.sequences, counting_device(device)
    nodes, rows = len(tree.parents), [parent + 1 for parent in tree.families]
    target_NV, parameters = case.logits(batch * (nodes + 1)).to(there), on(there, case.parameters())
    draft_NV = target_NV.view(batch, nodes + 1, -1)[:, rows].flatten(0, 1)
    draft_NV = draft_NV + case.near * torch.randn(draft_NV.shape).to(there, draft_NV.dtype)
    drafts_BM = drafts_of(draft_NV, parameters, tree, case.stray)
    given_NV = draft_NV if case.sampled else None
    walks = walks_of(target_NV, given_NV, drafts_BM, tree, parameters)
    found_rows = rows_of(target_NV, parameters)
    found_rows += rows_of(draft_NV, parameters, draft=True) if case.sampled else []
    model = AcceptModel(case.model(found_rows), tree, walks, case.sampled)
    selection = Selection(
        target_NV.to(device),
        None if given_NV is None else given_NV.to(device),
        on(device, parameters),
        capability,
    )
    kept_BD = torch.empty(batch, tree.depth, dtype=torch.int64, device=device)
    count_B = torch.empty(batch, dtype=torch.int32, device=device)
    next_B = torch.empty(batch, dtype=torch.int64, device=device)
    found = accept_launches(selection, drafts_BM.to(device), tree, kept_BD, count_B, next_B)
    return [ModelledLaunch(*each) for each in zip(found, model.launches(), strict=True)]


@dataclass(frozen=True)
class PenaltyCase:
    """``histories``: how many there are, of which each row takes one; 0: each its own.

    ``drafted``: tokens before a row.
    """

    rows: int
    vocabulary: int
    histories: int = 0
    bias: bool = False
    counts: bool = False
    prompt: bool = False
    drafted: int = 0
    repetition: bool = False
    presence: bool = False
    frequency: bool = False
    dtype: str = "float32"


def penalty_launches(case: PenaltyCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    dtype: torch.dtype = getattr(torch, case.dtype)
    count, vocabulary = case.histories or case.rows, case.vocabulary
    # Drawn on the CPU whatever the device: the I/O model needs to know.
    history_N = torch.randint(count, (case.rows,)) if case.histories else None

    def numbers(wanted: bool, dtype: torch.dtype, *size: int) -> Tensor | None:
        return torch.randint(2, size, device=device).to(dtype) if wanted else None

    wide, flat = (count, vocabulary), (count,)
    penalties = Penalties(
        None if history_N is None else history_N.to(device),
        numbers(case.bias, torch.float32, *wide),
        numbers(case.counts, torch.int32, *wide),
        numbers(case.prompt, torch.bool, *wide),
        numbers(case.drafted > 0, torch.int64, case.rows, case.drafted),
        *(
            None if each is None else each + 1
            for each in (
                numbers(wanted, torch.float32, *flat)
                for wanted in (case.repetition, case.presence, case.frequency)
            )
        ),
    )
    logits_NV = torch.randn(case.rows, vocabulary, dtype=dtype, device=device)
    out_NV = torch.empty(case.rows, vocabulary, device=device)
    shape = PenaltyShape(
        vocabulary,
        list(range(case.rows)) if history_N is None else history_N.tolist(),
        case.drafted,
        dtype.itemsize,
        history_bytes=8 * (case.histories > 0),
        bias_bytes=4 * case.bias,
        counts_bytes=4 * case.counts,
        prompt_bytes=case.prompt,
        repetition_bytes=4 * case.repetition,
        presence_bytes=4 * case.presence,
        frequency_bytes=4 * case.frequency,
    )
    launch = penalty_launch(logits_NV, penalties, out_NV)
    return [ModelledLaunch(launch, penalty_traffic(shape, plan_of(vocabulary)))]


def coin(random: Random) -> bool:
    return random.random() < 0.5


def draw_selection(random: Random, most: int) -> dict[str, Any]:
    """Arguments of a `SelectionCase` of up to ``most`` tokens."""
    truncations = {name: coin(random) for name in ("top_k", "top_p", "min_p", "ties")}
    return {
        "sequences": random.randint(1, 4),
        "vocabulary": random.randint(1, most),
        **truncations,
        "broken": random.random() < 0.1,
        "dtype": random.choice(("float16", "float32")),
    }


def draw_sample(random: Random) -> SampleCase:
    return SampleCase(**draw_selection(random, 5000), draws=random.choice((1, 1, 2, 5)))


def draw_acceptance(random: Random) -> AcceptCase:
    parents = tuple(random.randint(-1, node - 1) for node in range(random.randint(1, 5)))
    return AcceptCase(
        **draw_selection(random, 3000),
        parents=parents,
        sampled=coin(random),
        near=random.choice((0.0, 0.5, 5.0)),
        stray=random.choice((0.0, 0.0, 0.3)),
    )


def draw_penalty(random: Random) -> PenaltyCase:
    histories = random.choice((0, 1, 3))
    flags = {name: coin(random) for name in ("bias", "counts", "prompt", "repetition", "presence")}
    return PenaltyCase(
        random.randint(1, 4),
        random.randint(1, 5000),
        histories,
        drafted=random.choice((0, 1, 4)),
        frequency=coin(random),
        dtype=random.choice(("float16", "float32")),
        **flags,
    )


ALL: dict[str, Any] = {"top_k": True, "top_p": True, "min_p": True}
EVERY_PENALTY: dict[str, Any] = dict.fromkeys(
    ("bias", "counts", "prompt", "repetition", "presence", "frequency"), True
)
FORK = (-1, -1, 0, 0, 1, 1, 1)

OPERATIONS = (
    Operation(
        name="sampling",
        case=SampleCase,
        small=(
            SampleCase(1, 1),
            SampleCase(5, 333),
            SampleCase(5, 333, top_k=True, dtype="float16"),
            SampleCase(5, 333, top_p=True),
            SampleCase(5, 333, min_p=True, draws=3),
            SampleCase(5, 1025, **ALL),
            SampleCase(5, 2048, **ALL, ties=True),
            SampleCase(3, 2049, **ALL, draws=4),
            SampleCase(3, 5000, top_k=True, top_p=True, dtype="float16"),
            SampleCase(3, 5000, top_p=True, broken=True),
            SampleCase(4, 100, top_k=True, ties=True, broken=True, draws=2),
            SampleCase(6, 40, **ALL, draws=50),
        ),
        typical=SampleCase(64, 128256, **ALL),
        draw=draw_sample,
        launches=sampling_launches,
    ),
    Operation(
        name="acceptance",
        case=AcceptCase,
        small=(
            AcceptCase(1, 1),
            AcceptCase(3, 333),
            AcceptCase(2, 333, **ALL, parents=(-1, 0, 1)),
            AcceptCase(3, 333, sampled=False, parents=(-1, 0, 1, 2)),
            AcceptCase(2, 333, **ALL, ties=True, parents=(-1, -1, -1)),
            AcceptCase(1, 333, top_p=True, parents=FORK, near=5.0),
            AcceptCase(1, 333, top_k=True, parents=FORK, sampled=False),
            AcceptCase(2, 2100, parents=(-1, -1), near=5.0),
            AcceptCase(1, 2100, **ALL, parents=(-1, 0), near=0.0, dtype="float16"),
            AcceptCase(2, 100, min_p=True, parents=(-1, -1, 1, -1), stray=0.5),
            AcceptCase(2, 100, parents=(-1, 0, 1), sampled=False, stray=0.5, broken=True),
            AcceptCase(2, 5, parents=(-1,) * 4, near=5.0, broken=True),
        ),
        typical=AcceptCase(16, 128256, **ALL, parents=(-1, 0, 1, 2), dtype="bfloat16"),
        draw=draw_acceptance,
        launches=acceptance_launches,
    ),
    Operation(
        name="penalties",
        case=PenaltyCase,
        small=(
            PenaltyCase(1, 1),
            PenaltyCase(3, 333, bias=True),
            PenaltyCase(3, 333, counts=True, presence=True, dtype="float16"),
            PenaltyCase(3, 333, counts=True, repetition=True),
            PenaltyCase(3, 333, counts=True, prompt=True, repetition=True),
            PenaltyCase(3, 333, prompt=True, frequency=True),
            PenaltyCase(4, 333, 2, bias=True, repetition=True),
            PenaltyCase(4, 333, 6, **EVERY_PENALTY),
            PenaltyCase(3, 333, drafted=4, presence=True),
            PenaltyCase(3, 2500, drafted=2, frequency=True, dtype="float16"),
            PenaltyCase(2, 5000, 1, drafted=3, **EVERY_PENALTY),
            PenaltyCase(5, 1024, 9, drafted=1, **EVERY_PENALTY, dtype="float16"),
        ),
        typical=PenaltyCase(64, 128256, **EVERY_PENALTY, dtype="bfloat16"),
        draw=draw_penalty,
        launches=penalty_launches,
    ),
)
