"""Cells of the decode step: models' shapes by rows, bfloat16; ours beside the same model in plain PyTorch.

A sample is a CUDA graph of several steps, each on the tokens of the one before, from one position on. Beside
tokens/s a cell reports the weights' bytes over the time of a step, kernels a step (nodes of the graph), and
what each phase of our launch takes by the multiprocessors' clocks.

Shapes: L layers, B sequences, S cache slots, K kv heads, D head dim, N rows, P programs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lit_eff.bench.attention_peers import attempt, reason_of
from lit_eff.bench.attention_training import raise_if_lost, relative_error
from lit_eff.bench.measure import Replay, Stopwatch, interleaved
from lit_eff.bench.results import Measurement, timed, with_ratios
from lit_eff.bench.rotated import WrongError
from lit_eff.bench.step_plain import PlainStep
from lit_eff.bench.step_trace import traced_phases
from lit_eff.kernels.decode_step import DecodeStep, Weights, decode_step_reference, default_plan
from lit_eff.kernels.decode_step.io_model import weight_bytes
from lit_eff.models.cache import KVCache
from lit_eff.models.config import ModelConfig
from lit_eff.models.packed import PackedModel
from lit_eff.models.transformer import Transformer

SLOTS, CONTEXT = 512, 256  # of the cache, and how many each sequence has behind it
STEPS = 8  # in one sample

MODELS = {
    "1.1B": ModelConfig(
        vocab_size=32_000, layers=22, model_dim=2048, heads=32, kv_heads=4, mlp_dim=5632, tied=False,
        context=SLOTS,
    ),
    "135M": ModelConfig(
        vocab_size=49_152, layers=30, model_dim=576, heads=9, kv_heads=3, mlp_dim=1536, context=SLOTS
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Rows of a step: a token each of as many sequences, or the tokens of one that a draft proposed."""

    count: int
    verified: bool = False

    @property
    def sequences(self) -> int:
        return 1 if self.verified else self.count

    @property
    def tokens(self) -> int:
        """Of each sequence."""
        return self.count // self.sequences

    @property
    def advance(self) -> int:
        return 0 if self.verified else 1


ROWS = (Rows(1), Rows(8), Rows(16), Rows(8, verified=True))


@dataclass
class Contender:
    """``run`` is one step, ``hidden`` what its last layer gave, (N, C); ``reset`` goes back to the start."""

    name: str
    run: Callable[[], object]
    reset: Callable[[], object]
    hidden: Callable[[], Tensor]
    ours: bool = False
    captured: bool = True


