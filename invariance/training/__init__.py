"""Training: one network, or a whole ensemble at once."""

from invariance.training._fit import fit, fit_ensemble
from invariance.training._options import Options, Progress, ProgressCallback
from invariance.training._result import EpochRecord, Fit

__all__ = [
    "EpochRecord",
    "Fit",
    "Options",
    "Progress",
    "ProgressCallback",
    "fit",
    "fit_ensemble",
]
