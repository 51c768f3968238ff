"""The decode step's launches with their modelled bytes: a launch a phase, or all phases in one.

Shapes: L layers, C model dim, M MLP inner width, H query heads, K kv heads, D head dim, V vocabulary, N rows,
B sequences, S cache slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor

from lit_eff.kernels.catalogue import Operation
from lit_eff.kernels.decode_step.arguments import Rows, Shape, Weights
from lit_eff.kernels.decode_step.call import PHASES, cache_of, new_work, step_launches
from lit_eff.kernels.decode_step.io_model import Step, step_flops
from lit_eff.kernels.decode_step.plan import Form, Plan, plan_of
from lit_eff.kernels.device import multiprocessors
from lit_eff.profiling.launch import Launch
from lit_eff.profiling.modelled import ModelledLaunch

H100_PROCESSORS = 132


@dataclass(frozen=True)
class StepCase:
    """A model's sizes and ``rows`` of its ``sequences``, each at a slot of its own choice.

    ``keys`` are the slots of a chunk of attention; ``programs`` 0: as many as the device (without one, an
    H100) has multiprocessors. ``least``: the first slot that a row may be at.
    """

    rows: int
    channels: int = 96
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    inner: int = 112
    layers: int = 2
    vocabulary: int = 50
    sequences: int = 3
    slots: int = 70
    keys: int = 512
    programs: int = 5
    least: int = 0
    dtype: str = "float16"

    @property
    def element(self) -> torch.dtype:
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    @property
    def shape(self) -> Shape:
        return Shape(
            self.layers,
            self.channels,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.inner,
            self.vocabulary,
        )

    def plan(self, device: torch.device, capability: int, form: Form) -> Plan:
        processors = self.programs or multiprocessors(device, otherwise=H100_PROCESSORS)
        plan = plan_of(self.shape.qkv // 2, self.channels, self.inner, processors, capability)
        return replace(plan, form=form, keys=self.keys)


def draw(random: Random) -> StepCase:
    kv_heads = random.randint(1, 2)
    return StepCase(
        random.choice((1, 3, 17, random.randint(1, 20))),
        16 * random.randint(1, 8),
        kv_heads * random.randint(1, 3),
        kv_heads,
        random.choice((16, 32)),
        16 * random.randint(1, 10),
        random.randint(1, 2),
        slots=random.randint(1, 300),
        keys=random.choice((64, 128, 512)),
        programs=random.randint(1, 7),
        dtype=random.choice(("float16", "float32")),
    )


def launches(case: StepCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    """Embedding, the phases of each layer, the last norm."""
    found, step = _drawn(case, device, capability, "launches")
    flops = step_flops(case.shape, step.positions)
    phases = [
        ("embed", 0),
        *((name, layer) for layer in range(case.layers) for name in PHASES),
        ("normed", 0),
    ]
    return [
        ModelledLaunch(launch, step.phase_traffic(*phase), flops.get(phase[0], 0))
        for launch, phase in zip(found, phases, strict=True)
    ]


def persistent_launches(case: StepCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    """One launch, whose programs wait for one another."""
    (found,), step = _drawn(case, device, capability, "persistent")
    flops = case.layers * sum(step_flops(case.shape, step.positions).values())
    return [ModelledLaunch(found, step.traffic(PHASES), flops)]


def _drawn(case: StepCase, device: torch.device, capability: int, form: Form) -> tuple[list[Launch], Step]:
    shape, plan, count = case.shape, case.plan(device, capability, form), case.rows

    # Drawn on the CPU whatever the device: the I/O model needs to know. First, to be the same on all.
    token_N = torch.randint(shape.vocabulary, (count,))
    position_N = torch.randint(case.least, case.slots, (count,)).int()
    sequence_N = torch.randint(case.sequences, (count,)).int()

    def randn(*size: int) -> Tensor:
        scale: float = size[-1] ** -0.5
        return scale * torch.randn(*size, dtype=case.element, device=device)

    weights = Weights(
        randn(shape.vocabulary, shape.channels),
        randn(2 * shape.layers + 1, shape.channels),
        randn(shape.layers, shape.qkv, shape.channels),
        randn(shape.layers, shape.channels, shape.attended),
        randn(shape.layers, 2 * shape.inner, shape.channels),
        randn(shape.layers, shape.channels, shape.inner),
        *torch.rand(2, case.slots, shape.head_dim // 2, device=device),
    )
    history_BS = torch.zeros(case.sequences, case.slots, dtype=torch.int64)
    row = Rows(*(each.to(device) for each in (token_N, position_N, sequence_N, history_BS)))
    size = (shape.layers, case.sequences, case.slots, shape.kv_heads, shape.head_dim)
    cache = cache_of(randn(*size), randn(*size))
    work = new_work(shape, plan, count, case.slots, weights.embedding)
    found = step_launches(
        shape, plan, weights, row, cache, work, count, (0, shape.layers), capability, advance=0
    )
    step = Step(
        shape,
        plan,
        case.element.itemsize,
        token_N.tolist(),
        position_N.tolist(),
        sequence_N.tolist(),
        case.sequences,
        case.slots,
    )
    return found, step


TINY_LLAMA = StepCase(
    8,
    2048,
    32,
    4,
    64,
    5632,
    22,
    32_000,
    sequences=8,
    slots=2048,
    programs=0,
    least=1024,
    dtype="bfloat16",
)
OPERATIONS = (
    Operation(
        name="decode_step",
        case=StepCase,
        small=(
            StepCase(1, programs=3),
            StepCase(4, layers=1, dtype="float32"),
            StepCase(18, layers=1, programs=3),
            StepCase(4, channels=80, heads=3, kv_heads=1, head_dim=32, layers=1),
            StepCase(3, programs=2, dtype="float32"),
            StepCase(3, slots=300, keys=64, layers=1),
            StepCase(2, slots=300, keys=128, least=260, layers=1, dtype="float32"),
            StepCase(1, programs=1, layers=1),
            StepCase(2, channels=16, inner=16, programs=18, layers=1, dtype="float32"),
            StepCase(17, 16, 1, 1, 16, 16, 1, programs=3),
            StepCase(5, slots=1, layers=1, programs=3),
            StepCase(3, inner=400, layers=1, programs=4),
        ),
        typical=replace(TINY_LLAMA, layers=2),  # all layers launch the same
        draw=draw,
        launches=launches,
    ),
    Operation(
        name="decode_step_persistent",
        case=StepCase,
        small=(),
        typical=TINY_LLAMA,
        draw=draw,
        launches=persistent_launches,
        gluon=True,
    ),
)
