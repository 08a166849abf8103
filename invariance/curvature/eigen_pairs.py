"""Eigenpairs and their certificates.

Whatever the solver says, the residual ``|A v - lambda v|`` is computed again from the
returned vectors. For a symmetric A some eigenvalue lies within that residual of lambda; with
a gap to the next Ritz value the error is at most ``residual^2 / gap`` (Kato and Temple).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from invariance.curvature.operators import CurvatureOperator

#: What a tolerance bounds: the residual, or the error of the value.
Criterion: TypeAlias = Literal["residual", "value"]


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Certified eigenpairs, largest eigenvalue first.

    Attributes:
        values: ``(k,)`` float64.
        vectors: ``(k, d)`` unit vectors, in the operator's precision.
        residuals: ``(k,)`` recomputed norms of ``A v - lambda v``.
        error_bounds: ``(k,)`` bounds on the distance to an eigenvalue.
        scale: Estimate of the matrix's spectral norm, which the tolerance refers to.
        products: Matrix-vector products used, certificates included.
        converged: True if every pair meets the tolerance.
        solver: Which solver found them.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    error_bounds: Tensor
    scale: float
    products: int
    converged: bool
    solver: str


def default_tolerance(dtype: torch.dtype) -> float:
    """Return the relative residual that is asked for by default: what the precision allows."""
    return 1e-6 if dtype == torch.float64 else 1e-4


def bound_errors(residuals: Tensor, gaps: Tensor, criterion: Criterion) -> Tensor:
    """Return what the tolerance is compared with.

    Args:
        residuals: ``(k,)`` residual norms.
        gaps: ``(k,)`` distances to the nearest other eigenvalue; 0 where none is known.
        criterion: ``"residual"``, or ``"value"`` for the bound on the eigenvalue's error.

    Returns:
        ``(k,)`` bounds.
    """
    if criterion == "residual":
        return residuals
    return torch.where(gaps > 0, torch.minimum(residuals, residuals**2 / gaps), residuals)


def recompute_residuals(
    operator: CurvatureOperator, values: Tensor, vectors: Tensor, deflate: Tensor | None = None
) -> Tensor:
    """Return ``|A v - lambda v|`` for unit rows, from fresh products."""
    images = operator.rows(vectors)
    if deflate is not None:
        images = images - (images @ deflate.mT) @ deflate
    found: Tensor = (images.double() - values.to(images.device)[:, None] * vectors.double()).norm(
        dim=1
    )
    return found.cpu()


def certify_again(
    operator: CurvatureOperator, found: Eigenpairs, tolerance: float, criterion: Criterion
) -> Eigenpairs:
    """Replace values by Rayleigh quotients, and residuals, in the operator's precision."""
    vectors = found.vectors.to(operator.dtype)
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    images = operator.rows(vectors)
    values = (images * vectors).sum(1)
    residuals = (images - values[:, None] * vectors).norm(dim=1).cpu().double()
    # The solver's bound was residual^2 / gap for its own residual: keep its gap.
    gaps = found.residuals**2 / found.error_bounds.clamp_min(torch.finfo(torch.float64).tiny)
    gaps = torch.where(found.error_bounds < found.residuals, gaps, 0.0)
    bounds = bound_errors(residuals, gaps, criterion)
    return dataclasses.replace(
        found,
        values=values.cpu().double(),
        residuals=residuals,
        error_bounds=bound_errors(residuals, gaps, "value"),
        products=found.products + operator.products,
        converged=bool((bounds <= tolerance * found.scale).all()) or found.scale == 0,
    )
