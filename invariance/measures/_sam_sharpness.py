"""Worst-case sharpness to first order, plain (SAM) and elementwise adaptive (ASAM)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.curvature.losses._resolve import LossLike
from invariance.measures._registry import measure
from invariance.measures.shared._perturbed_loss import PerturbedLoss


@measure(invariant_under=[Group.PERMUTATION, Group.SIGN_FLIP, Group.LOGIT_SHIFT], streams=True)
def sam_sharpness(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    rho: float = 0.05,
    loss: LossLike = "cross_entropy",
) -> Estimate:
    """Rise of the loss along its gradient, ``L(theta + rho g / |g|) - L(theta)``.

    Foret, Kleiner, Mobahi & Neyshabur (2021), "Sharpness-aware minimization": the worst
    perturbation of norm rho to first order.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        rho: Radius of the ball.
        loss: The mean loss.

    Returns:
        The rise; ``detail`` has the loss itself.

    Raises:
        MeasureError: A radius that is not positive.

    Example:
        Along the gradient the logits part by ``2 sqrt(2) rho``; the loss was ``ln 2``:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> import math
        >>> rise = math.log((1 + math.exp(2 * math.sqrt(2) * 0.05)) / 2)
        >>> abs(float(sam_sharpness(model, x, y, rho=0.05)) - rise) < 1e-12
        True
    """
    return _ascent(model, x, y, rho, loss, adaptive=False)


@measure(
    # The ball |e / theta| <= rho is carried along by every positive diagonal map. A logit
    # shift moves theta, hence the ball. A dormant unit's entries do not move: the outgoing
    # ones are zero, and the incoming ones have no gradient.
    invariant_under=[
        Group.LAYER_SCALING,
        Group.NEURON_SCALING,
        Group.PERMUTATION,
        Group.SIGN_FLIP,
        Group.BATCHNORM_SCALING,
        Group.DORMANT_UNITS,
    ],
    streams=True,
)
def adaptive_sharpness(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    rho: float = 0.05,
    loss: LossLike = "cross_entropy",
) -> Estimate:
    """Rise of the loss at the worst elementwise-relative perturbation, to first order.

    Kwon, Kim, Park & Choi (2021), "ASAM: adaptive sharpness-aware minimization", with
    ``T = diag|theta|`` and p = 2: ``L(theta + rho T^2 g / |T g|) - L(theta)``. Biases are
    scaled like weights and nothing is added to ``|theta|``: a version that leaves biases out
    or adds a constant is not invariant.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        rho: Radius of the ball, relative to the parameters.
        loss: The mean loss.

    Returns:
        The rise; ``detail`` has the loss itself.

    Raises:
        MeasureError: A radius that is not positive.

    Example:
        All ``|theta_i|`` are 1, so it is the plain one:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> plain = inv.measures.sam_sharpness(model, x, y, rho=0.05)
        >>> abs(float(adaptive_sharpness(model, x, y, rho=0.05)) - float(plain)) < 1e-12
        True
    """
    return _ascent(model, x, y, rho, loss, adaptive=True)


def _ascent(
    model: nn.Module, x: Tensor, y: Tensor, rho: float, loss: LossLike, *, adaptive: bool
) -> Estimate:
    if not (rho > 0 and math.isfinite(rho)):
        raise MeasureError(f"rho must be positive and finite. Got {rho}.")
    objective = PerturbedLoss(model, x, y, loss)
    base, gradient = objective.gradient()
    scales = {name: value.abs() if adaptive else 1.0 for name, value in objective.theta.items()}
    scaled = {name: scales[name] * part for name, part in gradient.items()}
    norm = math.sqrt(sum(float(part.square().sum()) for part in scaled.values()))
    if norm == 0:
        return Estimate(0.0, method="the gradient vanishes", detail={"loss": base})
    step = {name: (rho / norm) * scales[name] * part for name, part in scaled.items()}
    rise = objective.value(objective.moved(step)) - base
    sure = objective.resolves(rise, base)
    return Estimate(
        rise,
        exact=sure,
        method=f"one ascent step, rho = {rho:g}{', elementwise' if adaptive else ''}"
        + ("" if sure else ", a rise within the round-off of the loss"),
        detail={"loss": base},
    )
