"""Other libraries' measures in the gate's form, ``measure(model, x, y) -> number``.

Nothing here is imported before it is used, and every adapter works on copies: the
libraries may leave gradients, modes and random states as they like.
"""

from __future__ import annotations

from invariance.testing.adapters.curvlinops import curvlinops_measure
from invariance.testing.adapters.devinterp import devinterp_estimate
from invariance.testing.adapters.noise import averaged, noisy
from invariance.testing.adapters.pyhessian import (
    pyhessian_eigenvalue,
    pyhessian_trace,
    pyhessian_trace_noisy,
)
from invariance.testing.adapters.signatures import Loss, PlainMeasure, adapt, of_predictions
from invariance.testing.adapters.torchmetrics import torchmetrics_metric

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
