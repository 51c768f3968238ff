"""The calibrate job of a language model: run a grid of exit thresholds on free-running text, and certify.

The loss of a sequence compares continuations (:class:`lit_eff.runtime.risk.SequenceLoss`). It is measured on
what the exits really generate, each token following the tokens before it, so an early mistake counts for all
it leads to.

Shapes: B sequences, K exit rules, N continuation tokens, P prompt tokens, R reference tokens (N or none).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_eff.calibration.certify import Outcome, Progress, certify, check_sequences, exit_rule, stage_name
from lit_eff.calibration.config import CalibrationConfig
from lit_eff.calibration.resume import WorkFolder, digest_of
from lit_eff.calibration.text_metrics import find_metric
from lit_eff.decoding.batched import generate_with_exits
from lit_eff.errors import UserError
from lit_eff.models.checkpoint import LoadedCheckpoint
from lit_eff.models.transformer import Transformer
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.exit_rule import ExitRule
from lit_eff.runtime.metrics import TOKEN_METRICS
from lit_eff.runtime.risk import SequenceLoss

Ints = NDArray[np.int64]


def take_prompts(
    documents: Iterable[ArrayLike],
    *,
    split: str,
    count: int,
    length: int,
    reference: int = 0,
    exclude: Iterable[Ints] = (),
) -> Ints:
    """The first ``length + reference`` tokens of the first ``count`` documents that have them.

    Int64 ``(B, P + R)``: prompts, and the documents' own tokens after them. One prompt a document keeps the
    sequences independent. The order of ``documents`` must not depend on what is in them; a DataModule's
    ``documents`` come in a random order. Prompts that ``exclude`` begins with are passed over: different
    documents may begin alike.

    Raises:
        UserError: the split has too few such documents.
    """
    taken: list[Ints] = []
    excluded = {np.asarray(one)[:length].tobytes() for one in exclude}
    for document in documents:
        tokens = np.asarray(document, np.int64)[: length + reference]
        if len(tokens) == length + reference and tokens[:length].tobytes() not in excluded:
            taken.append(tokens)
        if len(taken) == count:
            return np.stack(taken)
    raise UserError(
        f"the {split} split has {len(taken)} documents of at least {length + reference} tokens; {count} are "
        "asked for; lower that number in the calibration section or calibration.prompt_length, or raise the "
        f"split's share in data.splits.{split}"
    )


def calibrate(
    loaded: LoadedCheckpoint,
    calibration_prompts: ArrayLike | Sequence[Sequence[int]],
    test_prompts: ArrayLike | Sequence[Sequence[int]],
    config: CalibrationConfig,
    *,
    split_hashes: Mapping[str, str],
    learning_prompts: ArrayLike | Sequence[Sequence[int]] | None = None,
    progress: Progress | None = None,
    work: WorkFolder | None = None,
) -> Certificate:
    """Certify the boldest exit thresholds, shared or a vector, whose risk is at most ``config.delta``.

    Args:
        calibration_prompts, test_prompts: token ids ``(B, config.prompt_length + config.reference_length)``,
            from disjoint documents; lists of token ids of any length where ``config.prompt_length`` is
            ``None``.
        split_hashes: SHA-256 of the ``calibration`` and ``test`` splits, of ``learning`` if there is one, and
            of ``train`` if known.
        learning_prompts: of documents in neither, where the procedure learns vectors of thresholds.
        work: where generated batches are kept, and found by a calibration that was interrupted.

    Returns:
        The certificate. ``selected`` is ``None``, and its rule never exits, where nothing could be certified.

    Raises:
        UserError: too few sequences (with the number needed), splits or prompts that are not disjoint,
            prompts of another length, a metric that cannot be computed, or a model without early exits.
    """
    check_model(loaded.model, config)
    splits = {
        "calibration": _check_prompts(calibration_prompts, config, "calibration"),
        "test": _check_prompts(test_prompts, config, "test"),
    }
    if config.learns:
        if learning_prompts is None:
            raise UserError(f"{config.procedure} learns on prompts of their own; give learning_prompts")
        splits["learning"] = _check_prompts(learning_prompts, config, "learning")
    check_sequences(config, len(splits["calibration"][0]))
    _check_disjoint({name: prompts for name, (prompts, _) in splits.items()}, split_hashes)
    searched = None if progress is None else _SearchProgress(progress)

    def run(split: str, rules: Sequence[ExitRule]) -> Outcome:
        report = searched if split == "learning" else progress
        return _measure(loaded, *splits[split], rules, config, stage_name(config, split, rules), report, work)

    return certify(loaded, config, run, split_hashes=split_hashes)


def _check_disjoint(splits: Mapping[str, list[list[int]]], split_hashes: Mapping[str, str]) -> None:
    for one, other in combinations(splits, 2):
        common = set(map(tuple, splits[one])) & set(map(tuple, splits[other]))
        if common or split_hashes[one] == split_hashes[other]:
            raise UserError(
                f"the {one} and {other} prompts are not disjoint; take them from different documents of one "
                "corpus"
            )


@dataclass
class _SearchProgress:
    """Progress of a search that runs the same sequences again and again: the total grows with each pass."""

    progress: Progress
    passes: Counter[str] = field(default_factory=Counter)

    def __call__(self, stage: str, done: int, total: int) -> None:
        before = self.passes[stage] * total
        self.progress(stage, before + done, before + total)
        self.passes[stage] += done == total


def check_model(model: Transformer, config: CalibrationConfig) -> None:
    """Raises UserError for a model without early exits, or one that does not continue text."""
    if model.config.labels or not model.config.causal:
        raise UserError(f"{config.risk} needs a causal language model; this checkpoint is another kind")
    if config.classifies:
        raise UserError(
            f"calibration.risk is {config.risk!r}, of a classifier, and this checkpoint is a language model; "
            "use textual_consistency or risk_consistency"
        )
    if len(model.config.exit_layers) == 1:
        raise UserError("this model has no early exits to calibrate; train it with exits.layers set")


def measure_grid(
    loaded: LoadedCheckpoint, prompts: ArrayLike, config: CalibrationConfig, progress: Progress | None = None
) -> Outcome:
    """What the full model (rule 0) and each candidate of the grid do with prompts as in :func:`calibrate`.

    Raises:
        UserError: as :func:`calibrate`, of the model, the metric and the prompts.
    """
    check_model(loaded.model, config)
    vectors = config.vectors(len(loaded.model.config.exit_layers) - 1)
    rules = [exit_rule(vector, config, config.measures[0]) for vector in vectors]
    checked = _check_prompts(prompts, config, "calibration")
    return _measure(loaded, *checked, rules, config, "calibration", progress, None)


def _measure(
    loaded: LoadedCheckpoint,
    prompts: list[list[int]],
    reference_BN: Ints | None,
    rules: Sequence[ExitRule],
    config: CalibrationConfig,
    stage: str,
    progress: Progress | None,
    work: WorkFolder | None,
) -> Outcome:
    losses = [
        SequenceLoss(find_metric(risk.metric, loaded.tokenizer_json), risk.risk == "risk_consistency")
        for risk in config.risks
    ]
    every = [ExitRule(measure=rules[0].measure, kv_policy=config.kv_policy), *rules]
    steps, size = config.continuation_length, config.batch_size
    kept = None
    if work is not None:
        digest = digest_of(loaded, prompts, every, steps=steps, batch_size=size)
        kept = work.parts(stage, digest, len(prompts))
    runs = generate_with_exits(
        loaded.model,
        prompts,
        steps,
        every,
        batch_size=size,
        kept=kept,
        progress=None if progress is None else partial(progress, stage),
    )
    losses_RBK = []
    for risk, loss in zip(config.risks, losses, strict=True):
        # Comparing tokens takes no time worth a bar; comparing texts may take longer than writing them.
        comparing = None
        if progress is not None and risk.metric not in TOKEN_METRICS:
            comparing = partial(progress, f"{stage} {risk.metric}")
        losses_RBK.append(loss.of_rules(runs.tokens_KBN, reference_BN, comparing))
    exit_layers = loaded.model.config.exit_layers
    return Outcome.of_exits(np.stack(losses_RBK), runs.exits_KBN, exit_layers, config.kv_policy)


def _check_prompts(
    prompts: ArrayLike | Sequence[Sequence[int]], config: CalibrationConfig, split: str
) -> tuple[list[list[int]], Ints | None]:
    """Prompts, and the references that follow them if there are any."""
    length, reference = config.prompt_length, config.reference_length
    if length is None:
        return [list(prompt) for prompt in cast(Sequence[Sequence[int]], prompts)], None
    tokens_BT = np.ascontiguousarray(prompts, np.int64)
    if tokens_BT.ndim != 2 or not len(tokens_BT) or tokens_BT.shape[1] != length + reference:
        raise UserError(
            f"the {split} prompts have shape {tokens_BT.shape}; expected (sequences, {length + reference})"
        )
    tokens: list[list[int]] = tokens_BT[:, :length].tolist()
    return tokens, tokens_BT[:, length:] if reference else None
