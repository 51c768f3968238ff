"""Calibration from logged traffic: the procedure of an older certificate, on what users now ask.

Everything that must be fixed before the losses are seen is taken from that certificate: levels, candidates
in their order, measure, schedule, procedure. Vectors of thresholds whose order was learned are now a fixed
sequence like any other: the log had no say in that order, so nothing need be learned again. Prompts are
whole, as they were asked. They are split by a hash of their own content: a prompt always falls into the same
part, however the log grows, and copies of one never into both.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import numpy as np

from lit_eff.calibration.certify import Progress
from lit_eff.calibration.config import CalibrationConfig, Risk
from lit_eff.calibration.job import calibrate
from lit_eff.calibration.ltt import sequences_needed
from lit_eff.calibration.resume import WorkFolder
from lit_eff.errors import UserError
from lit_eff.files import sha256_bytes
from lit_eff.models.checkpoint import LoadedCheckpoint
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.prompts import Prompt

CALIBRATION_SHARE = 2 / 3


def split_prompts(prompts: Iterable[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Distinct prompts for calibration (two thirds) and for the test, each in the order of their hashes.

    That order looks random, and depends on nothing but the prompts: a prefix of a part is a fair sample.
    """
    hashed = sorted((hashlib.sha256(_bytes(prompt)).digest(), prompt) for prompt in set(prompts))
    border = int(CALIBRATION_SHARE * 2**64)
    # The last bytes decide the part and the first the order, so that neither tells of the other.
    parts: tuple[list[Prompt], list[Prompt]] = ([], [])
    for digest, prompt in hashed:
        parts[int.from_bytes(digest[-8:]) >= border].append(prompt)
    return parts


def recalibrate(
    loaded: LoadedCheckpoint,
    certificate: Certificate,
    prompts: Iterable[Prompt],
    *,
    most: int,
    progress: Progress | None = None,
    work: WorkFolder | None = None,
) -> Certificate:
    """A new certificate for the same model from logged prompts.

    Args:
        loaded: the model of ``certificate``.
        prompts: of any length that leaves room for the continuation; copies count once.
        most: sequences to calibrate on, and half as many to test on, where there are more.
        progress, work: as in :func:`lit_eff.calibration.job.calibrate`.

    Raises:
        UserError: for too few prompts, with the number needed; for a certificate of a classifier, or of risk
            consistency, whose reference a log does not hold.
    """
    certificate.check_writes()
    if any(risk.certifies == "risk_consistency" for risk in certificate.risks):
        raise UserError(
            "the certificate is of risk consistency, and a log holds no references; calibrate the checkpoint "
            "on documents instead"
        )
    calibration, test = split_prompts(prompts)
    procedure = certificate.procedure if certificate.learning is None else "fixed_sequence"
    delta = min(risk.delta for risk in certificate.risks)
    needed = sequences_needed(
        delta,
        certificate.epsilon,
        certificate.p_value,
        procedure,
        len(certificate.candidates),
    )
    usable = min(len(calibration), most)
    if usable < needed or not test:
        raise UserError(
            f"the log has {len(calibration) + len(test)} distinct prompts that can be used, of which "
            f"{usable} calibrate and {len(test)} test; at delta {delta:g} and epsilon "
            f"{certificate.epsilon:g} at least {needed} must calibrate, even without a single error, which "
            f"takes about {math.ceil(needed / CALIBRATION_SHARE)} distinct prompts in the log"
        )
    calibration, test = calibration[:most], test[: max(1, most // 2)]
    early_exits = len(certificate.exit_layers) - 1
    config = CalibrationConfig(
        risk=certificate.certifies,
        metric=certificate.metric,
        delta=certificate.delta,
        also=tuple(Risk(risk.certifies, risk.metric, risk.delta) for risk in certificate.risks[1:]),
        epsilon=certificate.epsilon,
        sequences=len(calibration),
        test_sequences=len(test),
        prompt_length=None,
        continuation_length=certificate.continuation_length,
        thresholds=tuple(
            candidate.vector(early_exits) if candidate.threshold is None else candidate.threshold
            for candidate in certificate.candidates
        ),
        measure=certificate.measure,
        decay=certificate.decay,
        kv_policy=certificate.kv_policy or "deferred",
        p_value=certificate.p_value,
        procedure=procedure,
    )
    hashes = {"calibration": _split_sha256(calibration), "test": _split_sha256(test)}
    return calibrate(loaded, calibration, test, config, split_hashes=hashes, progress=progress, work=work)


def _bytes(prompt: Prompt) -> bytes:
    return np.asarray(prompt, "<i8").tobytes()


def _split_sha256(prompts: list[Prompt]) -> str:
    return sha256_bytes(*map(_bytes, prompts))
