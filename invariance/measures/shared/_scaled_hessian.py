"""Top eigenvalue of ``D H D`` for a positive diagonal D: shared by several measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.curvature.losses._resolve import LossLike
from invariance.curvature.products._scaled import ScaledHessianOperator
from invariance.curvature.spectrum._eigenvalues import hessian_eigenvalues


def scaled_top_eigenvalue(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    scales: Mapping[str, Tensor],
    *,
    loss: LossLike,
    name: str,
    seed: int = 0,
) -> Estimate:
    """Return the algebraically largest eigenvalue of ``D H D``, with its certificate.

    Shapes: ``x (n, ...)``, ``y (n,)``.
    """
    operator = ScaledHessianOperator(model, x, y, loss=loss)
    operator.set_scales(scales)
    found = hessian_eigenvalues(operator, k=1, seed=seed)
    return replace(found, method=f"D = {name}; {found.method}")
