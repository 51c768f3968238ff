import fractions
import json

import pytest
import torch

from lit_eff.errors import UserError
from lit_eff.models.checkpoint import load_checkpoint, model_from_state, weights_sha256


def write(path, model, **changes):
    content = {
        "global_step": 7,
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        | {"metrics.total": torch.zeros(2)},
        "lit_eff": {
            "format": 1,
            "model_config": model.config.to_dict(),
            "tokenizer_json": "{}",
            "recipe": {"exits": {"layers": [1, 2]}},
            "recipe_name": "quickstart",
            "split_hashes": {"train": "ab"},
        },
    } | changes
    torch.save(content, path)
    return content


@pytest.mark.parametrize("head", ["shared", "linear"])
def test_a_checkpoint_comes_back_whole(tmp_path, make_model, tokens_BT, head):
    model = make_model(head=head)
    write(tmp_path / "last.ckpt", model)
    loaded = load_checkpoint(tmp_path / "last.ckpt")
    torch.testing.assert_close(loaded.model(tokens_BT), model(tokens_BT), rtol=0, atol=0)
    assert loaded.model.config == model.config
    assert not loaded.model.training
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer_json == "{}"
    assert loaded.recipe == {"exits": {"layers": [1, 2]}}
    assert loaded.metadata["split_hashes"] == {"train": "ab"}
    assert loaded.metadata["global_step"] == 7
    assert loaded.metadata["weights"] == "trained"
    assert loaded.weights_sha256 == weights_sha256(model)


def test_averaged_weights_are_preferred(tmp_path, make_model):
    model = make_model()
    averaged = {f"model.{name}": tensor + 1 for name, tensor in model.state_dict().items()}
    write(tmp_path / "last.ckpt", model, ema_state_dict=averaged)
    loaded = load_checkpoint(tmp_path / "last.ckpt")
    assert loaded.metadata["weights"] == "ema"
    torch.testing.assert_close(loaded.model.head.norm.weight, model.head.norm.weight + 1)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.999])
def test_truncated_files_are_named(tmp_path, make_model, kept):
    path = tmp_path / "last.ckpt"
    write(path, make_model())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read"):
        load_checkpoint(path)


def test_one_flipped_bit_is_found(tmp_path, make_model):
    path = tmp_path / "last.ckpt"
    write(path, make_model())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="corrupt: the checksum"):
        load_checkpoint(path)


def test_foreign_files_are_named(tmp_path, make_model):
    path = tmp_path / "x.ckpt"
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(path)
    with pytest.raises(UserError, match="is a folder"):
        load_checkpoint(tmp_path)
    path.write_text("hello")
    with pytest.raises(UserError, match="not a PyTorch checkpoint"):
        load_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="no 'lit_eff' section"):
        load_checkpoint(path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(UserError, match="holds a Tensor"):
        load_checkpoint(path)
    torch.save({"a": fractions.Fraction(1, 2)}, path)
    with pytest.raises(UserError, match="never unpickled"):
        load_checkpoint(path)
    content = write(path, make_model())
    write(path, make_model(), lit_eff=content["lit_eff"] | {"format": 2})
    with pytest.raises(UserError, match="format 2, this version reads 1"):
        load_checkpoint(path)


def test_weights_that_do_not_fit_are_named(make_model):
    model = make_model()
    state = dict(model.state_dict())
    del state["head.norm.weight"]
    state["blocks.9.mlp.up.weight"] = torch.zeros(1)
    state["blocks.0.mlp.up.weight"] = torch.zeros(2, 3)
    with pytest.raises(UserError) as caught:
        model_from_state(model.config, state, source="some.file")
    for words in (
        "some.file",
        "head.norm.weight is missing",
        "blocks.9.mlp.up.weight is unknown",
        "blocks.0.mlp.up.weight has shape (2, 3), expected (48, 32)",
    ):
        assert words in str(caught.value)


def test_the_weights_hash_sees_every_bit(make_model):
    model = make_model()
    before = weights_sha256(model)
    assert weights_sha256(make_model()) == before
    weight = model.blocks[1].mlp.up.weight
    with torch.no_grad():
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(torch.inf))
    assert weights_sha256(model) != before
    assert weights_sha256(make_model().to(torch.bfloat16)) != before
    assert json.dumps(before)  # a plain string
