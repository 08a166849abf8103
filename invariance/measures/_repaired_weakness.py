"""Weakness counts over what the function uses, which dormant units cannot move."""

from __future__ import annotations

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.measures._registry import measure
from invariance.weakness.patterns import _repaired as repair_patterns
from invariance.weakness.separability import _repaired_pair_proxy as repair

#: Every kind of exact map. The plain counts vary under dormant units only; the repairs
#: leave these out. ``function_pair_proxy`` is a function of the logits modulo a shift.
EVERY_GROUP = frozenset(Group)


@measure(invariant_under=EVERY_GROUP, discrete=True, cost="solver")
def repaired_pair_proxy(
    model: nn.Module, x_train: Tensor, y_train: Tensor, x_unseen: Tensor
) -> Estimate:
    """Feasible pairs over the features that the last layer uses.

    See :func:`invariance.weakness.separability._repaired_pair_proxy.repaired_pair_proxy`.
    """
    return repair.repaired_pair_proxy(model, x_train, y_train, x_unseen, features="used")


@measure(invariant_under=EVERY_GROUP, discrete=True, cost="solver")
def function_pair_proxy(
    model: nn.Module, x_train: Tensor, y_train: Tensor, x_unseen: Tensor
) -> Estimate:
    """Feasible pairs over the logits alone, modulo a shift: a function of the function.

    See :func:`invariance.weakness.separability._repaired_pair_proxy.repaired_pair_proxy`.
    """
    return repair.repaired_pair_proxy(model, x_train, y_train, x_unseen, features="function")


@measure(invariant_under=EVERY_GROUP, fields={"x": "x_unseen"}, discrete=True)
def repaired_activation_patterns(model: nn.Module, x: Tensor, layer: int = -1) -> Estimate:
    """Distinct activation patterns over the unseen points, of used units only.

    See :func:`invariance.weakness.patterns._repaired.repaired_activation_patterns`.
    """
    return repair_patterns.repaired_activation_patterns(model, x, layer)


@measure(invariant_under=EVERY_GROUP, discrete=True)
def repaired_free_regions(
    model: nn.Module, x_train: Tensor, x_unseen: Tensor, layer: int = -1
) -> Estimate:
    """Regions of used units that hold unseen points and no training point.

    See :func:`invariance.weakness.patterns._repaired.repaired_free_regions`.
    """
    return repair_patterns.repaired_free_regions(model, x_train, x_unseen, layer)
