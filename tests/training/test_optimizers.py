"""Weight-decay groups, and Muon with AdamW as one optimizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from lit_eff.models.config import ExitConfig, ModelConfig
from lit_eff.models.transformer import Transformer
from lit_eff.training.optimizers import MuonAdamW, parameter_groups


def small(**settings: Any) -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=31, layers=2, model_dim=16, heads=2, mlp_dim=24, context=8, **settings)
    return Transformer(config)


GPT = {
    "norm": "layer",
    "positions": "learned",
    "mlp": "gelu",
    "qkv_bias": True,
    "attention_bias": True,
    "mlp_bias": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tied": False, "output_bias": True},
    "gpt": GPT,
    "own heads": {"tied": False, "exits": ExitConfig((1,), "linear")},
    "mlp heads": {"exits": ExitConfig((1,), "mlp")},
    "classifier": {"labels": 3, "causal": False, "token_types": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_hold_every_parameter_once_and_decay_matrices_alone(family: str) -> None:
    model = small(**FAMILIES[family])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(listed) == len(set(listed)) == len(names)
    assert {*listed} == {*names}
    optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.3)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            decays = parameter.ndim == 2 and not name.startswith("embeddings.")
            assert group["weight_decay"] == (0.3 if decays else 0.0), name
            is_output = name in ("head.output.weight", "exit_heads.0.output.weight")
            assert (group["role"] == "output") == is_output, name


def test_frozen_parameters_are_left_out() -> None:
    model = small(exits=ExitConfig((1,), "norm"))
    model.requires_grad_(False)
    model.exit_heads.requires_grad_(True)
    (group,) = parameter_groups(model)
    assert group["params"] == list(model.exit_heads.parameters())


def gradients(model: Transformer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_muon_equals_torchs_two_optimizers_apart() -> None:
    ours, theirs = small(tied=False), small(tied=False)
    together = MuonAdamW(parameter_groups(ours), lr=0.01, weight_decay=0.2)
    matrices, output, embedding, vector = parameter_groups(theirs)
    muon = torch.optim.Muon(matrices["params"], 0.01, 0.2, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([output, embedding, vector], 0.01, (0.9, 0.95), weight_decay=0.2, fused=True)
    for seed in range(3):
        gradients(ours, seed)
        gradients(theirs, seed)
        together.step()
        muon.step()
        adamw.step()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, theirs.get_parameter(name), rtol=0, atol=0)


def test_muon_resumes_exactly_follows_a_schedule_and_runs_a_closure_once() -> None:
    model = small()
    optimizer = MuonAdamW(parameter_groups(model), lr=0.01)
    for seed in range(2):
        gradients(model, seed)
        optimizer.step()
    resumed = copy.deepcopy(model)
    again = MuonAdamW(parameter_groups(resumed), lr=0.5)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    calls = []
    for one, its in ((model, optimizer), (resumed, again)):
        for group in its.param_groups:
            assert group["lr"] == 0.01
            group["lr"] = 0.002

        def closure(one: Transformer = one) -> float:
            assert torch.is_grad_enabled()
            calls.append(1)
            gradients(one, 7)
            return 1.5

        before = copy.deepcopy(one.state_dict())
        assert its.step(closure) == 1.5
        moved = (one.embeddings.tokens.weight - before["embeddings.tokens.weight"]).abs().max()
        assert moved.item() < 0.0045  # the new learning rate, not the one it was made with
    assert len(calls) == 2
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, resumed.get_parameter(name), rtol=0, atol=0)


def test_parameters_without_gradients_do_not_move() -> None:
    model = small()
    optimizer = MuonAdamW(parameter_groups(model), lr=0.1)
    gradients(model, 0)
    optimizer.step()
    before = copy.deepcopy(model.state_dict())
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
