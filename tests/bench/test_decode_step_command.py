"""`lit-eff bench decode_step`: its grid, its checks, its peer and its clocks; no GPU."""

from __future__ import annotations

import pytest
import torch

from lit_eff.bench import decode_step, step_checks
from lit_eff.bench.checks import run_jobs
from lit_eff.bench.step_cells import MODELS
from lit_eff.bench.step_plain import PlainStep
from lit_eff.bench.step_trace import phases_of
from lit_eff.kernels.decode_step import Shape, decode_step_reference
from lit_eff.kernels.decode_step.io_model import weight_bytes
from lit_eff.models.cache import KVCache
from lit_eff.models.config import ModelConfig
from lit_eff.models.packed import PackedModel
from lit_eff.models.transformer import Transformer

CONFIG = ModelConfig(vocab_size=61, layers=2, model_dim=64, heads=4, kv_heads=2, mlp_dim=80, init_std=0.2)


def shape_of(config: ModelConfig) -> Shape:
    heads = config.heads, config.n_kv_heads, config.head_size
    return Shape(config.layers, config.model_dim, *heads, config.mlp_size, config.vocab_size)


def test_the_grid_is_the_goals() -> None:
    rows = ["batch 1", "batch 8", "batch 16", "verify 8"]
    assert [cell.label for cell in decode_step.all_cells()] == [
        f"{model}, {each}" for model in ("1.1B", "135M") for each in rows
    ]
    assert weight_bytes(shape_of(MODELS["1.1B"]), 2) == pytest.approx(2.07e9, rel=0.005)
    assert weight_bytes(shape_of(MODELS["135M"]), 2) == pytest.approx(0.269e9, rel=0.005)


@pytest.mark.parametrize(("sequences", "tokens"), [(3, 1), (1, 5)])
@torch.inference_mode()
def test_the_peer_computes_the_same(sequences: int, tokens: int) -> None:
    torch.manual_seed(0)
    packed, cache = PackedModel(Transformer(CONFIG), 40), KVCache(CONFIG, sequences, 40)
    for tensor in (cache.k, cache.v):
        tensor.normal_()
    peer = PlainStep(
        packed.shape, packed.weights, packed.output_VC, cache.k, cache.v, tokens, advance=1, compiled=False
    )
    token_BT = torch.randint(61, (sequences, tokens))
    position_T = torch.arange(20, 20 + tokens)
    peer.token_BT.copy_(token_BT)
    peer.position_T.copy_(position_T)
    peer.run()
    sequence_N = torch.arange(sequences).repeat_interleave(tokens)
    k_LBSKD, v_LBSKD = cache.k.clone(), cache.v.clone()
    expected_NC = decode_step_reference(
        packed.weights, token_BT.flatten(), position_T.repeat(sequences), sequence_N, k_LBSKD, v_LBSKD,
        CONFIG.heads, CONFIG.norm_eps, (0, CONFIG.layers),
    )  # fmt: skip
    torch.testing.assert_close(peer.hidden_BTC.flatten(0, 1), expected_NC, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(peer.k_LBKSD.transpose(2, 3), k_LBSKD)
    assert peer.position_T.tolist() == (position_T + 1).tolist()


def test_clocks_become_times() -> None:
    """Two layers of two programs: phases take 1 to 5 clocks, waits 10 times as many; the embedding 7."""
    took = [7, 70, *[clock for _ in range(2) for phase in range(1, 6) for clock in (phase, 10 * phase)]][:-1]
    clocks = torch.tensor([[0, 1000]]) + torch.tensor([0, *took]).cumsum(0)[:, None]
    phases = phases_of(clocks, 2.0 * sum(took))
    assert phases["embedding"] == pytest.approx(14)
    assert phases["qkv"] == pytest.approx(2 * (1 + 1))
    assert phases["wait after down"] == pytest.approx(2 * 50)
    assert sum(phases.values()) == pytest.approx(2 * sum(took))


def test_a_check_in_the_interpreter_and_a_budget() -> None:
    found = [
        step_checks.StepCheck("odd heads", "float32", "launches", "cpu"),
        step_checks.StepBudget(90, "135M", "persistent"),
    ]
    assert [each.faults for each in run_jobs(found, 1)] == [(), ()]


@pytest.mark.slow
def test_every_check_holds() -> None:
    found = step_checks.checks_here([])
    assert [each.faults for each in run_jobs(found, 1)] == [()] * len(found)
