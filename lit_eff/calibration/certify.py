"""From what exit rules did on each split to a certificate, whatever the model writes or predicts.

Shapes: R risks, B sequences, K exit rules, the first of which is the full model, E exits, N tokens of a
sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_eff.calibration import config as settings
from lit_eff.calibration.config import CalibrationConfig
from lit_eff.calibration.ltt import LttResult, require_sequences
from lit_eff.calibration.measures import MeasureChoice, choose_measure
from lit_eff.calibration.paths import NEVER, learn_thresholds
from lit_eff.calibration.risk_control import risk_interval
from lit_eff.models.checkpoint import LoadedCheckpoint
from lit_eff.runtime import evidence
from lit_eff.runtime.certificate import Certificate, tokenizer_sha256
from lit_eff.runtime.confidence import Measure
from lit_eff.runtime.evidence import Candidate, Learning, Measured, Tried
from lit_eff.runtime.exit_rule import ExitRule, KVPolicy, Thresholds

Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]  # stage, sequences done, sequences in all


@dataclass(frozen=True)
class Outcome:
    """What each rule did with each sequence.

    Attributes:
        losses_RBK: of each risk, in [0, 1], float64.
        launched_BK, computed_BK: mean layers of a token, as in :class:`Measured`.
        shares_KE: share of all tokens that left at each exit.
    """

    losses_RBK: Floats
    launched_BK: Floats
    computed_BK: Floats
    shares_KE: Floats

    @classmethod
    def of_exits(
        cls,
        losses_RBK: Floats,
        exits_KBN: NDArray[np.int64],
        exit_layers: Sequence[int],
        kv_policy: KVPolicy = "deferred",
    ) -> Outcome:
        """From the exit index that each token came from."""
        layers_KBN = np.asarray(exit_layers, np.float64)[exits_KBN]
        launched_KBN = np.full_like(layers_KBN, exit_layers[-1]) if kv_policy == "exact" else layers_KBN
        computed_KBN = _computed(layers_KBN, exit_layers[-1], kv_policy)
        shares = [np.bincount(taken.ravel(), minlength=len(exit_layers)) / taken.size for taken in exits_KBN]
        return cls(losses_RBK, launched_KBN.mean(axis=2).T, computed_KBN.mean(axis=2).T, np.stack(shares))


def _computed(layers_KBN: Floats, full: int, kv_policy: KVPolicy) -> Floats:
    """Layers run of each token by the end, given where it left (:mod:`lit_eff.runtime.segments`)."""
    if kv_policy == "propagate":
        return layers_KBN
    if kv_policy == "exact":
        return np.full_like(layers_KBN, full)
    computed_KBN = np.empty_like(layers_KBN)
    later_KB = np.zeros(layers_KBN.shape[:2])
    for t in reversed(range(layers_KBN.shape[2])):
        here_KB = layers_KBN[:, :, t]
        if kv_policy == "deferred":  # its deep layers run once some later token goes deep
            later_KB = np.maximum(here_KB, later_KB)
        else:  # it runs again with every later token, until one goes all the way
            later_KB = here_KB + np.where(here_KB == full, 0.0, later_KB)
        computed_KBN[:, :, t] = later_KB
    return computed_KBN


# (split, rules) -> what the full model (rule 0) and each of the rules did there
Run = Callable[[str, Sequence[ExitRule]], Outcome]


def check_sequences(config: CalibrationConfig, sequences: int) -> None:
    """Refuse a calibration that could certify nothing even if early exits never changed anything.

    Raises:
        UserError: with the number of sequences that could.
    """
    require_sequences(
        sequences,
        min(config.deltas),
        config.level,
        config.p_value,
        config.procedure,
        len(config.thresholds),
    )


def stage_name(config: CalibrationConfig, split: str, rules: Sequence[ExitRule]) -> str:
    """What a run is called while it lasts: its split, and its measure where there are several."""
    return split if len(config.measures) == 1 or split == "test" else f"{split} {rules[0].measure}"


def certify(
    loaded: LoadedCheckpoint, config: CalibrationConfig, run: Run, *, split_hashes: Mapping[str, str]
) -> Certificate:
    """Run the candidates on the calibration split, choose by Learn then Test, run the choice on the test's.

    The candidates are the grid, or vectors learned on the ``learning`` split. Their order is fixed before the
    calibration split is run. Several confidence measures have candidates of their own each, and share epsilon
    (:func:`lit_eff.calibration.choose_measure`).

    Args:
        split_hashes: SHA-256 of the ``calibration`` and ``test`` splits, of ``learning`` if there is one, and
            of ``train`` if known.
    """
    exit_layers = loaded.model.config.exit_layers
    early_exits = len(exit_layers) - 1
    orders: dict[Measure, tuple[list[Thresholds], Learning | None]] = {}
    for measure in config.measures:
        if config.learns:
            orders[measure] = _learn(config, measure, run, exit_layers, split_hashes["learning"])
        else:
            orders[measure] = config.vectors(early_exits), None
    of_measure: dict[Measure, _Run] = {}
    for measure, (vectors, learning) in orders.items():
        grid = run("calibration", [exit_rule(vector, config, measure) for vector in vectors])
        of_measure[measure] = _Run(vectors, learning, grid)
    choice = choose_measure(
        {name: one.grid.losses_RBK[..., 1:] for name, one in of_measure.items()},
        {name: one.saved for name, one in of_measure.items()},
        delta=config.deltas,
        epsilon=config.epsilon,
        p_value=config.p_value,
        procedure="fixed_sequence" if config.learns else config.procedure,
    )
    measure = next((name for name in config.measures if name == choice.measure), config.measures[0])
    result, chosen = choice.results[measure], of_measure[measure]
    never: Thresholds = (None,) * early_exits
    thresholds = never if result.selected is None else chosen.vectors[result.selected]
    rule = exit_rule(thresholds, config, measure)
    held_out = run("test", [rule])

    # Rule 0 of a run is the full model, and so is "never exit".
    column = 0 if result.selected is None else result.selected + 1
    trained_on = (loaded.metadata.get("split_hashes") or {}).get("train")
    return Certificate(
        certifies=config.risk,
        metric=_certified_risk(config.risks[0]).metric,
        delta=config.delta,
        also=tuple(map(_certified_risk, config.also)) or None,
        epsilon=config.epsilon,
        procedure=config.procedure,
        p_value=config.p_value,
        candidates=_candidates(config, chosen, result),
        selected=result.selected,
        exit_layers=exit_layers,
        thresholds=rule.thresholds,
        measure=measure,
        tried=_tried(of_measure, choice) if len(of_measure) > 1 else None,
        decay=config.decay,
        horizon=rule.horizon,
        kv_policy=None if config.classifies else config.kv_policy,
        dtype=str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        prompt_length=config.prompt_length,
        continuation_length=config.continuation_length,
        calibration=_measured(chosen.grid, column, split_hashes["calibration"]),
        test=_measured(held_out, 1, split_hashes["test"]),
        learning=chosen.learning,
        # Only data split as it was in training is known not to hold documents the model was trained on.
        train_sha256=trained_on if trained_on == split_hashes.get("train") else None,
        weights_sha256=loaded.weights_sha256,
        tokenizer_sha256=tokenizer_sha256(loaded.tokenizer_json),
    )


@dataclass(frozen=True)
class _Run:
    """One confidence measure's candidates, and what they did on the calibration split."""

    vectors: Sequence[Thresholds]
    learning: Learning | None
    grid: Outcome

    @property
    def saved(self) -> Floats:
        """Layers of a token that each candidate saves."""
        layers_K = self.grid.launched_BK.mean(axis=0)
        return np.asarray(layers_K[0] - layers_K[1:])


