"""Bring networks to a common training loss, or to common logits, without moving a boundary.

The Hessian of the cross-entropy carries ``p (1 - p)``: a network whose loss is higher is
sharper for that reason alone. Multiplying all logits by one number changes no predicted class
and moves the loss to wherever it is wanted.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.nn import functional as F

from invariance.core._errors import MeasureError
from invariance.core._modules import clone, weight_layers

_LOWEST, _HIGHEST = 1e-6, 1e9


def logit_factor_for_loss(logits: Tensor, y: Tensor, loss: float) -> float:
    """Return the number that brings the mean cross-entropy to ``loss``.

    Where every row is right, the loss falls from ln K to 0 as the factor grows, so there is
    exactly one such number for any loss in between.

    Shapes: ``logits (n, K)``, ``y (n,)``.
    """
    z = logits.detach().double().cpu()
    labels = y.cpu()
    if not 0 < loss < math.log(z.shape[1]):
        raise MeasureError(f"loss must lie between 0 and ln {z.shape[1]}. Got {loss}.")
    own = z.gather(1, labels.unsqueeze(1))
    others = z.scatter(1, labels.unsqueeze(1), -math.inf).amax(1, keepdim=True)
    if not bool((own > others).all()):
        return math.nan

    def excess(log_factor: float) -> float:
        return float(F.cross_entropy(math.exp(log_factor) * z, labels)) - loss

    found: float = brentq(excess, math.log(_LOWEST), math.log(_HIGHEST), xtol=1e-13)
    return math.exp(found)


def logit_factor_for_margin(logits: Tensor, y: Tensor, margin: float) -> float:
    """Return the number that brings the mean absolute margin to ``margin``.

    Shapes: ``logits (n, K)``, ``y (n,)``.
    """
    z = logits.detach().double().cpu()
    labels = y.cpu().unsqueeze(1)
    others = z.scatter(1, labels, -math.inf).amax(1)
    mean = float((z.gather(1, labels)[:, 0] - others).abs().mean())
    return margin / mean if mean > 0 else math.nan


def with_logits_scaled(model: nn.Module, factor: float) -> nn.Module:
    """Return a copy whose logits are multiplied by ``factor``, in its last weight layer.

    Where the factor goes is a choice, and measures that are not invariant depend on it.
    """
    copied = clone(model)
    _, last = weight_layers(copied)[-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(factor)
    return copied
