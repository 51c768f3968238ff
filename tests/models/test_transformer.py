import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from lit_eff.errors import UserError
from lit_eff.models.config import ExitConfig
from lit_eff.models.transformer import LayerContext, Transformer

FAMILIES = ["llama", "qwen", "gpt2", "bert"]
HEADS = ["shared", "norm", "linear", "mlp"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_exit_is_the_truncated_model(make_model, tokens_BT, family):
    model = make_model(family)
    states = model(tokens_BT)
    for exit_index, layers in enumerate(model.config.exit_layers):
        short = Transformer(dataclasses.replace(model.config, layers=layers, exits=ExitConfig())).eval()
        names = short.state_dict()
        short.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in names})
        expected = short.logits(short(tokens_BT)[-1], 0)
        torch.testing.assert_close(model.logits(states[exit_index], exit_index), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_segments_chain_to_the_whole(make_model, tokens_BT, family):
    model = make_model(family)
    positions_1T = torch.arange(tokens_BT.shape[1])[None]
    context = LayerContext(positions_1T)
    hidden = model.embed(tokens_BT, positions_1T)
    hidden = model.run_layers(model.run_layers(hidden, 0, 2, context), 2, 3, context)
    torch.testing.assert_close(hidden, model(tokens_BT)[-1], rtol=0, atol=0)


def test_only_asked_exits_run(make_model, tokens_BT):
    model = make_model()
    first, second, _ = model(tokens_BT)
    model.blocks[2] = None  # type: ignore[assignment]  # the deepest layer cannot run any more
    asked = model(tokens_BT, exits=[1, 0])
    torch.testing.assert_close(asked, [first, second], rtol=0, atol=0)
    with pytest.raises(UserError, match="exit indices"):
        model(tokens_BT, exits=[3])
    with pytest.raises(UserError, match="exit indices"):
        model(tokens_BT, exits=[])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_head_parts_make_the_logits(make_model, tokens_BT, family, head):
    model = make_model(family, head=head, logit_softcap=5.0)
    for exit_index, hidden in enumerate(model(tokens_BT)):
        normed = model.head_norm(hidden, exit_index)
        logits = F.linear(normed, model.head_weight(exit_index), model.head_bias(exit_index))
        expected = 5.0 * torch.tanh(logits / 5.0)
        torch.testing.assert_close(model.logits(hidden, exit_index), expected)
        one = model.logits(hidden[1, 4], exit_index)  # any leading dimensions
        torch.testing.assert_close(one, expected[1, 4])
    with pytest.raises(UserError, match="exit index 3"):
        model.logits(hidden, 3)


@pytest.mark.parametrize(
    ("head", "own"),
    [
        ("shared", set()),
        ("norm", {"norm.weight"}),
        ("linear", {"norm.weight", "output.weight"}),
        (
            "mlp",
            {"norm.weight", "block.norm.weight", *(f"block.mlp.{m}.weight" for m in ("gate", "up", "down"))},
        ),
    ],
)
def test_gradients_of_an_exit_reach_its_own_head_and_what_it_shares(make_model, tokens_BT, head, own):
    model = make_model(head=head)
    model.logits(model(tokens_BT)[0], 0).square().mean().backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name for name in touched if name.startswith("exit_heads.0.")} == {
        f"exit_heads.0.{n}" for n in own
    }
    assert not any(name.startswith(("exit_heads.1.", "blocks.1.", "blocks.2.")) for name in touched)
    assert any(name.startswith("blocks.0.") for name in touched)
    assert ("head.norm.weight" in touched) == (head == "shared")
    assert ("head.output.weight" in touched) == (head != "linear")


def test_tied_output_is_the_embedding(make_model):
    model = make_model("qwen")
    assert model.head_weight(0) is model.embeddings.tokens.weight
    assert "head.output.weight" not in model.state_dict()


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_dropped_layers_are_the_identity_for_their_rows(make_model, tokens_BT, family):
    model = make_model(family)
    keep_LB = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    plain, dropped = model(tokens_BT), model(tokens_BT, layer_keep_LB=keep_LB)
    torch.testing.assert_close(dropped[-1][0], plain[-1][0])
    positions_1T = torch.arange(tokens_BT.shape[1])[None]
    embedded = model.embed(tokens_BT, positions_1T)
    torch.testing.assert_close(dropped[-1][2], embedded[2], rtol=0, atol=0)
    only_second = model.run_layers(embedded, 1, 2, LayerContext(positions_1T))
    torch.testing.assert_close(dropped[-1][1], only_second[1])
    dropped[-1][2].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.blocks.parameters())