def exit_rule(thresholds: Thresholds, config: CalibrationConfig, measure: Measure) -> ExitRule:
    """The rule of a vector of thresholds, one per early exit."""
    return ExitRule(
        measure=measure,
        thresholds=thresholds,
        decay=config.decay,
        horizon=config.continuation_length,
        kv_policy=config.kv_policy,
    )


def _learn(
    config: CalibrationConfig, measure: Measure, run: Run, exit_layers: Sequence[int], split_sha256: str
) -> tuple[list[Thresholds], Learning]:
    """Vectors of thresholds from safest to boldest, by what they do on the ``learning`` split."""
    sequences = 0

    def look(thresholds_VE: Floats) -> tuple[Floats, Floats]:
        nonlocal sequences
        done = run("learning", [exit_rule(vector, config, measure) for vector in _vectors(thresholds_VE)])
        sequences = len(done.launched_BK)
        return done.losses_RBK[..., 1:], exit_layers[-1] - done.launched_BK[:, 1:].mean(axis=0)

    early_exits = len(exit_layers) - 1
    path = learn_thresholds(
        look,
        config.shared,
        early_exits,
        delta=config.deltas,
        epsilon=config.level,
        p_value=config.p_value,
    )
    # "Never exit" needs no test: it is what remains if nothing is certified. Where the path holds nothing
    # else, all others being over delta or saving nothing, the test of the most conservative one shows it.
    vectors = [vector for vector in _vectors(path.thresholds) if any(each is not None for each in vector)]
    learning = Learning(split_sha256=split_sha256, sequences=sequences, vectors=path.measured)
    return vectors or config.vectors(early_exits)[:1], learning


