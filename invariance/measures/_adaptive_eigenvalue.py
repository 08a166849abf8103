"""Top eigenvalue of the Hessian in units of each parameter: ``lambda_max(|T| H |T|)``."""

from __future__ import annotations

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.core._modules import require_module
from invariance.curvature.losses._resolve import LossLike
from invariance.measures._registry import measure
from invariance.measures.shared._scaled_hessian import scaled_top_eigenvalue


@measure(
    # theta -> D theta takes |T| to D |T| and H to D^-1 H D^-1. A dormant unit adds rows and
    # columns of zeros: its outgoing parameters are zero, its incoming ones have no influence.
    invariant_under=[
        Group.LAYER_SCALING,
        Group.NEURON_SCALING,
        Group.PERMUTATION,
        Group.SIGN_FLIP,
        Group.BATCHNORM_SCALING,
        Group.DORMANT_UNITS,
    ],
)
def adaptive_eigenvalue(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: LossLike = "cross_entropy",
    seed: int = 0,
) -> Estimate:
    """Largest eigenvalue of ``diag|theta| H diag|theta|``, biases included.

    The worst-case elementwise adaptive sharpness (Kwon et al. 2021, ASAM) to second order.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        loss: The mean loss.
        seed: Seed of the solver's start vector.

    Returns:
        The eigenvalue, residual-certified.

    Example:
        All ``|theta_i|`` are 1, so it is the plain eigenvalue, ``|x|^2 / 2``:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> round(float(adaptive_eigenvalue(model, x, y)), 9)
        2.0
    """
    scales = {name: p.detach().abs() for name, p in require_module(model).named_parameters()}
    return scaled_top_eigenvalue(model, x, y, scales, loss=loss, name="diag|theta|", seed=seed)
