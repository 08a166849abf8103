"""Distinct activation patterns over the unseen points: declaration."""

from __future__ import annotations

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.measures._registry import measure
from invariance.weakness.patterns import _patterns as patterns

#: Every exact map but one leaves the sign of each pre-activation alone. Positive scalings
#: scale it, permutations reorder the bits, a split repeats a bit, and a sign flip needs a
#: BatchNorm (whose output does not change) or an odd activation (which is refused). Giving
#: the layer a dormant unit, or moving one, adds or changes a bit: the count varies.
FIXED_BITS = frozenset(set(Group) - {Group.DORMANT_UNITS})


@measure(invariant_under=FIXED_BITS, fields={"x": "x_unseen"}, discrete=True)
def activation_patterns(model: nn.Module, x: Tensor, layer: int = -1) -> Estimate:
    """Distinct activation patterns of a hidden layer over the unseen points.

    See :func:`invariance.weakness.patterns._patterns.activation_patterns`.

    Example:
        One unit is on right of zero, the other left of it:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0], [-1.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> points = torch.tensor([[-1.0], [1.0], [2.0]]).double()
        >>> float(activation_patterns(model, points))
        2.0
    """
    return patterns.activation_patterns(model, x, layer)