def _certified_risk(risk: settings.Risk) -> evidence.Risk:
    metric = "zero_one" if risk.classifies else risk.metric
    return evidence.Risk(certifies=risk.risk, metric=metric, delta=risk.delta)


def _vectors(thresholds_VE: Floats) -> list[Thresholds]:
    return [tuple(None if each == NEVER else each for each in row) for row in thresholds_VE.tolist()]


def _tried(of_measure: Mapping[Measure, _Run], choice: MeasureChoice) -> tuple[Tried, ...]:
    found = []
    for name, one in of_measure.items():
        selected = choice.results[name].selected
        layers = None if selected is None else float(one.grid.launched_BK[:, selected + 1].mean())
        found.append(Tried(measure=name, layers_per_token=layers))
    return tuple(found)


def _candidates(config: CalibrationConfig, chosen: _Run, result: LttResult) -> tuple[Candidate, ...]:
    vectors, grid = chosen.vectors, chosen.grid
    losses_RBK = grid.losses_RBK[..., 1:]
    low_K, high_K = risk_interval(losses_RBK[0], level=config.epsilon, p_value=config.p_value)
    columns = zip(
        *(vectors, losses_RBK.mean(axis=1).T.tolist(), result.p_values, result.rejected),
        *(grid.launched_BK[:, 1:].mean(axis=0), low_K.tolist(), high_K.tolist()),
        strict=True,
    )
    shared = all(len(set(vector)) == 1 and vector[0] is not None for vector in vectors)
    return tuple(
        Candidate(
            threshold=vector[0] if shared else None,
            thresholds=None if shared else vector,
            risk=risks[0],
            also_risks=tuple(risks[1:]) or None,
            p_value=float(p_value),
            certified=bool(rejected),
            layers_per_token=float(layers),
            risk_interval=(low, high),
        )
        for vector, risks, p_value, rejected, layers, low, high in columns
    )


def _measured(outcome: Outcome, column: int, split_sha256: str) -> Measured:
    risks = outcome.losses_RBK[..., column].mean(axis=1).tolist()
    return Measured(
        split_sha256=split_sha256,
        sequences=len(outcome.launched_BK),
        risk=risks[0],
        also_risks=tuple(risks[1:]) or None,
        layers_per_token=float(outcome.launched_BK[:, column].mean()),
        computed_layers_per_token=float(outcome.computed_BK[:, column].mean()),
        exit_shares=tuple(outcome.shares_KE[column].tolist()),
    )
