"""Norm of the parameters."""

from __future__ import annotations

import math

from torch import nn

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.core._modules import require_module
from invariance.measures._registry import measure


@measure(invariant_under=[Group.PERMUTATION, Group.SIGN_FLIP])
def parameter_norm(model: nn.Module, *, p: float = 2.0) -> Estimate:
    """Norm of all parameters as one vector, ``(sum_i |theta_i|^p)^(1/p)``.

    Args:
        model: Any network. Biases and BatchNorm's parameters count, frozen ones too; a shared
            parameter counts once.
        p: The order, at least 1; ``math.inf`` gives the largest entry.

    Returns:
        The norm; ``parts`` has each parameter tensor's own norm.

    Raises:
        MeasureError: ``p`` below 1, no parameters, or NaN or infinity in one.

    Example:
        >>> import invariance as inv
        >>> round(float(parameter_norm(inv.models.from_weights([[[3.0, 4.0]]]))), 9)
        5.0
    """
    if not p >= 1:
        raise MeasureError(f"The order p of a norm must be at least 1. Got {p}.")
    require_module(model)
    parts = {
        name: float(parameter.detach().cpu().double().flatten().norm(p))
        for name, parameter in model.named_parameters()
    }
    if not parts:
        raise MeasureError(f"{type(model).__name__} has no parameters, hence no norm.")
    for name, value in parts.items():
        if not math.isfinite(value):
            raise MeasureError(f"Parameter {name!r} contains NaN or infinity.")
    largest = max(parts.values())
    if math.isinf(p) or largest == 0:
        total = largest
    else:  # relative to the largest part, so that no power overflows
        total = largest * sum((value / largest) ** p for value in parts.values()) ** (1 / p)
    return Estimate(total, method=f"{p:g}-norm of all parameters", parts=parts)
