"""``lit-eff profile``: where bytes and time go, counted, modelled and measured, in TensorBoard and files.

``--plan`` estimates hours, energy, carbon and cost of a training run (``--plan --help``); ``--diff`` compares
two profiles and fails where a kernel moves more bytes than it did.
"""

from __future__ import annotations

import importlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lit_eff.cli.arguments import Parser
from lit_eff.cli.compose import Recipe
from lit_eff.errors import UserError
from lit_eff.profiling.config import PARTS, ProfileConfig
from lit_eff.profiling.devices import Device, find_device, get_device
from lit_eff.profiling.report import Findings


@dataclass(frozen=True)
class Job:
    """What a part of the profile works from. ``gpu`` is this machine's, or None; ``folder`` is the run's."""

    recipe: Recipe
    profile: ProfileConfig
    folder: Path
    device: Device
    gpu: str | None
    console: Console


def main(argv: list[str]) -> int:
    """Run the recipe's parts, show what they found, and write it all into a run folder."""
    parser = _parser()
    if "--plan" in argv:
        from lit_eff.cli.profile_plan import plan

        return plan(argv)
    if "--diff" in argv:
        from lit_eff.cli.profile_diff import diff

        return diff(argv)
    if "--help" in argv or "-h" in argv:
        parser.print_help()
        return 0
    from lit_eff.cli.compose import compose
    from lit_eff.cli.lightning import split_arguments, typed_section
    from lit_eff.cli.profile_report import finish, show

    config, overrides, rest = split_arguments(argv)
    options = parser.parse(rest)
    if config is None:
        raise UserError("no recipe: pass --config with a recipe's path or name (see lit-eff recipes)")
    recipe = compose(config, overrides)
    profile: ProfileConfig = typed_section(recipe, "profile")
    console = Console(stderr=options.json)
    job = _job(recipe, profile, console)
    found = []
    for part in PARTS:
        if part in profile.parts:
            findings = _run(part, job)
            show(findings, console)
            found.append(findings)
    command = shlex.join(["lit-eff", "profile", *argv])
    report, written = finish(job, found, command)
    if options.json:
        files = [str(path) for path in written]
        print(json.dumps({"folder": str(job.folder), "files": files, **report.to_dict()}, indent=1))
    else:
        names = {"profile.html": "page ", "trace.perfetto.json.gz": "trace"}  # for ui.perfetto.dev
        lines = [f"{names[path.name]}  {path}" for path in written if path.name in names]
        lines.append(f"look   tensorboard --logdir {job.folder}")
        console.print("\n".join(lines), highlight=False, soft_wrap=True)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="lit-eff profile",
        description=__doc__,
        usage="%(prog)s --config RECIPE [--json] [profile.parts=[attention,training] ...]\n"
        "       %(prog)s --plan --parameters 7e9 --tokens 1e12 [--gpus 1024] [--json]\n"
        "       %(prog)s --diff BEFORE AFTER [--tolerance 0.02] [--json]",
        epilog="group=choice and a.b=1 change the recipe.",
    )
    parser.add_argument("--config", metavar="RECIPE", help="a recipe's path or name")
    parser.add_argument("--json", action="store_true", help="print every record, each number with its source")
    return parser


def _job(recipe: Recipe, profile: ProfileConfig, console: Console) -> Job:
    """A fresh run folder, and the device whose limits count: this machine's GPU, or the recipe's."""
    import torch
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = recipe.values.get("trainer", {}).get("logger") or {}
    save_dir = logger.get("init_args", {}).get("save_dir", "runs") if isinstance(logger, dict) else "runs"
    folder = Path(TensorBoardLogger(save_dir, recipe.name).log_dir)
    folder.mkdir(parents=True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    device = (find_device(gpu) if gpu else None) or get_device(profile.device)
    return Job(recipe, profile, folder, device, gpu, console)


def _run(part: str, job: Job) -> Findings:
    """The function ``part`` of ``lit_eff.cli.profile_PART``, imported only where it is asked for."""
    function = getattr(importlib.import_module(f"lit_eff.cli.profile_{part}"), part)
    findings: Findings = function(job)
    return findings