class Setting:
    """A model of random weights with random keys and values of every sequence, in bfloat16 on the GPU."""

    def __init__(self, config: ModelConfig, rows: Rows, layers: int | None = None) -> None:
        config = config if layers is None else replace(config, layers=layers)
        self.model, self.packed = packed_model(config)
        self.rows = rows
        self.cache = KVCache(config, rows.sequences, SLOTS, dtype=torch.bfloat16, device="cuda")
        for tensor in (self.cache.k, self.cache.v):
            tensor.normal_(generator=torch.Generator("cuda").manual_seed(1))
        positions = torch.arange(CONTEXT, CONTEXT + rows.tokens, device="cuda")
        self.position_BT = positions.repeat(rows.sequences, 1)
        draw = torch.Generator("cuda").manual_seed(2)
        self.token_BT = torch.randint(
            config.vocab_size, self.position_BT.shape, device="cuda", generator=draw
        )
        index_B1 = torch.arange(rows.sequences, device="cuda")[:, None]
        self.sequence_N = index_B1.expand_as(self.position_BT).flatten()

    def reference(self, dtype: torch.dtype) -> Tensor:
        """Hidden states (N, C) of the first step, by plain PyTorch in ``dtype``."""
        weights = self.packed.weights
        return decode_step_reference(
            Weights(*(each.to(dtype) for each in weights[:6]), *iter(weights[6:])),
            self.token_BT.flatten(),
            self.position_BT.flatten(),
            self.sequence_N,
            self.cache.k.to(dtype, copy=True),
            self.cache.v.to(dtype, copy=True),
            self.packed.shape.heads,
            self.packed.shape.epsilon,
            (0, self.packed.shape.layers),
        )

    def ours(self, form: Any, *, traced: bool = False) -> DecodeStep:
        plan = replace(default_plan(self.packed.shape, torch.device("cuda", 0)), form=form)
        step = self.packed.step(
            self.cache, self.rows.count, advance=self.rows.advance, plan=plan, traced=traced
        )
        step.row.sequence.copy_(self.sequence_N)
        self.reset(step)
        return step

    def reset(self, step: DecodeStep) -> None:
        step.row.token.copy_(self.token_BT.flatten())
        step.row.position.copy_(self.position_BT.flatten())

    def contenders(self) -> dict[str, Callable[[], Contender]]:
        """By name, what makes them: one that cannot be made leaves the others."""

        def step(name: str, form: str) -> Contender:
            made = self.ours(form)
            return Contender(name, made.run, lambda: self.reset(made), lambda: made.hidden_NC, ours=True)

        def eager(name: str, captured: bool) -> Contender:
            made = EagerStep(self)
            return Contender(
                name, made.run, made.reset, lambda: made.hidden_BTC.flatten(0, 1), False, captured
            )

        def plain(name: str) -> Contender:
            torch.compiler.reset()  # a new shape is no recompilation of the last one
            made = PlainStep(
                self.packed.shape, self.packed.weights, self.packed.output_VC, self.cache.k, self.cache.v,
                self.rows.tokens, advance=self.rows.advance, compiled=True,
            )  # fmt: skip

            def reset() -> None:
                made.token_BT.copy_(self.token_BT)
                made.position_T.copy_(self.position_BT[0])

            return Contender(name, made.run, reset, lambda: made.hidden_BTC.flatten(0, 1))

        return {
            "ours, persistent": lambda: step("ours, persistent", "persistent"),
            "ours, launches": lambda: step("ours, launches", "launches"),
            "compiled, CUDA graph": lambda: plain("compiled, CUDA graph"),
            "eager": lambda: eager("eager", False),
            "eager, CUDA graph": lambda: eager("eager, CUDA graph", True),
        }


@lru_cache(maxsize=1)
def packed_model(config: ModelConfig) -> tuple[Transformer, PackedModel]:
    """The cells of one model follow each other."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Transformer(config).to(torch.bfloat16).eval()
    return model, PackedModel(model, SLOTS)


class EagerStep:
    """The model's own layers with its static cache, kernel by kernel, and the argmax of the logits."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.token_BT = setting.token_BT.clone()
        self.start_B = setting.position_BT[:, 0].clone()
        self.hidden_BTC = torch.empty(0)

    def reset(self) -> None:
        self.token_BT.copy_(self.setting.token_BT)
        self.start_B.copy_(self.setting.position_BT[:, 0])

    def run(self) -> None:
        model = self.setting.model
        (self.hidden_BTC,) = model(self.token_BT, cache=self.setting.cache, starts_B=self.start_B)
        self.token_BT.copy_(model.logits(self.hidden_BTC, 0).argmax(dim=-1))
        self.start_B.add_(self.setting.rows.advance)


