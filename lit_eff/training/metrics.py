"""Quality of every exit, as running sums: nothing grows with the number of tokens.

Shape legend: N tokens (or sequences), E exits, K bins.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_eff.training.losses import IGNORED, ExitStatistics


class ExitMetrics(Metric):  # type: ignore[misc]
    """Perplexity, accuracy, agreement with the last exit and calibration error, one value an exit.

    Expected calibration error (Guo et al. 2017) of the top-1 confidence against being right, in equal-width
    bins. Sums are float64, so that neither their order nor the number of ranks shows in what is logged.

    Args:
        exits: how many exits, E.
        bins: how many confidence bins, K.
    """

    full_state_update = False

    def __init__(self, exits: int, bins: int = 15) -> None:
        super().__init__()
        self.bins = bins

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        self.add_state("count", zeros(), dist_reduce_fx="sum")
        self.add_state("nll_E", zeros(exits), dist_reduce_fx="sum")
        self.add_state("agreed_E", zeros(exits), dist_reduce_fx="sum")
        for name in ("count_EK", "confidence_EK", "correct_EK"):
            self.add_state(name, zeros(exits, bins), dist_reduce_fx="sum")

    def update(self, statistics: ExitStatistics, targets_N: Tensor) -> None:
        """Add (E, N) statistics of N targets; targets of -100 are left out."""
        valid_N = targets_N != IGNORED
        confidence_EN = statistics.confidence_EN.double()
        correct_EN = statistics.prediction_EN == targets_N
        # By a one-hot product rather than a scatter, whose order of addition is not fixed on a GPU.
        bin_EN = (confidence_EN * self.bins).long().clamp(0, self.bins - 1)
        in_bin_ENK = torch.nn.functional.one_hot(bin_EN, self.bins).double() * valid_N[:, None]
        self.count += valid_N.sum()
        self.nll_E += (statistics.nll_EN.double() * valid_N).sum(1)
        self.agreed_E += ((statistics.prediction_EN == statistics.prediction_EN[-1]) & valid_N).sum(1)
        self.count_EK += in_bin_ENK.sum(1)
        self.confidence_EK += torch.einsum("enk,en->ek", in_bin_ENK, confidence_EN)
        self.correct_EK += torch.einsum("enk,en->ek", in_bin_ENK, correct_EN.double())

    def compute(self) -> dict[str, Tensor]:
        """float64 (E,) each: ``nll`` (nats), ``perplexity``, ``accuracy``, ``agreement``, ``ece``."""
        nll_E = self.nll_E / self.count
        return {
            "nll": nll_E,
            "perplexity": nll_E.exp(),
            "accuracy": self.correct_EK.sum(1) / self.count,
            "agreement": self.agreed_E / self.count,
            "ece": (self.confidence_EK - self.correct_EK).abs().sum(1) / self.count,
        }
