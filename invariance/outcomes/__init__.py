"""What generalization looks like from outside: functions of the function, not of its weights.

Every outcome is computed from the model's outputs alone, so every function-preserving map
leaves it as it is. They are what measures are compared with, and they all return an
:class:`~invariance.core._estimate.Estimate`.
"""

from invariance.outcomes._adversarial import ATTACKS, adversarial_accuracy
from invariance.outcomes._calibration import expected_calibration_error
from invariance.outcomes._corruption_accuracy import corruption_accuracy, corruption_suite
from invariance.outcomes._corruptions import CORRUPTIONS, STRENGTHS, corrupt
from invariance.outcomes._diversity import jensen_shannon_divergence, prediction_disagreement

__all__ = [
    "ATTACKS",
    "CORRUPTIONS",
    "STRENGTHS",
    "adversarial_accuracy",
    "corrupt",
    "corruption_accuracy",
    "corruption_suite",
    "expected_calibration_error",
    "jensen_shannon_divergence",
    "prediction_disagreement",
]
