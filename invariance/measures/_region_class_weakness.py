"""Log-number of labelings of the free regions: declaration."""

from __future__ import annotations

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.measures._activation_patterns import FIXED_BITS
from invariance.measures._registry import measure
from invariance.weakness.patterns import _regions as regions


@measure(invariant_under=FIXED_BITS, discrete=True)
def region_class_weakness(
    model: nn.Module, x_train: Tensor, x_unseen: Tensor, layer: int = -1
) -> Estimate:
    """Log of (K + 1)^k for k free regions and K classes.

    See :func:`invariance.weakness.patterns._regions.region_class_weakness`.

    Example:
        One free region, two classes or silent: ``ln 3``.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0], [-1.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> unseen = torch.tensor([[-1.0], [2.0]]).double()
        >>> round(float(region_class_weakness(model, torch.tensor([[1.0]]).double(), unseen)), 6)
        1.098612
    """
    return regions.region_class_weakness(model, x_train, x_unseen, layer)
