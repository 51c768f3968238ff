"""Masks, documents and back ends, against per-pair arithmetic in float64."""

import math

import pytest
import torch

from lit_eff.errors import UserError
from lit_eff.kernels.attention import Support
from lit_eff.models import attention_backend
from lit_eff.models.attention_backend import attend, choose_backend, plan_attention
from lit_eff.models.cache import KVCache
from lit_eff.models.config import ModelConfig


def config(**settings) -> ModelConfig:
    return ModelConfig(vocab_size=10, model_dim=32, heads=4, kv_heads=2, **settings)


def by_pairs(q, k, v, sees, softcap=None):
    """Attention one query and one head at a time; ``sees(row, query, key)`` decides."""
    batch, length, heads, dim = q.shape
    out = torch.zeros_like(q)
    for b in range(batch):
        for t in range(length):
            keys = [s for s in range(k.shape[1]) if sees(b, t, s)]
            for h in range(heads):
                kv = h // (heads // k.shape[2])
                scores = torch.stack([q[b, t, h] @ k[b, s, kv] for s in keys]) / math.sqrt(dim)
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                weights = torch.softmax(scores, 0)
                out[b, t, h] = sum(w * v[b, s, kv] for w, s in zip(weights, keys, strict=True))
    return out


def random_qkv(length=9, keys=None):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, length, 4, 8), (2, keys or length, 2, 8), (2, keys or length, 2, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


PACKED = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [5, 5, 5, 5, 5, 5, -1, -1, -1]])
RETURNING = torch.tensor([[0, 0, 1, 1, 0, 0, 1, 1, 1], [3, 3, 3, 3, 3, 3, 3, 3, 3]])
ONE_EACH = torch.tensor([[0] * 9, [4] * 9])


