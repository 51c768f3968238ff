"""Running metrics against naive ones and torchmetrics' own calibration error."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.classification import BinaryCalibrationError

from lit_eff.training.losses import statistics_from_logits
from lit_eff.training.metrics import ExitMetrics

E, V = 3, 11


def batches() -> list[tuple[list[torch.Tensor], torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    out = []
    for tokens in (50, 1, 83):
        logits = [(1 + e) * torch.randn(tokens, V, generator=generator) for e in range(E)]
        targets = torch.randint(0, V, (tokens,), generator=generator)
        targets[::7] = -100
        out.append((logits, targets))
    return out


def test_equal_naive_ones() -> None:
    metric = ExitMetrics(E)
    for logits, targets in batches():
        metric.update(statistics_from_logits(logits, targets), targets)
    found = metric.compute()
    targets = torch.cat([targets for _, targets in batches()])
    valid = targets != -100
    targets = targets[valid]
    logits = [torch.cat([one[e] for one, _ in batches()])[valid].double() for e in range(E)]
    last = logits[-1].argmax(-1)
    for e in range(E):
        log_p = logits[e].log_softmax(-1)
        nll = -log_p.gather(1, targets[:, None]).mean()
        prediction = logits[e].argmax(-1)
        confidence = log_p.exp().amax(-1)
        assert found["nll"][e].item() == pytest.approx(nll.item(), rel=1e-6)
        assert found["perplexity"][e].item() == pytest.approx(nll.exp().item(), rel=1e-6)
        assert found["accuracy"][e].item() == pytest.approx((prediction == targets).double().mean().item())
        assert found["agreement"][e].item() == pytest.approx((prediction == last).double().mean().item())
        reference = BinaryCalibrationError(n_bins=15, norm="l1")
        reference.update(confidence.float(), (prediction == targets).long())
        assert found["ece"][e].item() == pytest.approx(reference.compute().item(), abs=1e-6)
    assert found["agreement"][-1] == 1.0
    assert 0.0 < found["agreement"][0] < 1.0


def test_a_confidence_of_one_falls_in_the_last_bin() -> None:
    metric = ExitMetrics(1, bins=4)
    targets = torch.tensor([0, 1])
    metric.update(statistics_from_logits([torch.tensor([[500.0, 0.0], [500.0, 0.0]])], targets), targets)
    assert metric.compute()["ece"].item() == pytest.approx(0.5)


def test_state_does_not_grow() -> None:
    metric = ExitMetrics(E)
    sizes = []
    for logits, targets in batches():
        metric.update(statistics_from_logits(logits, targets), targets)
        sizes.append(sum(value.numel() for value in metric.metric_state.values()))
    assert len(set(sizes)) == 1
    assert metric.state_dict() == {}  # nothing of it in a checkpoint
