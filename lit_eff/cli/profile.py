"""``lit-eff profile``: where bytes and time go, counted, modelled and measured, in TensorBoard and files.

``--plan`` estimates hours, energy, carbon and cost of a training run (``--plan --help``); ``--diff`` compares
two profiles and fails where a kernel moves more bytes than it did.
"""

from __future__ import annotations

import importlib
import json
import shlex

from rich.console import Console

from lit_eff.cli.arguments import Parser
from lit_eff.cli.profile_job import Job, make_job
from lit_eff.errors import UserError
from lit_eff.profiling.config import PARTS, ProfileConfig
from lit_eff.profiling.report import Findings


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
    job = make_job(recipe, profile, console)
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


def _run(part: str, job: Job) -> Findings:
    """The function ``part`` of ``lit_eff.cli.profile_PART``, imported only where it is asked for."""
    function = getattr(importlib.import_module(f"lit_eff.cli.profile_{part}"), part)
    findings: Findings = function(job)
    return findings
