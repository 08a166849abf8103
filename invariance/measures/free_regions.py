"""Regions with unseen points and no training point: declaration."""

from __future__ import annotations

from torch import Tensor, nn

from invariance.core.estimate import Estimate
from invariance.measures.activation_patterns import FIXED_BITS
from invariance.measures.registry import measure
from invariance.weakness import regions


@measure(invariant_under=FIXED_BITS, discrete=True)
def free_regions(model: nn.Module, x_train: Tensor, x_unseen: Tensor, layer: int = -1) -> Estimate:
    """Activation regions that hold unseen points and no training point.

    See :func:`invariance.weakness.regions.free_regions`.
    """
    return regions.free_regions(model, x_train, x_unseen, layer)