@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize(
    "documents", [None, PACKED, RETURNING, ONE_EACH], ids=["none", "packed", "back", "one"]
)
@pytest.mark.parametrize("settings", [{}, {"causal": False}, {"window": 3}, {"window": 5}, {"window": 50}])
def test_masks_against_pairs(monkeypatch, settings, documents, backend, segments):
    monkeypatch.setattr(attention_backend, "SEGMENT_WORTHWHILE", 0 if segments else 10**9)
    q, k, v = random_qkv()
    model = config(**settings)
    plan = plan_attention(model, backend, torch.zeros(2, 9, 32, dtype=torch.float64), documents_BT=documents)

    def sees(b, t, s):
        if documents is not None and documents[b, t] != documents[b, s]:
            return False
        return not model.causal or (s <= t and (model.window is None or t - s < model.window))

    torch.testing.assert_close(attend(q, k, v, plan), by_pairs(q, k, v, sees), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("window", [None, 4])
def test_cache_masks_against_pairs(backend, window):
    q, k, v = random_qkv(length=3, keys=12)
    starts_B = torch.tensor([2, 8])
    hidden = torch.zeros(2, 3, 32, dtype=torch.float64)
    plan = plan_attention(config(window=window), backend, hidden, starts_B=starts_B, key_slots=12)

    def sees(b, t, s):
        place = int(starts_B[b]) + t
        return s <= place and (window is None or place - s < window)

    torch.testing.assert_close(attend(q, k, v, plan), by_pairs(q, k, v, sees), rtol=1e-10, atol=1e-12)


def test_softcap_against_pairs():
    q, k, v = random_qkv()
    model = config(attention_softcap=0.7)
    plan = plan_attention(
        model, choose_backend(model, "cpu").name, torch.zeros(2, 9, 32, dtype=torch.float64)
    )
    expected = by_pairs(q, k, v, lambda b, t, s: s <= t, softcap=0.7)
    torch.testing.assert_close(attend(q, k, v, plan), expected, rtol=1e-10, atol=1e-12)


def test_plans_are_as_cheap_as_the_documents_allow():
    hidden = torch.zeros(2, 200, 32)
    split = (torch.arange(200) >= 90).long().expand(2, 200)
    assert plan_attention(config(), "sdpa", hidden).mask is None
    single = plan_attention(config(), "sdpa", hidden, documents_BT=torch.zeros(2, 200, dtype=torch.int64))
    assert single.mask is None
    assert single.segments is None
    packed = plan_attention(config(), "sdpa", hidden, documents_BT=split)
    assert packed.segments == (90, 110, 90, 110)
    assert packed.mask is None
    assert plan_attention(config(), "sdpa", hidden, documents_BT=split, static=True).segments is None
    tiny = torch.arange(200).div(3, rounding_mode="floor").expand(2, 200)
    assert plan_attention(config(), "sdpa", hidden, documents_BT=tiny).segments is None


def test_a_cache_refuses_documents_and_encoders():
    hidden, starts_B = torch.zeros(2, 3, 32), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(UserError, match="inside a KV cache"):
        plan_attention(config(), "sdpa", hidden, documents_BT=PACKED[:, :3], starts_B=starts_B, key_slots=9)
    with pytest.raises(UserError, match="needs a causal model"):
        plan_attention(config(causal=False), "sdpa", hidden, starts_B=starts_B, key_slots=9)


def test_choices_and_their_reasons():
    assert choose_backend(config(), "cpu").name == "sdpa"
    capped = choose_backend(ModelConfig(vocab_size=10, model_dim=64, heads=4, attention_softcap=3.0), "cpu")
    assert capped.name == "reference"
    assert "softcap" in capped.reason
    assert choose_backend(config(), "cpu", "reference").reason == "asked for"
    with pytest.raises(UserError, match=r"'sdpa' cannot run here: .*softcap"):
        choose_backend(config(attention_softcap=3.0), "cpu", "sdpa")
    with pytest.raises(UserError, match="did you mean 'triton'"):
        choose_backend(config(), "cpu", "tritn")  # type: ignore[arg-type]


def test_masks_go_to_the_kernels_that_skip(monkeypatch):
    """On a GPU, in half precision: documents and windows, but neither plain rows nor a cache."""
    monkeypatch.setattr(attention_backend, "supports", lambda device, head_dim: Support(True))
    choice = choose_backend(config(), "cuda")
    assert (choice.name, choice.masked) == ("sdpa", "triton")
    assert "hide keys" in choice.reason
    assert choose_backend(config(), "cuda", "sdpa").masked is None  # asked for, so never replaced
    assert choose_backend(config(), "cpu").masked is None
    hidden, starts_B = torch.zeros(2, 4, 32, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.int64)

    def backend(settings=None, dtype=torch.bfloat16, **more):
        settings = config(**settings or {})
        return plan_attention(settings, "sdpa", hidden.to(dtype), masked="triton", **more).backend

    documents = {"documents_BT": torch.tensor([[0, 0, 1, 1]] * 2)}
    assert backend() == "sdpa"
    assert backend(**documents) == "triton"
    assert backend({"window": 2}) == "triton"
    assert backend(dtype=torch.float32, **documents) == "sdpa"
    assert backend({"window": 2}, starts_B=starts_B, key_slots=9) == "sdpa"


def test_triton_is_refused_with_the_reason(monkeypatch, make_model):
    monkeypatch.setattr("lit_eff.kernels.attention.operator.INTERPRETED", False)
    with pytest.raises(UserError, match=r"'triton' cannot run here: .*CUDA device, not cpu"):
        choose_backend(ModelConfig(vocab_size=10, model_dim=64, heads=4), "cpu", "triton")
    with pytest.raises(UserError, match=r"'triton' cannot run here: head dim 8"):
        make_model(attention_backend="triton")  # refused before any work, not at the first step


@pytest.mark.parametrize("family", ["llama", "qwen", "gpt2", "bert"])
@pytest.mark.parametrize("worthwhile", [0, 10**9], ids=["segments", "mask"])
def test_packed_documents_equal_separate_ones(monkeypatch, make_model, family, worthwhile):
    monkeypatch.setattr(attention_backend, "SEGMENT_WORTHWHILE", worthwhile)
    model = make_model(family).double()
    lengths = (7, 4, 9)
    tokens = [torch.randint(0, 61, (1, length)) for length in lengths]
    padding = torch.zeros(1, 5, dtype=torch.int64)
    packed_1T = torch.cat([*tokens, padding], dim=1)
    documents_1T = torch.cat([torch.full((1, n), i) for i, n in enumerate(lengths)] + [padding - 1], dim=1)
    positions_1T = torch.cat([torch.arange(n)[None] for n in (*lengths, 5)], dim=1)
    states = model(packed_1T, documents_BT=documents_1T, positions_BT=positions_1T)
    start = 0
    for piece in tokens:
        for together, alone in zip(states, model(piece), strict=True):
            part = together[:, start : start + piece.shape[1]]
            torch.testing.assert_close(part, alone, rtol=1e-9, atol=1e-11)
        start += piece.shape[1]


def test_gradients_of_packed_documents(monkeypatch, make_model, tokens_BT):
    documents_BT = torch.arange(20).div(6, rounding_mode="floor").expand(3, 20)
    gradients = []
    for worthwhile in (0, 10**9):
        monkeypatch.setattr(attention_backend, "SEGMENT_WORTHWHILE", worthwhile)
        model = make_model().double()
        model(tokens_BT, documents_BT=documents_BT)[-1].square().mean().backward()
        gradients.append([p.grad for p in model.blocks.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def test_autocast_masks_in_the_lower_dtype(make_model, tokens_BT):
    documents_BT = torch.arange(20).div(3, rounding_mode="floor").expand(3, 20)
    model = make_model()
    exact = model(tokens_BT, documents_BT=documents_BT)[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(tokens_BT, documents_BT=documents_BT)[-1]
    assert 0 < (exact - rough).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/models/test_gpu.py runs the compiled kernel")
def test_the_triton_path_in_its_interpreter(make_model, tokens_BT):
    documents_BT = torch.tensor([[0] * 20, [0] * 9 + [1] * 11, [0] * 16 + [-1] * 4])
    outputs = []
    for backend in ("triton", "reference"):
        model = make_model(model_dim=64, window=7, attention_softcap=2.0, attention_backend=backend)
        assert model.attention_backend.name == backend
        packed = model(tokens_BT, documents_BT=documents_BT)[-1]
        packed.square().sum().backward()
        cache = KVCache(model.config, 3, 24)
        cache.advance(torch.tensor([0, 3, 9]))
        decoded = model(tokens_BT[:, :5], cache=cache, starts_B=cache.lengths_B)[-1]
        outputs.append([packed, decoded, model.blocks[0].attention.qkv.weight.grad])
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)
