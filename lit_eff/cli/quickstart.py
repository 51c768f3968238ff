"""``lit-eff quickstart``: the whole line on one recipe, from text to a served bundle, ending in a report.

Every figure of the report is measured in this run (or counted, or modelled: ``sources`` says which).
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.progress import track

from lit_eff.cli.arguments import Parser
from lit_eff.cli.calibrate import CERTIFICATE, calibrate_checkpoint
from lit_eff.cli.compose import Recipe, compose
from lit_eff.cli.lightning import LitEffCLI, lightning_cli, split_arguments, typed_section
from lit_eff.cli.profile_attention import count_at
from lit_eff.cli.profile_report import show_counts
from lit_eff.cli.quickstart_report import SOURCES, show
from lit_eff.errors import UserError
from lit_eff.export.job import export_bundle
from lit_eff.files import atomic_path
from lit_eff.models.checkpoint import load_checkpoint
from lit_eff.models.config import ModelConfig
from lit_eff.profiling.devices import get_device
from lit_eff.profiling.tensorboard import write_traffic
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.claim import sentence
from lit_eff.runtime.decode import Mode, generate
from lit_eff.runtime.summary import Summary
from lit_eff.runtime.text import TextEngine, TextRequest

RECIPE = "quickstart"
MODES: tuple[Mode, ...] = ("autoregressive", "certified", "lossless")
REPEATS = 3  # timed passes over the prompts; the median is reported


def main(argv: list[str]) -> int:
    """Run the line; ``group=choice`` and ``a.b=1`` change the recipe as they do for ``fit``."""
    config, overrides, rest = split_arguments(argv)
    parser = Parser(prog="lit-eff quickstart", description=__doc__, usage="%(prog)s [group=choice] [a.b=1]")
    parser.add_argument("--config", metavar="RECIPE", help=f"default: {RECIPE}")
    parser.parse(rest)
    started = time.perf_counter()
    console = Console()
    recipe = compose(config or RECIPE, overrides)
    report = run(recipe, console)
    report["seconds"] = time.perf_counter() - started
    path = Path("runs") / recipe.name / "report.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    show(report, path, console)
    return 0


def run(recipe: Recipe, console: Console) -> dict[str, Any]:
    """Train, validate, calibrate, profile, export and generate; the report but for its own wall time."""
    steps: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Any:
        console.rule(f"{len(steps) + 1}. {name}", align="left")
        began = time.perf_counter()
        yield
        steps[name] = time.perf_counter() - began

    with step("train"):
        trained = train(recipe)
    with step("calibrate"):
        certificate = calibrate_checkpoint(
            trained.checkpoint, recipe, trained.checkpoint.parent / CERTIFICATE, device="cpu"
        )
        console.print(sentence(certificate))
    with step("profile"):
        traffic = profiled(recipe, trained, console)
    with step("export"):
        bundle = export_bundle(
            load_checkpoint(trained.checkpoint),
            trained.folder / "bundle",
            certificate,
            typed_section(recipe, "export"),
        )
    with step("generate"):
        assert certificate.prompt_length is not None  # a recipe says how long its prompts are
        prompts = trained.prompts(certificate.prompt_length, count=8)
        decoding = compare_modes(
            TextEngine.open(bundle),
            prompts,
            max_tokens=typed_section(recipe, "decoding").max_tokens,
            certified_tokens=certificate.continuation_length,
        )
    return {
        "recipe": recipe.name,
        "overrides": list(recipe.overrides),
        "machine": {"cores": os.cpu_count(), "device": "cpu"},
        "step_seconds": steps,
        "training": trained.metrics,
        "calibration": calibration_report(certificate),
        "profile": traffic,
        "decoding": decoding,
        "artifacts": {
            "run": str(trained.folder),
            "checkpoint": str(trained.checkpoint),
            "certificate": str(trained.checkpoint.parent / CERTIFICATE),
            "bundle": str(bundle),
            "tensorboard": str(trained.folder),
            "trace": next((str(path) for path in trained.folder.glob("*.pt.trace.json.gz")), None),
        },
        "sources": SOURCES,
    }


@dataclass(frozen=True)
class Trained:
    """A finished fit: its run folder, last checkpoint, validated figures and the data it came from."""

    folder: Path
    checkpoint: Path
    config: ModelConfig
    metrics: dict[str, Any]
    documents: Callable[[str], Sequence[Any]]

    def prompts(self, length: int, count: int) -> list[tuple[int, ...]]:
        """Beginnings of test documents, which nothing so far has been fitted or selected on."""
        long = (document[:length] for document in self.documents("test") if len(document) >= length)
        return [tuple(int(token) for token in document) for document in islice(long, count)]


def train(recipe: Recipe) -> Trained:
    """Fit the recipe, with the untrained model's validation before it."""
    cli: LitEffCLI = lightning_cli(recipe, [], run=False)
    trainer, model, data = cli.trainer, cli.model, cli.datamodule

    def perplexities() -> list[float]:
        return [
            float(trainer.callback_metrics[f"validation/perplexity_exit_{layer}"])
            for layer in model.config.exit_layers
        ]

    trainer.validate(model, data, verbose=False)
    untrained = perplexities()
    trainer.fit(model, data)
    batches = trainer.global_step * trainer.accumulate_grad_batches
    if batches % (trainer.val_check_interval or 1):  # the last step was not validated
        trainer.validate(model, data, verbose=False)
    saved = trainer.checkpoint_callback
    assert isinstance(saved, ModelCheckpoint)
    checkpoint, folder = Path(saved.last_model_path), Path(trainer.log_dir or ".")
    fitted = json.loads((folder / "report.json").read_text(encoding="utf-8"))["training"]
    metrics = {
        **fitted,
        "perplexity_per_exit": perplexities(),
        "untrained_perplexity": untrained[-1],
        "unigram_perplexity": data.unigram_perplexity("validation"),
    }
    return Trained(folder, checkpoint, model.config, metrics, data.documents)


