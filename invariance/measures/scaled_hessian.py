"""Top eigenvalue of ``D H D`` for a positive diagonal D: shared by several measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from invariance.core.estimate import Estimate
from invariance.curvature.eigen import hessian_eigenvalues
from invariance.curvature.losses import LossLike
from invariance.curvature.operators import HessianOperator


class ScaledHessianOperator(HessianOperator):
    """``D H D`` with D the diagonal matrix of ``scale`` (all ones until it is set)."""

    label = "scaled Hessian"
    scale: Tensor | None = None

    def rows(self, vectors: Tensor) -> Tensor:
        """Multiply with each row of ``(k, d)``; returns ``(k, d)``."""
        if self.scale is None:
            return super().rows(vectors)
        scale = self.scale.to(vectors)
        return super().rows(vectors * scale) * scale.to(self.dtype)


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

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        scales: Parameter name to D's entries, broadcastable to the parameter's shape.
        loss: The mean loss.
        name: What D is, for ``Estimate.method``.
        seed: Seed of the solver's start vector.

    Returns:
        The eigenvalue, residual-certified.
    """
    operator = ScaledHessianOperator(model, x, y, loss=loss)
    entries = [
        scales[parameter].expand(shape).to(operator.device, operator.dtype)
        for parameter, shape in zip(operator.names, operator.space.shapes, strict=True)
    ]
    operator.scale = operator.space.join([entry.contiguous() for entry in entries])
    found = hessian_eigenvalues(operator, k=1, seed=seed)
    return replace(found, method=f"D = {name}; {found.method}")
