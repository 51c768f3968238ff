"""The model on a CUDA device: every back end against the CPU's float64 result."""

import pytest
import torch

from lit_eff.models.cache import KVCache
from lit_eff.models.transformer import Transformer

pytestmark = pytest.mark.gpu
SETTINGS = [{}, {"window": 7}, {"attention_softcap": 2.0}]


def on_gpu(source: Transformer, backend: str, dtype: torch.dtype) -> Transformer:
    model = Transformer(source.config, attention_backend=backend)  # type: ignore[arg-type]
    model.load_state_dict(source.state_dict())
    return model.to("cuda", dtype).eval()


def runs(backend: str, settings: dict) -> bool:
    return not (backend == "sdpa" and "attention_softcap" in settings)


@pytest.mark.parametrize("settings", SETTINGS, ids=["full", "window", "softcap"])
@pytest.mark.parametrize("family", ["llama", "qwen", "gpt2", "bert"])
def test_back_ends_agree(make_model, tokens_BT, family, settings):
    if family == "bert" and settings.get("window"):
        pytest.skip("windows are for causal models")
    source = make_model(family, model_dim=64, init_std=0.05, **settings)
    documents_BT = torch.arange(20).div(7, rounding_mode="floor").expand(3, 20).contiguous()
    expected = source.double()(tokens_BT, documents_BT=documents_BT)[-1]
    source.float()
    errors = {}
    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        for backend in ("reference", "sdpa", "triton"):
            if not runs(backend, settings):
                continue
            model = on_gpu(source, backend, dtype)
            with torch.no_grad():
                out = model(tokens_BT.cuda(), documents_BT=documents_BT.cuda())[-1]
            errors[backend, dtype] = (out.double().cpu() - expected).abs().max() / expected.abs().max()
            assert errors[backend, dtype] < limit, (backend, dtype)
    worst = max(errors["reference", torch.bfloat16], 1e-3)
    assert errors["triton", torch.bfloat16] <= 2 * worst


@pytest.mark.parametrize("backend", ["reference", "sdpa", "triton"])
@pytest.mark.parametrize("settings", SETTINGS, ids=["full", "window", "softcap"])
def test_decoding_with_a_cache(make_model, tokens_BT, backend, settings):
    if not runs(backend, settings):
        pytest.skip("sdpa has no softcap")
    source = make_model("llama", model_dim=64, **settings)
    model = on_gpu(source, backend, torch.float32)
    tokens_BT = tokens_BT.cuda()
    with torch.no_grad():
        expected = model(tokens_BT)[-1]
        cache = KVCache(model.config, 3, 24, device="cuda")
        rows, lengths_B = torch.arange(3, device="cuda"), torch.tensor([3, 9, 5], device="cuda")
        model(tokens_BT[:, :9], cache=cache, starts_B=cache.lengths_B)
        cache.advance(lengths_B)
        for _ in range(8):
            starts_B = cache.lengths_B.clone()
            hidden = model(tokens_BT[rows, starts_B][:, None], cache=cache, starts_B=starts_B)[-1]
            torch.testing.assert_close(hidden[:, 0], expected[rows, starts_B], rtol=1e-3, atol=1e-3)
            cache.advance(torch.ones_like(lengths_B))


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
def test_gradients_agree_with_the_cpu(make_model, tokens_BT, backend):
    source = make_model("llama", model_dim=64, head="mlp")
    documents_BT = torch.arange(20).div(7, rounding_mode="floor").expand(3, 20).contiguous()
    gradients = []
    for model, device in ((source, "cpu"), (on_gpu(source, backend, torch.float32), "cuda")):
        states = model(tokens_BT.to(device), documents_BT=documents_BT.to(device))
        sum(model.logits(h, e).square().mean() for e, h in enumerate(states)).backward()  # type: ignore[union-attr]
        gradients.append([parameter.grad.cpu() for parameter in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()) + 1e-7)


def test_the_choice_follows_the_device(make_model):
    model = make_model()
    assert "cpu" in model.attention_backend.reason
    assert "cuda" in model.cuda().attention_backend.reason
    assert make_model(model_dim=64, attention_softcap=2.0).cuda().attention_backend.name == "triton"