def captured(contender: Contender, steps: int = STEPS) -> torch.cuda.CUDAGraph:
    """A graph of a reset and ``steps`` steps."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # first calls compile and choose algorithms, which a capture may not
        for _ in range(2):
            contender.reset()
            contender.run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        contender.reset()
        for _ in range(steps):
            contender.run()
    graph.instantiate()
    return graph


def nodes_of(graph: torch.cuda.CUDAGraph) -> int:
    """Kernels, copies and fills in a captured graph, from the driver."""
    count = ctypes.c_size_t()
    status = ctypes.CDLL("libcuda.so.1").cuGraphGetNodes(
        ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(count)
    )
    if status:
        raise RuntimeError(f"cuGraphGetNodes: error {status}")
    return count.value


@dataclass(frozen=True)
class StepCell:
    model: str
    rows: Rows
    section: str = "step"

    @property
    def label(self) -> str:
        what = "verify" if self.rows.verified else "batch"
        return f"{self.model}, {what} {self.rows.count}"

    @torch.inference_mode()
    def warm(self) -> None:
        """Compile what a model of one layer shares with the whole; what is tuned by timing waits its turn."""
        setting = Setting(MODELS[self.model], self.rows, layers=1)
        for name, make in setting.contenders().items():
            if name != "compiled, CUDA graph" or self.rows.count > 1:
                make().run()
        setting.ours("persistent", traced=True).run()
        torch.cuda.synchronize()

    @torch.inference_mode()
    def run(self, stopwatch: Stopwatch, rounds: int) -> list[Measurement]:
        setting = Setting(MODELS[self.model], self.rows)
        exact_NC = setting.reference(torch.float32)
        limit = 2 * relative_error(setting.reference(torch.bfloat16), exact_NC) + 1e-3
        found: dict[str, Measurement] = {}
        functions: dict[str, Callable[[], object]] = {}
        launches: list[Measurement] = []
        for name, make in setting.contenders().items():
            mine = name.startswith("ours")
            found[name] = Measurement("tokens", self.label, name, "decode step", "tokens/s", mine)
            try:
                with attempt() as caught:
                    contender = make()
                    contender.reset()
                    contender.run()
                    error = relative_error(contender.hidden(), exact_NC)
                    if not error <= limit:
                        raise WrongError(f"wrong: off by {error:.1%}, not {limit:.1%}")
                    functions[name] = self._sampled(contender, launches)
            except Exception as failure:
                raise_if_lost(failure)
                wrong = isinstance(failure, WrongError)
                found[name] = replace(found[name], unavailable=reason_of(failure, caught), wrong=wrong)
        read = weight_bytes(setting.packed.shape, 2)
        rates = []
        for name, sample in interleaved(functions, rounds, stopwatch).items():
            found[name] = timed(found[name], sample, self.rows.count * 1e3, STEPS)
            rate = replace(found[name], section="weights", quantity="read", unit="GB/s")
            rates.append(timed(rate, sample, read / 1e6, STEPS))
        return [*with_ratios(list(found.values())), *with_ratios(rates), *launches, *self._phases(setting)]

    def _sampled(self, contender: Contender, launches: list[Measurement]) -> Callable[[], object]:
        if contender.captured:
            graph = captured(contender)
            launches.append(self._counted(contender, graph))
            return Replay(graph, contender)

        def sample() -> None:
            contender.reset()
            for _ in range(STEPS):
                contender.run()

        return sample

    def _counted(self, contender: Contender, graph: torch.cuda.CUDAGraph) -> Measurement:
        found = Measurement("launches", self.label, contender.name, "of a step", "launches", source="counted")
        try:
            nodes = nodes_of(graph) - nodes_of(captured(contender, 0))
        except Exception as failure:
            raise_if_lost(failure)
            return replace(found, unavailable=reason_of(failure))
        return replace(found, rate=nodes / STEPS)

    def _phases(self, setting: Setting) -> list[Measurement]:
        """Microseconds of a step that our programs work in each phase, and wait after it, on average."""
        place = Measurement("phases", self.label, "ours, persistent", "of a step", "us")
        try:
            phases = traced_phases(setting.ours("persistent", traced=True))
        except Exception as failure:
            raise_if_lost(failure)
            return [replace(place, unavailable=reason_of(failure))]
        return [replace(place, contender=name, rate=rate) for name, rate in phases.items()]


def cells() -> list[StepCell]:
    return [StepCell(model, rows) for model in MODELS for rows in ROWS]
