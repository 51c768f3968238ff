"""Greedy decoding by the decode step's kernel: on a GPU one CUDA graph a token, which feeds itself.

Shapes: B sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lit_eff.errors import UserError
from lit_eff.models.cache import KVCache
from lit_eff.models.packed import PackedModel
from lit_eff.models.transformer import Transformer


class StepDecoder:
    """Continues up to ``sequences`` prompts at a time by the full model's most likely tokens.

    A prompt's continuation does not depend on the prompts beside it: each is run alone up to its last token,
    and a row of the decode step has the same bits in any company. The model is put into eval mode, and its
    parameters become views of `PackedModel`'s stacks.

    Args:
        model: of the Llama family, in the dtype and on the device to decode in.
        slots: of the cache: the most tokens a sequence can have; the model's context by default.

    Attributes:
        packed: the model's weights.
        cache: keys and values of all sequences.

    Raises:
        UserError: for a model of another family.
    """

    def __init__(self, model: Transformer, sequences: int = 1, slots: int | None = None) -> None:
        slots = model.config.context if slots is None else slots
        self.model = model.eval()
        self.packed = PackedModel(model, slots)
        weight = self.packed.output_VC
        self.cache = KVCache(model.config, sequences, slots, dtype=weight.dtype, device=weight.device)
        self._steps: dict[int, CapturedStep] = {}

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """``count`` tokens after each prompt; the host waits once, for all of them.

        Raises:
            UserError: for more prompts than sequences, an empty prompt, unknown tokens, or a sequence that
                would not fit the cache.
        """
        if not 1 <= len(prompts) <= self.cache.batch:
            raise UserError(f"{len(prompts)} prompts for a decoder of {self.cache.batch} sequences")
        if count < 1:
            raise UserError(f"{count} tokens to generate; expected at least 1")
        for prompt in prompts:
            # The last token is the step's answer, and needs no slot.
            if not 1 <= len(prompt) <= self.cache.capacity - count + 1:
                raise UserError(
                    f"a prompt of {len(prompt)} tokens and {count} more do not fit {self.cache.capacity} "
                    "slots; a prompt takes at least one token"
                )
        step = self._step(len(prompts))
        step.place(prompts)
        for index, prompt in enumerate(prompts):
            self._prefill(index, prompt[:-1])
        for _ in range(count):
            step.replay()
        return [
            [*step.history(index, len(prompt), count - 1), end]
            for index, (prompt, end) in enumerate(zip(prompts, step.tokens, strict=True))
        ]

    def _prefill(self, index: int, tokens: Sequence[int]) -> None:
        """Keys and values of a prompt, by the model's own layers."""
        if tokens:
            tokens_1T = torch.tensor([tokens], device=self.model.device)
            starts_1 = torch.zeros(1, dtype=torch.int64, device=self.model.device)
            last = len(self.model.config.exit_layers) - 1
            self.model(tokens_1T, cache=self.cache.row(index), starts_B=starts_1, exits=[last])

    def _step(self, rows: int) -> CapturedStep:
        if rows not in self._steps:
            self._steps[rows] = CapturedStep(self.packed, self.cache, rows)
        return self._steps[rows]


class CapturedStep:
    """The step of the first ``rows`` sequences, a row each, captured where there is a GPU."""

    def __init__(self, packed: PackedModel, cache: KVCache, rows: int) -> None:
        self._step = packed.step(cache, rows)
        self._graph: torch.cuda.CUDAGraph | None = None
        if self._step.output_VC.is_cuda:
            self._step.run()  # compiles and loads the kernels, which a capture may not
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step.run()

    def place(self, prompts: Sequence[Sequence[int]]) -> None:
        """Every row at its prompt's last token."""
        self._step.place(
            [prompt[-1] for prompt in prompts],
            [len(prompt) - 1 for prompt in prompts],
            list(range(len(prompts))),
        )

    def replay(self) -> None:
        if self._graph is None:
            self._step.run()
        else:
            self._graph.replay()

    @property
    def tokens(self) -> list[int]:
        """What follows each row's token so far."""
        tokens: list[int] = self._step.row.token.tolist()
        return tokens

    def history(self, index: int, first: int, count: int) -> list[int]:
        """``count`` of a sequence's tokens, from slot ``first`` on."""
        tokens: list[int] = self._step.row.history[index, first : first + count].tolist()
        return tokens
