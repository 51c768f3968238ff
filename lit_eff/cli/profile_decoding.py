"""Decoding rounds in every mode, and what each exit saves: the part ``decoding`` of ``lit-eff profile``."""

from __future__ import annotations

from dataclasses import replace

from lit_eff.cli.profile_engine import FLOAT32_BYTES, Profiled, open_engine
from lit_eff.cli.profile_job import Job
from lit_eff.decoding.exit_traffic import exit_savings
from lit_eff.decoding.rounds import profile_rounds
from lit_eff.profiling.exits import energy_per_byte
from lit_eff.profiling.report import Findings, ReportTable
from lit_eff.runtime.exit_rule import ExitRule
from lit_eff.runtime.text import TextRequest

WARM = 4  # tokens decoded first in each mode: allocations and the like


def decoding(job: Job) -> Findings:
    """Decode the same prompt in each mode that the model can run, each call under the clock.

    Raises:
        UserError: as :func:`lit_eff.cli.profile_engine.open_engine`.
    """
    profiled = open_engine(job)
    engine, tokens = profiled.engine, job.profile.decoding.tokens
    requests = [
        engine.prepare(TextRequest(profiled.prompt, max_tokens=tokens, mode=mode)).tokens
        for mode in profiled.modes
    ]
    with job.console.status("Decoding in " + ", ".join(profiled.modes)):
        profile_rounds(engine.runner, [replace(each, max_tokens=WARM) for each in requests])
        found = profile_rounds(engine.runner, requests)
    tables = [*found.tables]
    if len(profiled.config.exit_layers) > 1:
        tables.append(_savings(profiled, job))
    return Findings(tables=tables, notes=list(profiled.notes), timeline=found.timeline)


def _savings(profiled: Profiled, job: Job) -> ReportTable:
    """At half the model's context, every early exit asked unless a certificate says otherwise."""
    certificate, config = profiled.engine.certificate, profiled.config
    rule = ExitRule(thresholds=(1.0,) * (len(config.exit_layers) - 1))
    if certificate is not None:
        rule = certificate.exit_rule()
    watts = job.profile.energy.watts
    return exit_savings(
        config,
        FLOAT32_BYTES,
        rule,
        context=config.context // 2,
        joules_per_byte=energy_per_byte(
            job.device.board_power_watts if watts is None else watts, job.device.hbm_bandwidth
        ),
        certificate=certificate,
    )
