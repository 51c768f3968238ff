"""Exit thresholds with a guarantee: p-values and procedures (torch-free), and the jobs that run them.

Where to start reading: :mod:`ltt` (Learn then Test), then :mod:`paths` (vectors of thresholds);
:mod:`p_values` and :mod:`procedures` are what both stand on. :mod:`job` (language models) and
:mod:`classifier`, which need torch, are imported by themselves; what they share is in :mod:`certify`.
"""

from lit_eff.calibration.ltt import LttResult, learn_then_test, require_sequences, sequences_needed
from lit_eff.calibration.measures import MeasureChoice, choose_measure
from lit_eff.calibration.p_values import (
    P_VALUES,
    binomial_p_value,
    hoeffding_bentkus_p_value,
    hoeffding_p_value,
    wsr_p_value,
)
from lit_eff.calibration.paths import NEVER, ThresholdPath, learn_thresholds, pareto_path
from lit_eff.calibration.procedures import PROCEDURES, bonferroni, fixed_sequence, holm, multi_start
from lit_eff.calibration.risk_control import BoundResult, conformal_risk_control, upper_confidence_bound

__all__ = [
    "NEVER",
    "PROCEDURES",
    "P_VALUES",
    "BoundResult",
    "LttResult",
    "MeasureChoice",
    "ThresholdPath",
    "binomial_p_value",
    "bonferroni",
    "choose_measure",
    "conformal_risk_control",
    "fixed_sequence",
    "hoeffding_bentkus_p_value",
    "hoeffding_p_value",
    "holm",
    "learn_then_test",
    "learn_thresholds",
    "multi_start",
    "pareto_path",
    "require_sequences",
    "sequences_needed",
    "upper_confidence_bound",
    "wsr_p_value",
]
