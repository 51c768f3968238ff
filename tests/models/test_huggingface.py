"""Folders, heads and refusals; that the logits agree is tests/parity's business."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_eff.errors import UserError
from lit_eff.models.config import ExitConfig
from lit_eff.models.huggingface import from_hf, save_hf, to_hf_config

FAMILIES = {"llama": "llama", "qwen": "qwen3", "gpt2": "gpt2", "bert": "bert"}


@pytest.mark.parametrize("head", ["shared", "norm", "linear", "mlp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_comes_back_with_its_exits(tmp_path, make_model, tokens_BT, family, head):
    model = make_model(family, head=head)
    save_hf(model, tmp_path / "out", tokenizer_json='{"version": "1.0"}')
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == FAMILIES[family]
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"version": "1.0"}'
    back = from_hf(tmp_path / "out")
    assert back.config.exits == model.config.exits
    torch.testing.assert_close(back.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(back(tokens_BT), model(tokens_BT), rtol=0, atol=0)


@pytest.mark.parametrize("head", ["norm", "linear", "mlp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_new_exits_start_as_the_final_head(tmp_path, make_model, tokens_BT, family, head):
    save_hf(make_model(family, exits=()), tmp_path / "out")
    model = from_hf(tmp_path / "out", ExitConfig((1,), head))  # type: ignore[arg-type]
    first = model(tokens_BT)[0]
    if head == "mlp":  # its fresh block aside
        model.exit_heads[0].block = None  # type: ignore[assignment]
    if family == "bert":  # a post-norm model's final head has no norm to copy
        model.exit_heads[0].norm = torch.nn.Identity()
    torch.testing.assert_close(model.logits(first, 0), model.logits(first, 1))
    assert model.exit_heads[0].norm is not model.head.norm


def test_other_exits_replace_the_recorded_ones(tmp_path, make_model):
    save_hf(make_model(head="linear"), tmp_path / "out")
    model = from_hf(tmp_path / "out", ExitConfig((2,), "linear"))
    assert model.config.exit_layers == (2, 3)
    torch.testing.assert_close(model.head_weight(0), model.head_weight(1))


@pytest.mark.parametrize("head", ["shared", "linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_exit_classifier_goes_along(tmp_path, make_model, family, head):
    model = make_model(family, head=head, classifier=True)
    save_hf(model, tmp_path / "out")
    back = from_hf(tmp_path / "out")
    assert back.config.exits == model.config.exits
    torch.testing.assert_close(back.state_dict(), model.state_dict(), rtol=0, atol=0)
    without = from_hf(tmp_path / "out", dataclasses.replace(model.config.exits, classifier=False))
    kept = {name: value for name, value in model.state_dict().items() if "exit_classifier" not in name}
    torch.testing.assert_close(without.state_dict(), kept, rtol=0, atol=0)


@pytest.mark.parametrize("head", ["shared", "linear"])
def test_a_folder_without_an_exit_classifier_gets_a_fresh_one(tmp_path, make_model, head):
    model = make_model(head=head)
    save_hf(model, tmp_path / "out")
    assert "classifier" not in (tmp_path / "out" / "config.json").read_text()
    fresh = from_hf(tmp_path / "out", dataclasses.replace(model.config.exits, classifier=True))
    added = fresh.state_dict().keys() - model.state_dict().keys()
    assert added == {"exit_classifier.weight", "exit_classifier.bias"}
    for name, value in model.state_dict().items():  # the exits' own heads too
        assert torch.equal(fresh.state_dict()[name], value), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_classifier_on_a_pretrained_body(tmp_path, make_model, tokens_BT, family):
    pretrained = make_model(family, exits=())
    save_hf(pretrained, tmp_path / "out")
    model = from_hf(tmp_path / "out", ExitConfig((1,), "linear"), labels=5)
    hidden = model(tokens_BT)
    torch.testing.assert_close(hidden[-1], pretrained(tokens_BT)[-1])
    assert model.logits(hidden[0], 0).shape == (3, 5)
    assert model.config.pooling == ("first" if family == "bert" else "last")
    assert model.head_weight(1).std() > 0


def test_training_the_copy_leaves_the_source_alone(tmp_path, make_model):
    transformers = pytest.importorskip("transformers")
    source = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    )
    before = source.model.norm.weight.clone()
    model = from_hf(source)
    with torch.no_grad():
        model.head.norm.weight.add_(1)
    torch.testing.assert_close(source.model.norm.weight, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"logit_softcap": 5.0},
        {"attention_softcap": 5.0},
        {"rotary_dim": 4},
        {"mlp": "gelu"},
        {"qk_norm": True, "mlp_bias": True},
    ],
)
def test_models_that_no_family_computes_are_refused(make_model, settings):
    with pytest.raises(UserError, match="no Hugging Face family"):
        to_hf_config(make_model("llama", **settings).config)


@pytest.mark.parametrize(
    ("settings", "family"),
    [
        ({}, "llama"),
        ({"qkv_bias": True, "attention_bias": True, "mlp_bias": True}, "llama"),
        ({"qkv_bias": True}, "qwen2"),
        ({"qkv_bias": True, "window": 7}, "qwen2"),
        ({"window": 7}, "mistral"),
        ({"qk_norm": True}, "qwen3"),
        ({"dropout": 0.3, "init_std": 0.1}, "llama"),
    ],
)
def test_the_family_follows_from_the_traits(make_model, settings, family):
    config = make_model("llama", **settings).config
    assert to_hf_config(config)["model_type"] == family


class TestRefusals:
    @pytest.fixture
    def folder(self, tmp_path, make_model):
        return save_hf(make_model("llama"), tmp_path / "hf")

    def change(self, folder, **changes):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"model_type": "t5"}, "model type is 't5'"),
            ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
            ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling type 'yarn'"),
            ({"architectures": ["LlamaForTokenClassification"]}, "LlamaForTokenClassification"),
            ({"architectures": ["LlamaModel"]}, "no head"),
            ({"num_hidden_layers": 4}, r"tensor model\.layers\.3\..* is missing"),
            ({"num_hidden_layers": 2, "lit_eff": {}}, r"tensor model\.layers\.2\..* has no place"),
            ({"intermediate_size": 64}, "shape"),
        ],
    )
    def test_configs(self, folder, changes, words):
        self.change(folder, **changes)
        with pytest.raises(UserError, match=words):
            from_hf(folder)

    def test_mixed_attention(self, tmp_path, make_model):
        folder = save_hf(make_model("qwen", window=8), tmp_path / "hf")
        assert from_hf(folder).config.window == 8
        self.change(folder, max_window_layers=2)
        with pytest.raises(UserError, match="mixes sliding and full"):
            from_hf(folder)

    def test_files(self, folder, tmp_path):
        weights = folder / "model.safetensors"
        content = weights.read_bytes()
        weights.write_bytes(content[:-10])
        with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
            from_hf(folder)
        weights.unlink()
        with pytest.raises(UserError, match="expected model weights"):
            from_hf(folder)
        (folder / "config.json").write_text("{")
        with pytest.raises(UserError, match="not valid JSON"):
            from_hf(folder)
        (folder / "config.json").unlink()
        with pytest.raises(UserError, match=r"no config\.json"):
            from_hf(folder)
        with pytest.raises(UserError, match="no folder at"):
            from_hf(tmp_path / "elsewhere")


def test_names_of_older_files(tmp_path, make_model, tokens_BT):
    """Hub files of BERT say gamma and beta and carry unused heads; those of GPT-2 have no prefix."""
    for family, rename in (
        (
            "bert",
            lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ),
        ),
        ("gpt2", lambda n: n.removeprefix("transformer.")),
    ):
        model = make_model(family, exits=())
        folder = save_hf(model, tmp_path / family)
        state = {rename(n): t for n, t in load_file(folder / "model.safetensors").items()}
        extra = "cls.seq_relationship.weight" if family == "bert" else "h.0.attn.bias"
        save_file(state | {extra: torch.zeros(2, 2)}, folder / "model.safetensors")
        torch.testing.assert_close(from_hf(folder)(tokens_BT), model(tokens_BT), rtol=0, atol=0)


def test_sharded_and_pickled_weights(tmp_path, make_model):
    model = make_model("llama")
    folder = save_hf(model, tmp_path / "hf")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    save_file({n: state[n] for n in names[:5]}, folder / "model-00001-of-00002.safetensors")
    save_file({n: state[n] for n in names[5:]}, folder / "model-00002-of-00002.safetensors")
    torch.testing.assert_close(from_hf(folder).state_dict(), model.state_dict(), rtol=0, atol=0)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    torch.save(state, folder / "pytorch_model.bin")
    torch.testing.assert_close(from_hf(folder).state_dict(), model.state_dict(), rtol=0, atol=0)


def test_dropout_does_not_hinder_a_save(tmp_path, make_model):
    model = make_model("llama", dropout=0.3)
    back = from_hf(save_hf(model, tmp_path / "hf"))
    assert back.config == dataclasses.replace(model.config, dropout=0.0, head_dim=8, kv_heads=2, mlp_dim=48)
