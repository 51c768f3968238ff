"""Training: Lightning modules for early-exit models.

Start reading at :mod:`~lit_eff.training.base`; what a step trains is in ``exit_loss`` and ``layer_dropout``,
how the loss is computed in ``losses``.
"""

from lit_eff.training.classifier import LitClassifier
from lit_eff.training.exit_loss import Curriculum, ExitLoss
from lit_eff.training.language_model import LitLanguageModel
from lit_eff.training.layer_dropout import LayerDropout
from lit_eff.training.optimizers import MuonAdamW
from lit_eff.training.schedules import Schedule

__all__ = [
    "Curriculum",
    "ExitLoss",
    "LayerDropout",
    "LitClassifier",
    "LitLanguageModel",
    "MuonAdamW",
    "Schedule",
]
