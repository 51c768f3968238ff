"""What the quickstart shows at its end: one table, the artifacts, and the commands to go on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SOURCES = {
    "training.perplexity_per_exit": "measured: validation tokens after training, shallow to deep",
    "training.untrained_perplexity": "measured: the same tokens, last exit, before training",
    "training.unigram_perplexity": "counted: unigram model of the train split on the validation targets",
    "training.tokens_per_second": "measured: training batches of this run, without validation and warm-up",
    "calibration.layers_per_token": "measured: layers launched per token on the test split (deferred KV)",
    "calibration.test_risk": "measured: share of continuation tokens that differ, test split",
    "profile": "each record names the source of each number",
    "decoding": "measured: the exported bundle under ONNX Runtime, one sequence at a time, prompts of the "
    "test split, greedy; medians of interleaved passes, prompt included",
    "decoding.certified.token_disagreement": "measured: over the tokens that the certificate covers",
}


def show(report: dict[str, Any], path: Path, console: Console) -> None:
    """Print the report that stands at ``path``."""
    training, calibration, decoding = report["training"], report["calibration"], report["decoding"]
    console.rule("result", align="left")
    depth = Table("exit after layer", *map(str, training["exit_layers"]), title="Validation, by exit")
    depth.add_row("perplexity", *(f"{value:.1f}" for value in training["perplexity_per_exit"]))
    depth.add_row("agrees with the last", *(f"{value:.1%}" for value in training["agreement_per_exit"]))
    depth.caption = (
        f"untrained {training['untrained_perplexity']:.0f}, unigram {training['unigram_perplexity']:.0f}"
    )
    console.print(depth)

    modes = Table(
        "mode", "tokens/s", "speedup", "layers/token", "output", title="The bundle, greedy decoding"
    )
    for mode in ("autoregressive", "certified", "lossless"):
        row = decoding[mode]
        modes.add_row(
            mode,
            f"{row['tokens_per_second']:.0f}",
            f"{row['speedup']:.2f}x",
            f"{row['layers_per_token']:.2f} of {calibration['layers']}",
            _output(mode, row),
        )
    modes.caption = f"on {decoding['prompts']} test prompts; the certificate speaks of averages over many"
    console.print(modes)
    console.print(calibration["sentence"])
    artifacts = report["artifacts"]
    console.print(f"\ncheckpoint   {artifacts['checkpoint']}", highlight=False, soft_wrap=True)
    console.print(f"certificate  {artifacts['certificate']}", highlight=False, soft_wrap=True)
    console.print(f"bundle       {artifacts['bundle']}", highlight=False, soft_wrap=True)
    console.print(f"trace        {artifacts['trace']}", highlight=False, soft_wrap=True)
    console.print(f"report       {path}", highlight=False, soft_wrap=True)
    console.print(
        f"\nlook:   tensorboard --logdir {artifacts['tensorboard']}", highlight=False, soft_wrap=True
    )
    console.print(f"serve:  lit-eff serve --bundle {artifacts['bundle']}", highlight=False, soft_wrap=True)
    console.print(f"\nThe whole line took {report['seconds'] / 60:.1f} minutes.", highlight=False)


def _output(mode: str, row: dict[str, Any]) -> str:
    same = "identical" if row["identical_to_autoregressive"] else "differs"
    if mode == "lossless":
        accepted = f"{row['acceptance']:.0%} of drafts accepted"
        return f"{same}; {accepted}, {row['tokens_per_round']:.2f} tokens a round"
    if mode == "certified":
        return f"{row['token_disagreement']:.1%} of tokens differ"
    return "the full model's"
