"""Normalised flatness of Rangamani et al.: the Hessian in units of each tensor's norm."""

from __future__ import annotations

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.core._modules import require_module
from invariance.curvature.losses._resolve import LossLike
from invariance.measures._registry import measure
from invariance.measures.shared._scaled_hessian import scaled_top_eigenvalue


@measure(
    # One scale a tensor answers one factor a tensor, and no finer one; a BatchNorm's
    # compensated scaling multiplies whole tensors, too.
    invariant_under=[
        Group.LAYER_SCALING,
        Group.PERMUTATION,
        Group.SIGN_FLIP,
        Group.BATCHNORM_SCALING,
    ],
)
def normalized_eigenvalue(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: LossLike = "cross_entropy",
    seed: int = 0,
) -> Estimate:
    """Largest eigenvalue of ``D H D`` with D the Frobenius norm of each parameter tensor.

    Rangamani, Nguyen, Kumar, Phan, Chin & Tran (2021), "A scale invariant measure of
    flatness for deep network minima": the Hessian's spectral norm on a quotient manifold of
    layer scalings, each layer's metric divided by its squared norm.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        loss: The mean loss.
        seed: Seed of the solver's start vector.

    Returns:
        The eigenvalue, residual-certified.

    Example:
        ``|W|_F^2 = 4`` times ``lambda_max = 2``:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> round(float(normalized_eigenvalue(model, x, y)), 9)
        8.0
    """
    scales = {name: p.detach().norm() for name, p in require_module(model).named_parameters()}
    return scaled_top_eigenvalue(
        model, x, y, scales, loss=loss, name="each tensor's norm", seed=seed
    )
