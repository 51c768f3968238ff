"""From what exit rules did on two splits to a certificate, whatever the model writes or predicts.

Shapes: B sequences, K exit rules, the first of which is the full model, E exits, N tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_eff.calibration.config import CalibrationConfig
from lit_eff.calibration.ltt import LttResult, learn_then_test, require_sequences
from lit_eff.calibration.risk_control import risk_interval
from lit_eff.models.checkpoint import LoadedCheckpoint
from lit_eff.runtime.certificate import Candidate, Certificate, Measured, tokenizer_sha256
from lit_eff.runtime.exit_rule import ExitRule

Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]  # stage, sequences done, sequences in all


@dataclass(frozen=True)
class Outcome:
    """What each rule did with each sequence.

    Attributes:
        losses_BK: in [0, 1], float64.
        launched_BK, computed_BK: mean layers of a token, as in :class:`Measured`.
        shares_KE: share of all tokens that left at each exit.
    """

    losses_BK: Floats
    launched_BK: Floats
    computed_BK: Floats
    shares_KE: Floats

    @classmethod
    def of_exits(cls, losses_BK: Floats, exits_KBN: NDArray[np.int64], exit_layers: Sequence[int]) -> Outcome:
        """From the exit index that each token came from."""
        layers_KBN = np.asarray(exit_layers, np.float64)[exits_KBN]
        # A token's deep layers run once some later token goes deep: the running maximum from the right.
        computed_KBN = np.maximum.accumulate(layers_KBN[:, :, ::-1], axis=2)
        shares = [np.bincount(taken.ravel(), minlength=len(exit_layers)) / taken.size for taken in exits_KBN]
        return cls(losses_BK, layers_KBN.mean(axis=2).T, computed_KBN.mean(axis=2).T, np.stack(shares))


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
    grid = run("calibration", grid_rules(config, len(exit_layers)))
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


def grid_rules(config: CalibrationConfig, exits: int) -> list[ExitRule]:
    return [shared_rule(threshold, config, exits) for threshold in config.thresholds]


def shared_rule(threshold: float | None, config: CalibrationConfig, exits: int) -> ExitRule:
    """One threshold for all early exits."""
    return ExitRule(
        measure=config.measure,
        thresholds=(threshold,) * (exits - 1),
        decay=config.decay,
        horizon=config.continuation_length,
    )


def _candidates(config: CalibrationConfig, grid: Outcome, result: LttResult) -> tuple[Candidate, ...]:
    losses_BK = grid.losses_BK[:, 1:]
    low_K, high_K = risk_interval(losses_BK, level=config.epsilon, p_value=config.p_value)
    columns = zip(
        *(config.thresholds, losses_BK.mean(axis=0), result.p_values, result.rejected),
        *(grid.launched_BK[:, 1:].mean(axis=0), low_K.tolist(), high_K.tolist()),
        strict=True,
    )
    return tuple(
        Candidate(
            threshold=float(threshold),
            risk=float(risk),
            p_value=float(p_value),
            certified=bool(rejected),
            layers_per_token=float(layers),
            risk_interval=(low, high),
        )
        for threshold, risk, p_value, rejected, layers, low, high in columns
    )


def _measured(outcome: Outcome, column: int, split_sha256: str) -> Measured:
    return Measured(
        split_sha256=split_sha256,
        sequences=len(outcome.losses_BK),
        risk=float(outcome.losses_BK[:, column].mean()),
        layers_per_token=float(outcome.launched_BK[:, column].mean()),
        computed_layers_per_token=float(outcome.computed_BK[:, column].mean()),
        exit_shares=tuple(outcome.shares_KE[column].tolist()),
    )
