"""Curvature of the loss along the parameters themselves: ``theta^T H theta``."""

from __future__ import annotations

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.curvature.losses._resolve import LossLike
from invariance.curvature.products._operators import HessianOperator
from invariance.measures._registry import measure


@measure(
    # The second derivative of L along theta. Any linear map theta' = T theta with
    # L'(T theta) = L(theta) for all theta keeps it, and so does a logit shift theta + s, since
    # the line from it is again a shift of the line from theta.
    invariant_under=[
        Group.LAYER_SCALING,
        Group.NEURON_SCALING,
        Group.PERMUTATION,
        Group.SIGN_FLIP,
        Group.LINEAR_MIXING,
        Group.LOGIT_SHIFT,
        Group.BATCHNORM_SCALING,
        Group.UNIT_SPLIT,
        Group.DORMANT_UNITS,
    ],
)
def hessian_quadratic_form(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: LossLike = "cross_entropy",
) -> Estimate:
    """Second derivative of the loss along the parameters, ``theta^T H theta``.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        loss: The mean loss.

    Returns:
        The quadratic form over the trainable parameters; ``parts`` has each parameter
        tensor's share ``<theta_b, (H theta)_b>``. It can be negative.

    Example:
        ``p = (3/4, 1/4)``; along the parameters the logits move by themselves, so it is
        the variance of the logits under ``p``, ``3/16 ln(3)^2``:

        >>> import torch
        >>> import invariance as inv
        >>> import math
        >>> model = inv.models.from_weights([[[math.log(3)], [0.0]]])
        >>> x, y = torch.ones(1, 1).double(), torch.tensor([0])
        >>> abs(float(hessian_quadratic_form(model, x, y)) - 3 / 16 * math.log(3) ** 2) < 1e-12
        True
    """
    operator = HessianOperator(model, x, y, loss=loss)
    parameters = dict(model.named_parameters())
    theta = operator.space.join([parameters[name].detach() for name in operator.names])
    image = operator.split(operator.matvec(theta.to(operator.device, operator.dtype)))
    parts = {
        name: float((parameters[name].detach().cpu().double() * value.cpu().double()).sum())
        for name, value in image.items()
    }
    return Estimate(sum(parts.values()), method=f"one product; {operator.method}", parts=parts)
