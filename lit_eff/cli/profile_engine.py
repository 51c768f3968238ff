"""The engine whose decoding is profiled: a bundle's, or an untrained model of the recipe's sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from lit_eff.cli.profile_job import Job
from lit_eff.decoding.torch_runner import TorchRunner
from lit_eff.errors import UserError
from lit_eff.models.config import ModelConfig
from lit_eff.models.transformer import Transformer
from lit_eff.runtime.bundle import open_bundle
from lit_eff.runtime.decode import Mode
from lit_eff.runtime.text import TextEngine

FLOAT32_BYTES = 4  # of a weight: what both engines compute in
UNTRAINED = (
    "the model is untrained: times and bytes are those of its sizes, but drafts accepted and texts mean "
    "nothing; profile.decoding.bundle=DIR takes a trained one"
)


@dataclass(frozen=True)
class Profiled:
    """An engine with its model's sizes, what to continue, and the modes that it can run."""

    engine: TextEngine
    config: ModelConfig
    prompt: str | tuple[int, ...]
    modes: tuple[Mode, ...]
    notes: tuple[str, ...]


def recipe_model(job: Job) -> ModelConfig | None:
    """The sizes of the recipe's model, its exits included; None where it has none."""
    config = job.recipe.values.get("model", {}).get("init_args", {}).get("config")
    if config is None:
        return None
    return ModelConfig.from_dict({**config, "exits": job.recipe.values.get("exits") or {}})


def open_engine(job: Job) -> Profiled:
    """The bundle of ``profile.decoding.bundle``, or an untrained model.

    Raises:
        UserError: for a bundle that cannot be opened, or a recipe with neither bundle nor model.
    """
    settings = job.profile.decoding
    if settings.bundle is not None:
        engine = TextEngine.open(settings.bundle)
        config = ModelConfig.from_dict(open_bundle(settings.bundle).manifest.model)
        prompt: str | tuple[int, ...] = settings.prompt
        notes: tuple[str, ...] = ()
    else:
        found = recipe_model(job)
        if found is None:
            raise UserError(
                f"recipe {job.recipe.name!r} has no model, and profile.decoding.bundle is not set: set it"
            )
        config, notes = found, (UNTRAINED,)
        torch.manual_seed(0)
        words = Tokenizer(WordLevel({f"<{token}> ": token for token in range(config.vocab_size)}, "<0> "))
        engine = TextEngine(TorchRunner(Transformer(config)), words)
        prompt = tuple(range(1, 9))
    modes: list[Mode] = ["autoregressive"]
    if len(config.exit_layers) > 1:
        modes.append("lossless")
    if engine.certificate is not None:
        modes.append("certified")
    else:
        notes += ("mode certified is left out: it needs a bundle with a certificate",)
    return Profiled(engine, config, prompt, tuple(modes), notes)
