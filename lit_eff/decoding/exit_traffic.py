"""What leaving early saves on a given model: its sizes and exit rule for :mod:`lit_eff.profiling.exits`."""

from __future__ import annotations

from lit_eff.errors import UserError
from lit_eff.models.config import ModelConfig
from lit_eff.models.counting import attention_weights, head_weights, mlp_weights
from lit_eff.profiling.exits import Checks, ExitModel, exits_table
from lit_eff.profiling.report import ReportTable
from lit_eff.profiling.traffic import Number
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.exit_rule import ExitRule

SCORE_BYTES = 4  # a weight of the exit classifier, which is read in float32


def exit_model(config: ModelConfig, element_bytes: int, cache_element_bytes: int | None = None) -> ExitModel:
    """Sizes of a language model whose weights, and cache unless told otherwise, have ``element_bytes``.

    Raises:
        UserError: for a classifier, which decodes nothing.
    """
    if config.labels:
        raise UserError("this model is a classifier; exits save bytes of a token in a language model")
    key_value = 2 * config.n_kv_heads * config.head_size
    return ExitModel(
        exit_layers=config.exit_layers,
        layer=element_bytes * (attention_weights(config) + mlp_weights(config)),
        key_value_weights=element_bytes * config.model_dim * key_value,
        slot=(cache_element_bytes or element_bytes) * key_value,
        heads=tuple(element_bytes * head_weights(config, index) for index in range(len(config.exit_layers))),
        state=element_bytes * config.model_dim,
    )


def exit_checks(config: ModelConfig, rule: ExitRule) -> Checks:
    """How a rule asks the exits of a model."""
    early = len(config.exit_layers) - 1
    return Checks(
        policy=rule.kv_policy,
        asked=tuple(rule.checks(index) for index in range(early)),
        reads_logits=rule.reads_logits,
        score_bytes=SCORE_BYTES * config.model_dim if rule.measure == "classifier" else 0,
    )


def exit_savings(
    config: ModelConfig,
    element_bytes: int,
    rule: ExitRule,
    *,
    context: int,
    joules_per_byte: Number,
    certificate: Certificate | None = None,
) -> ReportTable:
    """Bytes and joules that each exit saves, and with a certificate its test split's mean token.

    Args:
        context: tokens in the cache, the newest included; a model's window bounds what is read of them.
    """
    slots = min(context, config.window or context)
    shares = certificate.test.exit_shares if certificate is not None else None
    model = exit_model(config, element_bytes)
    return exits_table(model, exit_checks(config, rule), slots, joules_per_byte, shares)
