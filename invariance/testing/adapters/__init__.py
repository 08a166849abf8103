"""Other libraries' measures in the gate's form, ``measure(model, x, y) -> number``.

Nothing here is imported before it is used, and every adapter works on copies: the
libraries may leave gradients, modes and random states as they like.
"""

from __future__ import annotations

from invariance.testing.adapters._curvlinops import curvlinops_measure
from invariance.testing.adapters._devinterp import devinterp_estimate
from invariance.testing.adapters._noise import averaged, noisy
from invariance.testing.adapters._pyhessian import (
    pyhessian_eigenvalue,
    pyhessian_trace,
    pyhessian_trace_noisy,
)
from invariance.testing.adapters._signatures import Loss, PlainMeasure, adapt, of_predictions
from invariance.testing.adapters._torchmetrics import torchmetrics_metric

__all__ = [
    "Loss",
    "PlainMeasure",
    "adapt",
    "averaged",
    "curvlinops_measure",
    "devinterp_estimate",
    "noisy",
    "of_predictions",
    "pyhessian_eigenvalue",
    "pyhessian_trace",
    "pyhessian_trace_noisy",
    "torchmetrics_metric",
]
