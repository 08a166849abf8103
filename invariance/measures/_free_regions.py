"""Regions with unseen points and no training point: declaration."""

from __future__ import annotations

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.measures._activation_patterns import FIXED_BITS
from invariance.measures._registry import measure
from invariance.weakness.patterns import _regions as regions


@measure(invariant_under=FIXED_BITS, discrete=True)
def free_regions(model: nn.Module, x_train: Tensor, x_unseen: Tensor, layer: int = -1) -> Estimate:
    """Activation regions that hold unseen points and no training point.

    See :func:`invariance.weakness.patterns._regions.free_regions`.
    """
    return regions.free_regions(model, x_train, x_unseen, layer)
