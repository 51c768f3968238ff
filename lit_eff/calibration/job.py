"""The calibrate job: measure a grid of exit thresholds on free-running text, certify, and measure again.

The loss of a sequence is the share of its continuation's tokens that differ from the full model's greedy
continuation (textual consistency, Schuster et al. 2022, section 4). It is measured on what the exits really
generate, each token following the tokens before it, so an early mistake counts for all it leads to.

Shapes: B sequences, K candidate thresholds, E exits, N continuation tokens, P prompt tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_eff.calibration.config import CalibrationConfig
from lit_eff.calibration.ltt import LttResult, learn_then_test, require_sequences
from lit_eff.calibration.resume import WorkFolder, digest_of
from lit_eff.calibration.risk_control import risk_interval
from lit_eff.decoding.batched import Continuations, generate_with_exits
from lit_eff.errors import UserError
from lit_eff.models.checkpoint import LoadedCheckpoint
from lit_eff.models.transformer import Transformer
from lit_eff.runtime.certificate import Candidate, Certificate, Measured, tokenizer_sha256
from lit_eff.runtime.exit_rule import ExitRule
from lit_eff.runtime.risk import token_disagreement

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]  # stage, sequences done, sequences in all


def take_prompts(
    documents: Iterable[ArrayLike], *, split: str, count: int, length: int, exclude: Iterable[Ints] = ()
) -> Ints:
    """The first ``length`` tokens of the first ``count`` documents that are long enough, int64 ``(B, P)``.

    One prompt a document keeps the sequences independent. The order of ``documents`` must not depend on what
    is in them; a DataModule's ``documents`` come in a random order. Prompts in ``exclude`` are passed over:
    different documents may begin alike.

    Raises:
        UserError: the split has too few such documents.
    """
    prompts: list[Ints] = []
    excluded = {prompt_P.tobytes() for prompt_P in exclude}
    for document in documents:
        tokens_P = np.asarray(document, np.int64)[:length]
        if len(tokens_P) == length and tokens_P.tobytes() not in excluded:
            prompts.append(tokens_P)
        if len(prompts) == count:
            return np.stack(prompts)
    raise UserError(
        f"the {split} split has {len(prompts)} documents of at least {length} tokens; {count} are asked for; "
        "lower calibration.sequences, calibration.test_sequences or calibration.prompt_length, or raise the "
        f"split's share in data.splits.{split}"
    )


def check_sequences(config: CalibrationConfig, sequences: int) -> None:
    """Refuse a calibration that could certify nothing even if early exits never changed a token.

    Raises:
        UserError: with the number of sequences that could.
    """
    require_sequences(
        sequences, config.delta, config.epsilon, config.p_value, config.procedure, len(config.thresholds)
    )


def check_model(model: Transformer) -> None:
    """Raises UserError for a model without early exits, or one that does not continue text."""
    if model.config.labels or not model.config.causal:
        raise UserError("token disagreement needs a causal language model; this checkpoint is another kind")
    if len(model.config.exit_layers) == 1:
        raise UserError("this model has no early exits to calibrate; train it with exits.layers set")


def generate_grid(
    loaded: LoadedCheckpoint,
    prompts: list[list[int]],
    config: CalibrationConfig,
    *,
    progress: Progress | None = None,
    work: WorkFolder | None = None,
) -> Continuations:
    """What the full model generates (rule 0), and then each threshold of the grid.

    Raises:
        UserError: as :func:`lit_eff.decoding.batched.generate_with_exits`.
    """
    exits = len(loaded.model.config.exit_layers)
    rules = [_shared_rule(threshold, config, exits) for threshold in config.thresholds]
    return _run(loaded, prompts, rules, config, progress, work, "calibration")


def calibrate(
    loaded: LoadedCheckpoint,
    calibration_prompts: ArrayLike | Sequence[Sequence[int]],
    test_prompts: ArrayLike | Sequence[Sequence[int]],
    config: CalibrationConfig,
    *,
    split_hashes: Mapping[str, str],
    progress: Progress | None = None,
    work: WorkFolder | None = None,
) -> Certificate:
    """Certify the boldest shared exit threshold whose risk is at most ``config.delta``.

    Args:
        calibration_prompts, test_prompts: token ids ``(B, config.prompt_length)``, from disjoint documents;
            lists of token ids of any length where ``config.prompt_length`` is ``None``.
        split_hashes: SHA-256 of the ``calibration`` and ``test`` splits, and of ``train`` if known.
        work: where generated batches are kept, and found by a calibration that was interrupted.

    Returns:
        The certificate. ``selected`` is ``None``, and its rule never exits, where nothing could be certified.

    Raises:
        UserError: too few sequences (with the number needed), splits or prompts that are not disjoint,
            prompts of another length, or a model without early exits.
    """
    check_model(loaded.model)
    exit_layers = loaded.model.config.exit_layers
    prompts = _check_prompts(calibration_prompts, config, "calibration")
    held_out = _check_prompts(test_prompts, config, "test")
    check_sequences(config, len(prompts))
    seen = set(map(tuple, prompts))
    if split_hashes["calibration"] == split_hashes["test"] or seen & set(map(tuple, held_out)):
        raise UserError(
            "the calibration and test prompts are not disjoint; take them from the two splits of one corpus"
        )

    runs = generate_grid(loaded, prompts, config, progress=progress, work=work)
    risk_BK = token_disagreement(runs.tokens_KBN)[:, 1:]
    result = learn_then_test(
        risk_BK,
        delta=config.delta,
        epsilon=config.epsilon,
        p_value=config.p_value,
        procedure=config.procedure,
    )
    selected = None if result.selected is None else config.thresholds[result.selected]
    rule = _shared_rule(selected, config, len(exit_layers))
    test_runs = _run(loaded, held_out, [rule], config, progress, work, "test")

    # Rule 0 of a run is the full model, and so is "never exit".
    column = 0 if result.selected is None else result.selected + 1
    trained_on = (loaded.metadata.get("split_hashes") or {}).get("train")
    return Certificate(
        delta=config.delta,
        epsilon=config.epsilon,
        procedure=config.procedure,
        p_value=config.p_value,
        candidates=_candidates(config, risk_BK, result, runs, exit_layers),
        selected=result.selected,
        exit_layers=exit_layers,
        thresholds=rule.thresholds,
        measure=config.measure,
        decay=config.decay,
        horizon=rule.horizon,
        kv_policy=config.kv_policy,
        dtype=str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        prompt_length=config.prompt_length,
        continuation_length=config.continuation_length,
        calibration=_measured(runs, column, exit_layers, split_hashes["calibration"]),
        test=_measured(test_runs, 1, exit_layers, split_hashes["test"]),
        # Only data split as it was in training is known not to hold documents the model was trained on.
        train_sha256=trained_on if trained_on == split_hashes.get("train") else None,
        weights_sha256=loaded.weights_sha256,
        tokenizer_sha256=tokenizer_sha256(loaded.tokenizer_json),
    )


def _check_prompts(
    prompts: ArrayLike | Sequence[Sequence[int]], config: CalibrationConfig, split: str
) -> list[list[int]]:
    if config.prompt_length is None:
        return [list(prompt) for prompt in cast(Sequence[Sequence[int]], prompts)]
    tokens_BP = np.ascontiguousarray(prompts, np.int64)
    if tokens_BP.ndim != 2 or not len(tokens_BP) or tokens_BP.shape[1] != config.prompt_length:
        raise UserError(
            f"the {split} prompts have shape {tokens_BP.shape}; expected (sequences, {config.prompt_length})"
        )
    tokens: list[list[int]] = tokens_BP.tolist()
    return tokens


def _shared_rule(threshold: float | None, config: CalibrationConfig, exits: int) -> ExitRule:
    return ExitRule(
        measure=config.measure,
        thresholds=(threshold,) * (exits - 1),
        decay=config.decay,
        horizon=config.continuation_length,
    )


def _run(
    loaded: LoadedCheckpoint,
    prompts: list[list[int]],
    rules: list[ExitRule],
    config: CalibrationConfig,
    progress: Progress | None,
    work: WorkFolder | None,
    stage: str,
) -> Continuations:
    """What the full model and then each rule generate."""
    every = [ExitRule(measure=config.measure), *rules]
    steps, size = config.continuation_length, config.batch_size
    kept = None
    if work is not None:
        digest = digest_of(loaded, prompts, every, steps=steps, batch_size=size)
        kept = work.parts(stage, digest, len(prompts))
    return generate_with_exits(
        loaded.model,
        prompts,
        steps,
        every,
        batch_size=size,
        kept=kept,
        progress=None if progress is None else partial(progress, stage),
    )


def _candidates(
    config: CalibrationConfig,
    risk_BK: Floats,
    result: LttResult,
    runs: Continuations,
    exit_layers: Sequence[int],
) -> tuple[Candidate, ...]:
    layers_K = np.asarray(exit_layers)[runs.exits_KBN[1:]].mean(axis=(1, 2))
    low_K, high_K = risk_interval(risk_BK, level=config.epsilon, p_value=config.p_value)
    columns = zip(
        *(config.thresholds, risk_BK.mean(axis=0), result.p_values, result.rejected, layers_K),
        *(low_K.tolist(), high_K.tolist()),
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


def _measured(runs: Continuations, k: int, exit_layers: Sequence[int], split_sha256: str) -> Measured:
    layers_BN = np.asarray(exit_layers)[runs.exits_KBN[k]]
    # A token's deep layers run once some later token goes deep: the running maximum from the right.
    computed_BN = np.maximum.accumulate(layers_BN[:, ::-1], axis=1)
    taken_E = np.bincount(runs.exits_KBN[k].ravel(), minlength=len(exit_layers))
    return Measured(
        split_sha256=split_sha256,
        sequences=len(layers_BN),
        risk=float(token_disagreement(runs.tokens_KBN)[:, k].mean()),
        layers_per_token=float(layers_BN.mean()),
        computed_layers_per_token=float(computed_BN.mean()),
        exit_shares=tuple((taken_E / layers_BN.size).tolist()),
    )
