"""Training: one network, or a whole ensemble at once."""

from invariance.training._fit import fit, fit_ensemble
from invariance.training._options import Options, ProgressCallback, TrainingProgress
from invariance.training._result import EpochRecord, Fit

__all__ = [
    "EpochRecord",
    "Fit",
    "Options",
    "ProgressCallback",
    "TrainingProgress",
    "fit",
    "fit_ensemble",
]
