import subprocess
import sys

import pytest

from lit_eff.errors import UserError
from lit_eff.models.config import ExitConfig, ModelConfig


def config(**settings) -> ModelConfig:
    return ModelConfig(vocab_size=100, layers=6, model_dim=32, heads=4, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"context": 0}, "model.context is 0"),
        ({"kv_heads": 3}, "multiple of model.kv_heads 3"),
        ({"kv_heads": 0}, "n_kv_heads is 0"),
        ({"head_dim": 7}, "even number up to head dim 7"),
        ({"rotary_dim": 10}, "even number up to head dim 8"),
        ({"dropout": 1.0}, "probability below 1"),
        ({"labels": 1}, "model.labels is 1"),
        ({"window": 0}, "model.window is 0"),
        ({"window": 4, "causal": False}, "causal model"),
        ({"attention_softcap": 0.0}, "attention_softcap is 0.0"),
        ({"logit_softcap": -1.0}, "logit_softcap is -1.0"),
        ({"norm": "batch"}, "model.norm is 'batch'"),
        ({"rope_scaling": {"rope_type": "lama3"}}, "did you mean 'llama3'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "lacks factor"),
        ({"exits": ExitConfig((2, 6))}, "from 1 to 5"),
        ({"exits": ExitConfig((3, 2))}, "increasing"),
        ({"exits": ExitConfig((2, 2))}, "increasing"),
        ({"exits": ExitConfig(classifier=True)}, "exits.classifier is true with no early exits"),
        ({"exits": ExitConfig((2,), "own")}, "exits.head is 'own'"),  # type: ignore[arg-type]
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(UserError, match=words):
        config(**settings)


def test_model_dim_must_divide():
    with pytest.raises(UserError, match=r"not a multiple of model\.heads 5"):
        ModelConfig(vocab_size=10, model_dim=32, heads=5)


def test_dictionary_round_trip():
    original = config(kv_heads=2, window=8, exits=ExitConfig((2, 4), "mlp"))
    assert ModelConfig.from_dict(original.to_dict()) == original
    assert original.exit_layers == (2, 4, 6)


def test_a_model_without_an_exit_classifier_is_described_as_before():
    plain = config(exits=ExitConfig((2, 4), "mlp"))
    assert plain.to_dict()["exits"] == {"layers": [2, 4], "head": "mlp"}
    classified = config(exits=ExitConfig((2, 4), "mlp", classifier=True))
    assert classified.to_dict()["exits"] == {"layers": [2, 4], "head": "mlp", "classifier": True}
    assert ModelConfig.from_dict(classified.to_dict()) == classified


def test_unknown_keys_are_named():
    with pytest.raises(UserError, match="did you mean 'layers'"):
        ModelConfig.from_dict({"vocab_size": 10, "layer": 3})
    with pytest.raises(UserError, match="unknown exit setting 'heads'"):
        ModelConfig.from_dict({"vocab_size": 10, "exits": {"heads": "shared"}})


def test_config_is_read_without_torch():
    code = "import sys, lit_eff.models.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
