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
    """
    return regions.region_class_weakness(model, x_train, x_unseen, layer)
