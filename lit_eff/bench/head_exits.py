"""What exits cost a training step: GPT-2 124M with 12 exits, beside the same model with none.

This project's own model and loss (`recipes/gpt2_small.yaml`'s shape, padded vocabulary), compiled blocks,
bf16 autocast, fused AdamW, T 1,024, B 16. The rotational curriculum trains one exit beside the last a step.
Names carry the FLOPs over the step's without exits: the inverse of a ratio that costs nothing else.

Shapes: B batch, T length, C model dim, N = B T tokens, V vocabulary, E exits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_eff.bench.measure import Stopwatch, interleaved, peak_extra_bytes
from lit_eff.bench.results import Measurement, timed, with_ratios
from lit_eff.models.config import ExitConfig, ModelConfig
from lit_eff.models.transformer import Transformer

BATCH, LENGTH, LAYERS, WIDTH, VOCABULARY = 16, 1024, 12, 768, 50_304


@dataclass(frozen=True)
class Plan:
    """Which exits the steps of a contender train, in turn; the last layer's is index 11."""

    name: str
    steps: tuple[tuple[int, ...], ...]

    @property
    def exits(self) -> float:
        return sum(map(len, self.steps)) / len(self.steps)

    @property
    def flop_ratio(self) -> float:
        """To the step without exits (PaLM, Chowdhery et al. 2022, appendix B: attention not halved)."""
        layer, head = 12 * WIDTH**2 + 2 * LENGTH * WIDTH, WIDTH * VOCABULARY
        return (LAYERS * layer + self.exits * head) / (LAYERS * layer + head)


PLANS = (
    Plan("no exits", ((11,),)),
    Plan("rotational, 1 extra exit", tuple((index, 11) for index in range(11))),
    Plan("all 12 exits", (tuple(range(12)),)),
)


class TrainingStep:
    """A model with an exit after every layer, and its optimizer; `run` trains the next exits in turn."""

    def __init__(self) -> None:
        config = ModelConfig(
            vocab_size=VOCABULARY,
            layers=LAYERS,
            model_dim=WIDTH,
            heads=12,
            context=LENGTH,
            norm="layer",
            positions="learned",
            mlp="gelu_tanh",
            qkv_bias=True,
            attention_bias=True,
            mlp_bias=True,
            exits=ExitConfig(tuple(range(1, LAYERS))),
        )
        torch.manual_seed(0)
        self.model = Transformer(config).cuda().train()
        self.model.compile_blocks()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 6e-4, weight_decay=0.1, fused=True)
        shape = (BATCH, LENGTH + 1)
        tokens_BT = torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(0)).cuda()
        self.inputs_BT, self.targets_N = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].flatten()

    def run(self, exits: Sequence[int]) -> Tensor:
        """One optimizer step; the loss, still on the device."""
        from lit_eff.training.losses import OutputHead, chunked_exit_loss

        self.optimizer.zero_grad(set_to_none=True)
        model = self.model
        with torch.autocast("cuda", torch.bfloat16):
            states = model(self.inputs_BT, exits=exits)
            loss, _ = chunked_exit_loss(
                [model.head_norm(x, e).flatten(0, 1) for x, e in zip(states, exits, strict=True)],
                [OutputHead(model.head_weight(e), model.head_bias(e)) for e in exits],
                self.targets_N,
                [1 / len(exits)] * len(exits),
            )
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss.detach()


@dataclass(frozen=True)
class ExitsCell:
    """A turn is one step; a plan of several kinds of step is timed over all of them."""

    section = "exits"
    label = "GPT-2 124M"

    def warm(self) -> None:
        TrainingStep().run((0, 11))

    def run(self, stopwatch: Stopwatch, rounds: int) -> list[Measurement]:
        step = TrainingStep()

        def turn(plan: Plan) -> Callable[[], object]:
            kinds = itertools.cycle(plan.steps)
            return lambda: step.run(next(kinds))

        turns = {plan.name: turn(plan) for plan in PLANS}
        extra = {}
        for name, function in turns.items():
            function()
            step.optimizer.zero_grad(set_to_none=True)
            extra[name] = peak_extra_bytes(function)
        samples = interleaved(turns, max(rounds, 11), stopwatch)
        found = [
            timed(
                Measurement(
                    self.section,
                    self.label,
                    f"{plan.name}, {plan.flop_ratio:.2f}x FLOPs",
                    "training step",
                    "tokens/s",
                    ours=plan is not PLANS[0],  # which the others are compared with
                    extra_bytes=extra[plan.name],
                ),
                samples[plan.name],
                BATCH * LENGTH * 1e3,
            )
            for plan in PLANS
        ]
        return with_ratios(found)


def cells() -> list[ExitsCell]:
    return [ExitsCell()]
