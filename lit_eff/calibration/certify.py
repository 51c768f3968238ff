"""From what exit rules did on two splits to a certificate, whatever the model writes or predicts.

Shapes: B sequences, K exit rules, the first of which is the full model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_eff.calibration.config import CalibrationConfig
from lit_eff.calibration.ltt import LttResult, learn_then_test, require_sequences
from lit_eff.models.checkpoint import LoadedCheckpoint
from lit_eff.runtime.certificate import Candidate, Certificate, Measured, tokenizer_sha256
from lit_eff.runtime.exit_rule import ExitRule

Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]  # stage, sequences done, sequences in all


@dataclass(frozen=True)
class Outcome:
    """What each rule did with each sequence, float64 ``(B, K)``.

    Attributes:
        losses_BK: in [0, 1].
        launched_BK, computed_BK: mean layers of a token, as in :class:`Measured`.
    """

    losses_BK: Floats
    launched_BK: Floats
    computed_BK: Floats


# (split, rules) -> what the full model (rule 0) and each of the rules did there
Run = Callable[[str, Sequence[ExitRule]], Outcome]


def check_sequences(config: CalibrationConfig, sequences: int) -> None:
    """Refuse a calibration that could certify nothing even if early exits never changed anything.

    Raises:
        UserError: with the number of sequences that could.
    """
    require_sequences(
        sequences, config.delta, config.epsilon, config.p_value, config.procedure, len(config.thresholds)
    )


def certify(
    loaded: LoadedCheckpoint, config: CalibrationConfig, run: Run, *, split_hashes: Mapping[str, str]
) -> Certificate:
    """Run the grid on the calibration split, choose by Learn then Test, and run the choice on the test split.

    Args:
        split_hashes: SHA-256 of the ``calibration`` and ``test`` splits, and of ``train`` if known.
    """
    exit_layers = loaded.model.config.exit_layers
    rules = [shared_rule(threshold, config, len(exit_layers)) for threshold in config.thresholds]
    grid = run("calibration", rules)
    result = learn_then_test(
        grid.losses_BK[:, 1:],
        delta=config.delta,
        epsilon=config.epsilon,
        p_value=config.p_value,
        procedure=config.procedure,
    )
    selected = None if result.selected is None else config.thresholds[result.selected]
    rule = shared_rule(selected, config, len(exit_layers))
    held_out = run("test", [rule])

    # Rule 0 of a run is the full model, and so is "never exit".
    column = 0 if result.selected is None else result.selected + 1
    trained_on = (loaded.metadata.get("split_hashes") or {}).get("train")
    return Certificate(
        certifies=config.risk,
        metric="zero_one" if config.classifies else config.metric,
        delta=config.delta,
        epsilon=config.epsilon,
        procedure=config.procedure,
        p_value=config.p_value,
        candidates=_candidates(config, grid, result),
        selected=result.selected,
        exit_layers=exit_layers,
        thresholds=rule.thresholds,
        measure=config.measure,
        decay=config.decay,
        horizon=rule.horizon,
        kv_policy=None if config.classifies else config.kv_policy,
        dtype=str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        prompt_length=config.prompt_length,
        continuation_length=config.continuation_length,
        calibration=_measured(grid, column, split_hashes["calibration"]),
        test=_measured(held_out, 1, split_hashes["test"]),
        # Only data split as it was in training is known not to hold documents the model was trained on.
        train_sha256=trained_on if trained_on == split_hashes.get("train") else None,
        weights_sha256=loaded.weights_sha256,
        tokenizer_sha256=tokenizer_sha256(loaded.tokenizer_json),
    )


def shared_rule(threshold: float | None, config: CalibrationConfig, exits: int) -> ExitRule:
    """One threshold for all early exits."""
    return ExitRule(
        measure=config.measure,
        thresholds=(threshold,) * (exits - 1),
        decay=config.decay,
        horizon=config.continuation_length,
    )


def _candidates(config: CalibrationConfig, grid: Outcome, result: LttResult) -> tuple[Candidate, ...]:
    columns = zip(
        config.thresholds,
        grid.losses_BK[:, 1:].mean(axis=0),
        result.p_values,
        result.rejected,
        grid.launched_BK[:, 1:].mean(axis=0),
        strict=True,
    )
    return tuple(
        Candidate(
            threshold=float(threshold),
            risk=float(risk),
            p_value=float(p_value),
            certified=bool(rejected),
            layers_per_token=float(layers),
        )
        for threshold, risk, p_value, rejected, layers in columns
    )


def _measured(outcome: Outcome, column: int, split_sha256: str) -> Measured:
    return Measured(
        split_sha256=split_sha256,
        sequences=len(outcome.losses_BK),
        risk=float(outcome.losses_BK[:, column].mean()),
        layers_per_token=float(outcome.launched_BK[:, column].mean()),
        computed_layers_per_token=float(outcome.computed_BK[:, column].mean()),
    )
