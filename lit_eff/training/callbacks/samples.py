"""What the model writes: greedy continuations of validation text, in TensorBoard after every validation.

Shapes: P prompts, T tokens of a prompt and its continuation, C model dim.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.models.transformer import Transformer
from lit_eff.training.callbacks.tensorboard import say_if_off, summary_writer

_LOOK_AT = 1000  # documents searched for long enough ones


class SampleGenerations(Callback):
    """Continues the beginnings of validation documents from the last exit and from an early one.

    Off, saying so, for a classifier or encoder, and without TensorBoard.

    Args:
        prompts: how many documents.
        prompt_tokens: tokens of each that the model is given.
        new_tokens: tokens it writes at most.
        early_exit: layers run for the early continuation; ``None`` takes the exit nearest half the depth.
    """

    def __init__(
        self,
        prompts: int = 2,
        prompt_tokens: int = 32,
        new_tokens: int = 48,
        early_exit: int | None = None,
    ) -> None:
        if min(prompts, prompt_tokens, new_tokens) < 1:
            raise UserError(
                f"samples: prompts {prompts}, prompt_tokens {prompt_tokens}, new_tokens {new_tokens}; "
                "expected positive numbers"
            )
        self.prompts = prompts
        self.prompt_tokens = prompt_tokens
        self.new_tokens = new_tokens
        self.early_exit = early_exit
        self._prompts_PT: Tensor | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        say_if_off(trainer, "Sample generations")
        model, data = pl_module.model, _data(trainer)
        assert isinstance(model, Transformer)
        self._prompts_PT = None
        if model.config.labels or not model.config.causal:
            trainer.print("Sample generations: off, this model does not write text")
            return
        if self.early_exit is not None and self.early_exit not in model.config.exit_layers:
            raise UserError(
                f"samples.early_exit is {self.early_exit}; expected one of the exits "
                f"{list(model.config.exit_layers)}"
            )
        long_enough = (
            document[: self.prompt_tokens].astype(np.int64)
            for document in islice(data.documents("validation"), _LOOK_AT)
            if len(document) > self.prompt_tokens
        )
        chosen = list(islice(long_enough, self.prompts))
        if not chosen:
            trainer.print(
                f"Sample generations: off, no validation document of over {self.prompt_tokens} tokens"
            )
            return
        self._prompts_PT = torch.from_numpy(np.stack(chosen))

    # Not on_validation_end: the averaged weights, where there are some, are still in place here.
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._prompts_PT is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        model, data = pl_module.model, _data(trainer)
        assert isinstance(model, Transformer)
        prompts_PT = self._prompts_PT.to(pl_module.device)
        exits = sorted({self._early(model), len(model.config.exit_layers) - 1})
        with trainer.precision_plugin.forward_context():
            # Every rank takes part: a sharded model needs them all to run.
            written = {e: greedy(model, prompts_PT, self.new_tokens, exit_index=e) for e in exits}
        writer = summary_writer(trainer)
        if writer is None:
            return
        end = getattr(data, "end_of_text", None)
        for p, prompt_T in enumerate(prompts_PT.tolist()):
            parts = [("Prompt", data.tokenizer.decode(prompt_T))]
            for e, tokens_PT in written.items():
                tokens = tokens_PT[p].tolist()
                tokens = tokens[: tokens.index(end)] if end in tokens else tokens
                parts.append((f"After {model.config.exit_layers[e]} layers", data.tokenizer.decode(tokens)))
            writer.add_text(f"samples/prompt_{p}", _markdown(parts), trainer.global_step)

    def _early(self, model: Transformer) -> int:
        layers = model.config.exit_layers
        if self.early_exit is not None:
            return layers.index(self.early_exit)
        return min(range(len(layers)), key=lambda e: abs(layers[e] - model.config.layers / 2))


def _data(trainer: Trainer) -> Any:
    return getattr(trainer, "datamodule", None)


@torch.no_grad()
def greedy(model: Transformer, prompts_PT: Tensor, new_tokens: int, *, exit_index: int) -> Tensor:
    """The most probable continuation at one exit, int64 (P, new_tokens), from prompts of equal length.

    Runs the whole row for every token, always at its full length: a few prompts are not worth a cache, and
    one shape means one compilation. A model with learned positions writes up to its context.
    """
    prompt = prompts_PT.shape[1]
    total = prompt + new_tokens
    if model.config.positions == "learned":
        total = min(total, model.config.context)
    tokens_PT = torch.nn.functional.pad(prompts_PT, (0, max(total - prompt, 0)))[:, :total]
    for t in range(prompt, total):
        hidden_PTC = model(tokens_PT, exits=[exit_index])[0]  # causal: what comes after t does not matter
        tokens_PT[:, t] = model.logits(hidden_PTC[:, t - 1], exit_index).argmax(-1)
    return tokens_PT[:, prompt:]


def _markdown(parts: list[tuple[str, Any]]) -> str:
    """Headings over code blocks, so that nothing in the text is taken for markup."""
    blocks = []
    for heading, text in parts:
        lines = str(text).splitlines() or [""]
        blocks.append(f"**{heading}**\n\n" + "\n".join(f"    {line}" for line in lines))
    return "\n\n".join(blocks)
