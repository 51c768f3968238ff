"""A model's exits in bytes, against the decode kernel's I/O model and the model's own weights."""

from __future__ import annotations

import pytest

from lit_eff.decoding.exit_traffic import exit_checks, exit_model, exit_savings
from lit_eff.errors import UserError
from lit_eff.kernels.decode_step.arguments import Shape
from lit_eff.kernels.decode_step.call import PHASES
from lit_eff.kernels.decode_step.io_model import Step, weight_bytes
from lit_eff.kernels.decode_step.plan import plan_of
from lit_eff.models.config import ExitConfig, ModelConfig
from lit_eff.models.transformer import Transformer
from lit_eff.profiling.exits import Checks, exit_bytes, full_bytes
from lit_eff.profiling.traffic import Number
from lit_eff.runtime.exit_rule import ExitRule

CONFIG = ModelConfig(
    *(300, 6, 64, 4, 2), mlp_dim=96, context=128, exits=ExitConfig((2, 4), "norm"), tied=True
)


@pytest.mark.parametrize("position", [0, 41, 127])
@pytest.mark.parametrize("element", [2, 4])
def test_the_whole_model_moves_what_the_decode_kernel_does(position: int, element: int) -> None:
    """Weights, cache and one reading of the embedding's row; what phases hand on stays on the chip."""
    shape = Shape(CONFIG.layers, CONFIG.model_dim, 4, 2, CONFIG.head_size, CONFIG.mlp_size, CONFIG.vocab_size)
    plan = plan_of(shape.qkv // 2, shape.channels, shape.inner, 132, 90)
    step = Step(shape, plan, element, [1], [position], [0], cached_sequences=1, slots=CONFIG.context)
    kernel = step.traffic(PHASES)
    matrices = sum(kernel.reads[name] for name in ("qkv", "output", "gate_up", "down"))
    cache = sum(kernel.reads[name] + kernel.writes[name] for name in ("k", "v"))
    embedding = kernel.reads["embedding"] // 2  # the kernel reads the row twice
    output_matrix = weight_bytes(shape, element) - matrices
    moved = full_bytes(exit_model(CONFIG, element), position + 1)
    assert moved == matrices + cache + embedding + output_matrix


@pytest.mark.parametrize("cache_bytes", [2, 4])
def test_a_cache_may_have_elements_of_its_own(cache_bytes: int) -> None:
    sizes = exit_model(CONFIG, 2, cache_bytes)
    assert sizes.slot == cache_bytes * 2 * 2 * CONFIG.head_size
    assert sizes.layer == exit_model(CONFIG, 2).layer


def test_a_shallow_exit_moves_what_a_shallow_model_would() -> None:
    """But for what the skipped layers are owed: a slot each, and the waiting state."""
    model = exit_model(CONFIG, 2)
    shallow = ModelConfig(300, 2, 64, 4, 2, mlp_dim=96, context=128)
    cost = exit_bytes(model, Checks("deferred", (True, True), True), 33)[0]
    assert cost.total == full_bytes(exit_model(shallow, 2), 33) + 4 * model.slot + 2 * model.state


@pytest.mark.parametrize("head", ["shared", "linear", "mlp"])
def test_heads_and_layers_are_the_models_own_matrices(head: str) -> None:
    config = ModelConfig(300, 3, 16, 2, exits=ExitConfig((1,), head), tied=False)  # type: ignore[arg-type]
    model = Transformer(config)
    sizes = exit_model(config, 4)

    def matrices(part: object) -> int:
        return sum(4 * weight.numel() for weight in part.parameters() if weight.dim() == 2)  # type: ignore[attr-defined]

    assert sizes.layer == matrices(model.blocks[0])
    assert sizes.heads[-1] == matrices(model.head)
    early = model.head if head == "shared" else model.exit_heads[0]
    shared_output = matrices(model.head) if head == "mlp" else 0
    assert sizes.heads[0] == matrices(early) + shared_output


def test_the_rule_decides_what_is_asked() -> None:
    rule = ExitRule(thresholds=(None, 0.9), kv_policy="propagate")
    assert exit_checks(CONFIG, rule) == Checks("propagate", (False, True), True, 0)
    scored = ExitRule(thresholds=(0.5, 0.9), measure="classifier")
    assert exit_checks(CONFIG, scored) == Checks("deferred", (True, True), False, 4 * CONFIG.model_dim)
    saturation = ExitRule(thresholds=(0.5, 0.9), measure="hidden_saturation")
    assert exit_checks(CONFIG, saturation).score_bytes == 0


def test_a_window_bounds_what_is_read() -> None:
    windowed = ModelConfig(300, 6, 64, 4, 2, context=128, window=8, exits=ExitConfig((2, 4), "norm"))
    none = Number(None, "unavailable", "no meter")
    rule = ExitRule(thresholds=(0.9, 0.9))
    tables = [exit_savings(windowed, 2, rule, context=n, joules_per_byte=none) for n in (8, 100)]
    assert tables[0].rows == tables[1].rows


def test_a_classifier_is_refused() -> None:
    with pytest.raises(UserError, match="classifier"):
        exit_model(ModelConfig(300, labels=2, causal=False), 2)