def profiled(recipe: Recipe, trained: Trained, console: Console) -> dict[str, Any]:
    """The attention kernel's traffic; a machine that cannot run Triton's interpreter says why and goes on."""
    try:
        profile = typed_section(recipe, "profile")
        traffic = count_at(profile, trained.config, get_device(profile.device), console)
    except UserError as error:
        console.print(f"[yellow]kernel traffic unavailable:[/] {error}", highlight=False)
        return {"unavailable": str(error)}
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(trained.folder)) as writer:
        write_traffic(writer, [traffic])
    show_counts([traffic], console)
    return traffic.to_dict()


def calibration_report(certificate: Certificate) -> dict[str, Any]:
    """The certificate's figures; ``layers_per_token`` is the test split's."""
    return {
        "delta": certificate.delta,
        "epsilon": certificate.epsilon,
        "selected": certificate.selected,
        "thresholds": certificate.thresholds,
        "layers": certificate.exit_layers[-1],
        "layers_per_token": certificate.test.layers_per_token,
        "computed_layers_per_token": certificate.test.computed_layers_per_token,
        "test_risk": certificate.test.risk,
        "sentence": sentence(certificate),
    }


def compare_modes(
    engine: TextEngine, prompts: list[tuple[int, ...]], *, max_tokens: int, certified_tokens: int
) -> dict[str, Any]:
    """All three modes on the same prompts through the bundle, interleaved so that noise hits all alike.

    The certificate covers ``certified_tokens`` tokens: disagreement is counted over those.
    """
    summaries: dict[Mode, list[Summary]] = {mode: [] for mode in MODES}
    outputs: dict[Mode, list[list[int]]] = {mode: [] for mode in MODES}
    for repeat in track(range(-1, REPEATS), description="Generating", transient=True):  # -1 warms up
        rounds: dict[Mode, list[Any]] = {mode: [] for mode in MODES}
        for prompt in prompts:
            for mode in MODES:
                # No stop tokens: every mode writes the same number of tokens.
                prepared = engine.prepare(TextRequest(prompt, max_tokens=max_tokens, mode=mode))
                request = replace(prepared.tokens, stop_tokens=frozenset())
                rounds[mode].append(list(generate(engine.runner, request)))
        for mode in MODES:
            if repeat >= 0:
                together = [one for sequence in rounds[mode] for one in sequence]
                summaries[mode].append(Summary.of(together, engine.runner.exit_layers))
            outputs[mode] = [[token for one in sequence for token in one.tokens] for sequence in rounds[mode]]
    speed = {
        mode: statistics.median(summary.tokens_per_second for summary in summaries[mode]) for mode in MODES
    }
    plain = np.array(outputs["autoregressive"])
    report: dict[str, Any] = {}
    for mode in MODES:
        summary = summaries[mode][-1]
        report[mode] = {
            "tokens_per_second": speed[mode],
            "speedup": speed[mode] / speed["autoregressive"],
            "layers_per_token": summary.layers_per_token,
            "identical_to_autoregressive": outputs[mode] == outputs["autoregressive"],
        }
        if mode == "certified":
            differs = np.array(outputs[mode])[:, :certified_tokens] != plain[:, :certified_tokens]
            report[mode]["token_disagreement"] = float(differs.mean())
            report[mode]["exits"] = {str(layer): count for layer, count in summary.exits.items()}
        if mode == "lossless":
            report[mode]["acceptance"] = summary.acceptance
            report[mode]["tokens_per_round"] = summary.tokens_per_round
            report[mode]["draft_exit"] = engine.runner.exit_layers[prepared.tokens.draft_exit]
            report[mode]["draft_length"] = prepared.tokens.draft_length
    return {"prompts": len(prompts), "new_tokens": max_tokens, **report}
