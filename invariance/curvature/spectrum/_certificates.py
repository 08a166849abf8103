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

from invariance.curvature.products._matrix import SymmetricOperator

#: What a tolerance bounds: the residual, or the error of the value.
Criterion: TypeAlias = Literal["residual", "value"]

#: Round-off of a product in working precision, in units of epsilon times the matrix's norm.
_ROUND_OFF = 64.0


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
        certificate: How the residuals were recomputed, in words.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    error_bounds: Tensor
    scale: float
    products: int
    converged: bool
    solver: str
    certificate: str = "recomputed"


def default_tolerance(dtype: torch.dtype) -> float:
    """Return the relative residual that is asked for by default: what the precision allows."""
    return 1e-6 if dtype == torch.float64 else 1e-4


def bound_errors(residuals: Tensor, gaps: Tensor, criterion: Criterion) -> Tensor:
    """Return what the tolerance is compared with.

    Shapes: ``residuals (k,)``, ``gaps (k,)``; returns ``(k,)``.
    """
    if criterion == "residual":
        return residuals
    return torch.where(gaps > 0, torch.minimum(residuals, residuals**2 / gaps), residuals)


def recompute_residuals(
    operator: SymmetricOperator, values: Tensor, vectors: Tensor, deflate: Tensor | None = None
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
    operator: SymmetricOperator,
    found: Eigenpairs,
    tolerance: float,
    criterion: Criterion,
    dtype: torch.dtype,
) -> Eigenpairs:
    """Replace values by Rayleigh quotients in another precision, and recompute residuals.

    A single value whose error is bounded by ``residual^2 / gap`` needs only its Rayleigh
    quotient in that precision where the residual stands out of the operator's own round-off:
    the residual is then recomputed by the operator as it is, with an allowance for that.
    """
    before = operator.products
    vectors = found.vectors.to(dtype)
    lengths = vectors.norm(dim=1, keepdim=True)
    vectors = vectors / lengths
    allowance = _ROUND_OFF * torch.finfo(operator.dtype).eps * found.scale
    value = None
    if len(vectors) == 1 and criterion == "value" and float(found.residuals) > 4 * allowance:
        value = operator.quadratic(vectors[0], dtype)
    if value is None:
        precise = operator.in_dtype(dtype)
        images = precise.rows(vectors)
        values, allowance, products = (images * vectors).sum(1), 0.0, precise.products
        certificate = f"recomputed in {dtype}"
    else:
        images = operator.rows(found.vectors).to(dtype) / lengths
        values = vectors.new_tensor([value])
        products = operator.products - before
        certificate = f"recomputed, value recomputed in {dtype}"
    residuals = (images - values[:, None] * vectors).norm(dim=1).cpu().double() + allowance
    # The solver's bound was residual^2 / gap for its own residual: keep its gap.
    gaps = found.residuals**2 / found.error_bounds.clamp_min(torch.finfo(torch.float64).tiny)
    gaps = torch.where(found.error_bounds < found.residuals, gaps, 0.0)
    bounds = bound_errors(residuals, gaps, criterion)
    return dataclasses.replace(
        found,
        values=values.cpu().double(),
        residuals=residuals,
        error_bounds=bound_errors(residuals, gaps, "value"),
        products=found.products + products,
        converged=bool((bounds <= tolerance * found.scale).all()) or found.scale == 0,
        certificate=certificate,
    )
