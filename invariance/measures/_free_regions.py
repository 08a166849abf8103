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

    Example:
        Training data right of zero only:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0], [-1.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> unseen = torch.tensor([[-1.0], [2.0]]).double()
        >>> round(float(free_regions(model, torch.tensor([[1.0]]).double(), unseen)), 9)
        1.0
    """
    return regions.free_regions(model, x_train, x_unseen, layer)