def test_checkpointed_blocks_give_the_same_gradients(make_model, tokens_BT):
    gradients, calls = [], []
    for recompute in (False, True):
        model = make_model(dropout=0.2).train()
        model.checkpoint_blocks = recompute
        model.blocks[0].mlp.register_forward_hook(lambda *_, recompute=recompute: calls.append(recompute))
        torch.manual_seed(3)
        model.logits(model(tokens_BT)[-1], 2).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert calls == [False, True, True]  # once forward; with recomputation once more in the backward pass


def test_compiled_blocks_share_one_whole_graph(make_model):
    tokens_BT = torch.arange(400).view(2, 200) % 61
    documents_BT = torch.arange(200).div(70, rounding_mode="floor").expand(2, 200)
    expected = make_model()(tokens_BT, documents_BT=documents_BT)
    model = make_model()
    names = list(model.state_dict())
    graphs = []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    model.compile_blocks(backend=count, fullgraph=True)
    torch.testing.assert_close(model(tokens_BT, documents_BT=documents_BT), expected)
    model(tokens_BT, documents_BT=documents_BT // 2)  # documents of other lengths, the same graph
    assert len(graphs) == 1
    assert list(model.state_dict()) == names


def test_fresh_weights_follow_the_config(make_model):
    model = make_model("gpt2", model_dim=128, heads=4, init_std=0.05)
    assert model.embeddings.tokens.weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert model.blocks[1].attention.qkv.weight.std().item() == pytest.approx(0.05, rel=0.05)
    scaled = 0.05 / 6**0.5
    assert model.blocks[1].attention.output.weight.std().item() == pytest.approx(scaled, rel=0.05)
    assert model.blocks[2].mlp.down.weight.std().item() == pytest.approx(scaled, rel=0.05)
    assert not model.blocks[0].mlp.up.bias.any()
    assert (model.head.norm.weight == 1).all()


def test_a_model_made_on_meta_is_filled(make_model, tokens_BT):
    expected = make_model("bert", head="mlp")
    with torch.device("meta"):
        model = Transformer(expected.config)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    model.init_weights()
    torch.manual_seed(0)
    expected.init_weights()
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(model.eval()(tokens_BT), expected(tokens_BT))


def test_too_long_for_learned_positions(make_model):
    with pytest.raises(UserError, match="65 tokens in a row, but this model has 64"):
        make_model("gpt2")(torch.zeros(1, 65, dtype=torch.int64))
    make_model("llama")(torch.zeros(1, 65, dtype=torch.int64))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("labels", [0, 3])
def test_operations_match_a_counter(make_model, tokens_BT, head, labels):
    """Against torch's counter on the reference attention, which multiplies every pair, as an encoder must."""
    settings = {"labels": labels, "pooler": True, "pooling": "first"} if labels else {}
    model = make_model("bert", head=head, attention_backend="reference", **settings)
    for exits in ([0], [0, 2]):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            for exit_index, hidden in zip(exits, model(tokens_BT, exits=exits), strict=True):
                model.logits(hidden, exit_index)
        assert model.flops_per_token(20, exits) * tokens_BT.numel() == pytest.approx(
            counter.get_total_flops()
        )


def test_causal_and_windowed_operations(make_model):
    def attention_part(**settings):
        return make_model("llama", **settings).flops_per_token(10, [0])

    per_key = 4 * 32
    assert attention_part() - attention_part(causal=False) == pytest.approx((5.5 - 10) * per_key)
    seen = (1 + 2 + 3 + 7 * 3) / 10
    assert attention_part(window=3) - attention_part(causal=False) == pytest.approx((seen - 10) * per_key)


def test_parameter_counts(make_model):
    model = make_model("llama", head="linear")
    total = sum(p.numel() for p in model.parameters())
    assert model.parameter_count() == total
    assert model.parameter_count(embeddings=False) == total - 61 * 32
    model.blocks.requires_grad_(False)
    assert model.parameter_count(trainable=True) == total - sum(p.numel() for p in model.blocks.parameters())
