"""The ``profile`` section of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lit_eff.errors import UserError, nearest
from lit_eff.profiling.devices import get_device

PARTS = ("attention", "kernels", "training", "decoding", "serving")


def _at_least(where: str, least: float, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"profile.{where}.{name} is {value}; expected {least} or more")


@dataclass
class AttentionProfile:
    """Standard attention against flash: bytes counted, modelled and, on a GPU, measured with time.

    Args:
        lengths: of forward and backward, standard against flash (FlashAttention's figure 2 has 1,024);
            without any, that comparison, which needs no model, is left out.
        batch: of the shortest; longer ones take fewer, so that scores need no more memory.
        heads, head_dim: sizes of each.
        count_batch, count_length: of the forward counted in the interpreter, which takes seconds a thousand
            tokens. Its heads are the recipe's model's, or ``count_heads`` of ``head_dim`` without one.
        speed_results: a result file of ``lit-eff bench gpt2_training``, shown beside the paper's speeds.
    """

    lengths: list[int] = field(default_factory=list)
    batch: int = 64
    heads: int = 16
    head_dim: int = 64
    count_batch: int = 1
    count_length: int = 256
    count_heads: int = 4
    speed_results: str | None = None

    def __post_init__(self) -> None:
        _at_least("attention", 1, lengths=min(self.lengths, default=1), batch=self.batch, heads=self.heads)
        _at_least("attention", 1, head_dim=self.head_dim, count_batch=self.count_batch)
        _at_least("attention", 1, count_length=self.count_length, count_heads=self.count_heads)


@dataclass
class KernelsProfile:
    """Every shipped kernel: counted at small sizes and, on a GPU, measured at those of real use.

    Args:
        operations: those of the kernel catalogue to take; all of them if empty.
        cases: small cases of each to count.
    """

    operations: list[str] = field(default_factory=list)
    cases: int = 1

    def __post_init__(self) -> None:
        _at_least("kernels", 1, cases=self.cases)


@dataclass
class TrainingProfile:
    """Time, traffic, FLOPs, energy and memory of training steps, by module and kernel.

    Args:
        warmup_steps: steps run before, so that none of the recorded ones holds one-time work.
        steps: steps recorded.
    """

    warmup_steps: int = 2
    steps: int = 3

    def __post_init__(self) -> None:
        _at_least("training", 0, warmup_steps=self.warmup_steps)
        _at_least("training", 1, steps=self.steps)


@dataclass
class DecodingProfile:
    """Decoding rounds of a bundle, and what leaving at each exit saves.

    Args:
        bundle: folder of a bundle; an untrained one of the recipe's model if None, whose acceptance and exits
            mean nothing, but whose times and bytes do.
        prompt: what to continue.
        tokens: of each continuation.
    """

    bundle: str | None = None
    prompt: str = "This movie"
    tokens: int = 48

    def __post_init__(self) -> None:
        _at_least("decoding", 1, tokens=self.tokens)


@dataclass
class ServingProfile:
    """Requests to a server over a bundle (that of ``decoding``), each round a span.

    Args:
        requests: sent at once.
        tokens: of each answer.
    """

    requests: int = 8
    tokens: int = 24

    def __post_init__(self) -> None:
        _at_least("serving", 1, requests=self.requests, tokens=self.tokens)


@dataclass
class EnergyProfile:
    """How energy becomes carbon. The defaults are those of the LLaMA paper (Touvron et al. 2023, section 6).

    Args:
        watts: board power where none can be measured; the device table's if None.
        pue: power usage effectiveness of the data centre.
        kg_per_kwh: CO2 equivalent of the grid, in kg a kWh.
    """

    watts: float | None = None
    pue: float = 1.1
    kg_per_kwh: float = 0.385

    def __post_init__(self) -> None:
        _at_least("energy", 1, pue=self.pue)
        _at_least("energy", 0, watts=self.watts, kg_per_kwh=self.kg_per_kwh)


@dataclass
class ProfileConfig:
    """What ``lit-eff profile`` records.

    Args: parts: any of attention, kernels, training, decoding and serving, in this order. device: GPU whose
        tiles and limits are meant where this machine has none; a name of the device table. measure: read
        hardware counters with ncu where there is a GPU.
    """

    parts: list[str] = field(default_factory=lambda: ["training", "attention"])
    device: str = "H100 SXM"
    measure: bool = True
    attention: AttentionProfile = field(default_factory=AttentionProfile)
    kernels: KernelsProfile = field(default_factory=KernelsProfile)
    training: TrainingProfile = field(default_factory=TrainingProfile)
    decoding: DecodingProfile = field(default_factory=DecodingProfile)
    serving: ServingProfile = field(default_factory=ServingProfile)
    energy: EnergyProfile = field(default_factory=EnergyProfile)

    def __post_init__(self) -> None:
        _check_parts(self.parts)
        get_device(self.device)


def _check_parts(parts: Sequence[str]) -> None:
    for part in parts:
        if part not in PARTS:
            raise UserError(f"profile.parts has {part!r}{nearest(part, PARTS)}")
    if not parts:
        raise UserError(f"profile.parts is empty; expected some of {', '.join(PARTS)}")
