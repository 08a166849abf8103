"""Sharpness as the extreme eigenvalues of the loss's Hessian."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.curvature._batches import Data
from invariance.curvature.losses._resolve import LossLike
from invariance.curvature.spectrum import _eigenvalues as eigen
from invariance.curvature.spectrum._eigenvalues import Which
from invariance.curvature.spectrum._ensemble import hessian_eigenvalues_ensemble
from invariance.measures._registry import measure


# A permutation or sign flip is orthogonal, so H is only conjugated; a logit shift moves the
# point along a direction in which the loss is constant everywhere, so H does not change at
# all. A scaling gives D^-1 H D^-1, other eigenvalues; so do folding, mixing, splitting and a
# change of coordinates. A unit without outgoing weights adds rows to H that are not zero.
@measure(
    invariant_under=[Group.PERMUTATION, Group.SIGN_FLIP, Group.LOGIT_SHIFT],
    ensemble=hessian_eigenvalues_ensemble,
)
def hessian_eigenvalues(
    model: nn.Module,
    x: Data,
    y: Tensor | None,
    *,
    k: int = 1,
    which: Which = "largest",
    loss: LossLike = "cross_entropy",
    tolerance: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Estimate:
    """Largest (or smallest) eigenvalues of the Hessian of the mean loss, residual-certified.

    Args:
        model: A module in eval mode as far as dropout and BatchNorm are concerned.
        x: ``(n, ...)`` inputs, or a re-iterable of ``(x, y)`` batches with ``y=None``.
        y: Targets of ``x``.
        k: How many at each asked end.
        which: ``"largest"``, ``"smallest"`` (algebraically) or ``"both"``.
        loss: The loss.
        tolerance: Largest residual relative to the spectral norm; 1e-6 in float64 and 1e-4
            in float32 if ``None``.
        seed: Seeds the start vector.
        options: Further arguments of :func:`invariance.curvature.hessian_eigenvalues`.

    Returns:
        The eigenvalues, descending, with ``residual``, ``iterations`` and ``converged``.

    Example:
        Equal logits, so ``p = (1/2, 1/2)``, and ``S = diag(p) - p p^T`` has trace and top
        eigenvalue 1/2; ``H`` is the Kronecker product
        of ``S`` and ``x x^T``:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> round(float(hessian_eigenvalues(model, x, y)), 12)
        2.0
    """
    return eigen.hessian_eigenvalues(
        model, x, y, k=k, which=which, loss=loss, tolerance=tolerance, seed=seed, **options
    )
