"""Sharpness as the Frobenius norm of the loss's Hessian."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.curvature._batches import Data
from invariance.curvature.losses._resolve import LossLike
from invariance.curvature.spectrum import _norm as norm
from invariance.measures._registry import measure


# As for the eigenvalues: the norm is a function of the spectrum, which only orthogonal maps
# (permutation, sign flip) and translations along flat directions (logit shift) keep.
@measure(invariant_under=[Group.PERMUTATION, Group.SIGN_FLIP, Group.LOGIT_SHIFT], cost="sampling")
def hessian_norm(
    model: nn.Module,
    x: Data,
    y: Tensor | None,
    *,
    loss: LossLike = "cross_entropy",
    budget: int = 96,
    seed: int = 0,
    **options: Any,
) -> Estimate:
    """Frobenius norm of the Hessian of the mean loss; exact for small networks.

    Args:
        model: A module in eval mode as far as dropout and BatchNorm are concerned.
        x: ``(n, ...)`` inputs, or a re-iterable of ``(x, y)`` batches with ``y=None``.
        y: Targets of ``x``.
        loss: The loss.
        budget: Matrix-vector products to spend where it is estimated.
        seed: Determines the probes.
        options: Further arguments of :func:`invariance.curvature.hessian_norm`.

    Returns:
        The norm, with a standard error where it is estimated.

    Example:
        ``H`` has rank one here, so its norm is its only eigenvalue, ``|x|^2 / 2``:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> round(float(hessian_norm(model, x, y)), 12)
        2.0
    """
    return norm.hessian_norm(model, x, y, loss=loss, budget=budget, seed=seed, **options)
