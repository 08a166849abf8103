"""All jointly feasible partial labelings of the unseen points: declaration."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.measures._pair_proxy import FIXED_FEATURE_SPAN
from invariance.measures._registry import measure
from invariance.weakness.extensions import _extension_count as extensions


@measure(invariant_under=FIXED_FEATURE_SPAN, discrete=True, cost="sampling")
def extension_count(
    model: nn.Module, x_train: Tensor, y_train: Tensor, x_unseen: Tensor, **options: Any
) -> Estimate:
    """Jointly feasible partial labelings of the unseen points.

    See :func:`invariance.weakness.extensions._extension_count.extension_count`.
    """
    return extensions.extension_count(model, x_train, y_train, x_unseen, **options)
