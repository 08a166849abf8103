"""Certified extreme eigenvalues of curvature matrices."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from invariance.core._arguments import as_integer, as_seed
from invariance.core._errors import MeasureError, unknown_name
from invariance.core._estimate import Estimate
from invariance.core._intake import takes_any
from invariance.curvature._batches import Data
from invariance.curvature.losses._resolve import LossLike
from invariance.curvature.products._matrix import SymmetricOperator
from invariance.curvature.products._operators import MatrixName, build_operator
from invariance.curvature.spectrum._certificates import (
    Criterion,
    Eigenpairs,
    certify_again,
    default_tolerance,
)
from invariance.curvature.spectrum._certified_lanczos import solve_lanczos
from invariance.curvature.spectrum._solvers import solve_dense, solve_scipy

__all__ = [
    "DENSE_DIM",
    "Criterion",
    "Eigenpairs",
    "Solver",
    "Which",
    "default_tolerance",
    "eigenpairs",
    "hessian_eigenvalues",
]

Which: TypeAlias = Literal["largest", "smallest", "both"]
Solver: TypeAlias = Literal["auto", "dense", "lanczos", "arpack", "lobpcg"]

_WHICH = ("largest", "smallest", "both")
_SOLVERS = ("auto", "dense", "lanczos", "arpack", "lobpcg")

#: Matrices up to this size are formed and decomposed: every eigenvalue, no start vector.
DENSE_DIM = 256


def eigenpairs(
    operator: SymmetricOperator,
    *,
    k: int = 1,
    which: Which = "largest",
    tolerance: float | None = None,
    criterion: Criterion = "residual",
    solver: Solver = "auto",
    max_products: int | None = None,
    seed: int = 0,
    certify_in: torch.dtype | None = None,
) -> Eigenpairs:
    """Compute the k algebraically largest or smallest eigenpairs, or k at both ends.

    Args:
        operator: The matrix.
        k: How many at each asked end.
        which: ``"largest"``, ``"smallest"`` or ``"both"``.
        tolerance: Asked accuracy relative to the spectral norm; ``None`` means 1e-6 in
            float64 and 1e-4 in lower precision.
        criterion: What the tolerance bounds: the ``"residual"``, or the error of the
            ``"value"`` by ``min(residual, residual^2 / gap)``, which is reached sooner.
        solver: ``"auto"`` forms matrices of up to 256 rows and iterates otherwise.
        max_products: Give up (with ``converged=False``) after so many products.
        seed: Determines the start vector and thereby the result.
        certify_in: Recompute values in this precision, and residuals too unless they stand
            out of the round-off anyway. ``torch.float64`` frees float32 eigenvalues of their
            round-off, for the price of one product in it at most.

    Returns:
        The pairs, with recomputed residuals.

    Raises:
        MeasureError: A k or tolerance out of range.
        UsageError: An unknown option, or a k or seed that is no integer.

    Example:
        One row with ``p = (1/2, 1/2)``: ``H = S (x) x x^T`` with ``Tr S = 1/2`` and ``|x|^2 = 4``.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> found = inv.curvature.eigenpairs(inv.curvature.HessianOperator(model, x, y))
        >>> found.values.round(decimals=9).tolist()
        [2.0]
    """
    dim = operator.shape[0]
    if which not in _WHICH:
        raise unknown_name("which", which, _WHICH)
    if solver not in _SOLVERS:
        raise unknown_name("solver", solver, _SOLVERS)
    if criterion not in ("residual", "value"):
        raise unknown_name("criterion", criterion, ("residual", "value"))
    ends = 2 if which == "both" else 1
    k, seed = as_integer(k, "k"), as_seed(seed)
    if k < 1 or k * ends > dim:
        raise MeasureError(
            f"k must lie between 1 and {dim // ends} for a matrix of {dim} rows. Got {k}."
        )
    asked = default_tolerance(operator.dtype) if tolerance is None else float(tolerance)
    if not 0 < asked < 1:
        raise MeasureError(f"tolerance must lie between 0 and 1. Got {tolerance}.")
    high = 0 if which == "smallest" else k
    low = 0 if which == "largest" else k
    limit = max_products or max(20 * (k + 10), 10 * min(dim, 100))
    if solver == "dense" or (solver == "auto" and dim <= DENSE_DIM):
        found = solve_dense(operator, high, low, asked)
    elif solver in ("arpack", "lobpcg"):
        found = solve_scipy(operator, high, low, asked, criterion, solver, limit, seed)
    else:
        again = certify_in is not None and certify_in != operator.dtype
        found = solve_lanczos(operator, high, low, asked, criterion, limit, seed, trust=again)
    if certify_in is None or certify_in == operator.dtype:
        return found
    return certify_again(operator, found, asked, criterion, certify_in)


@takes_any(streams=True)
def hessian_eigenvalues(
    model: nn.Module | SymmetricOperator,
    x: Data | None = None,
    y: Tensor | None = None,
    *,
    k: int = 1,
    which: Which = "largest",
    matrix: MatrixName = "hessian",
    loss: LossLike = "cross_entropy",
    tolerance: float | None = None,
    criterion: Criterion = "residual",
    solver: Solver = "auto",
    max_products: int | None = None,
    seed: int = 0,
    certify_in: torch.dtype | None = None,
    **options: Any,
) -> Estimate:
    """Compute extreme eigenvalues of the Hessian, the GGN or a Fisher matrix, certified.

    Args:
        model: A module, or a ready operator.
        x: ``(n, ...)`` inputs, or a re-iterable of ``(x, y)`` batches.
        y: Targets of ``x``.
        k: How many at each asked end.
        which: ``"largest"`` or ``"smallest"`` (algebraically; negative curvature is the
            smallest), or ``"both"``.
        matrix: ``"hessian"``, ``"ggn"``, ``"fisher"`` or ``"empirical_fisher"``.
        loss: The loss; see :class:`~invariance.curvature.products._operators.CurvatureOperator`.
        tolerance: See :func:`eigenpairs`.
        criterion: See :func:`eigenpairs`.
        solver: See :func:`eigenpairs`.
        max_products: See :func:`eigenpairs`.
        seed: Determines the start vector and thereby the result.
        certify_in: See :func:`eigenpairs`.
        options: ``parameters``, ``dtype``, ``mode``, ``memory_budget`` of the operator.

    Returns:
        The eigenvalues in descending order (the k largest, then the k smallest), one
        ``float`` for a single one. ``residual`` is the largest recomputed residual norm,
        ``stderr`` the largest bound on an eigenvalue's error (no sampling is involved).

    Example:
        One row with ``p = (1/2, 1/2)``: ``H = S (x) x x^T`` with ``Tr S = 1/2`` and ``|x|^2 = 4``.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> found = inv.curvature.hessian_eigenvalues(model, x, y)  # 1/2 times |x|^2
        >>> round(float(found), 9)
        2.0
    """
    operator = build_operator(matrix, model, x, y, loss=loss, **options)
    pairs = eigenpairs(
        operator,
        k=k,
        which=which,
        tolerance=tolerance,
        criterion=criterion,
        solver=solver,
        max_products=max_products,
        seed=seed,
        certify_in=certify_in,
    )
    values = pairs.values.numpy()
    exact = pairs.solver == "dense"
    worst = float(pairs.residuals.max())
    return Estimate(
        value=float(values[0]) if values.size == 1 else values,
        stderr=0.0 if exact else float(pairs.error_bounds.max()),
        exact=exact,
        method=(
            f"{which} of the {operator.label}: {pairs.solver}, "
            f"residual {worst:.2g} {pairs.certificate}"
            f"{'' if pairs.converged else ' (NOT converged)'}; {operator.method}"
        ),
        residual=worst,
        iterations=pairs.products,
        converged=pairs.converged,
        detail={
            "residuals": tuple(pairs.residuals.tolist()),
            "error_bounds": tuple(pairs.error_bounds.tolist()),
            "spectral_norm": pairs.scale,
            "which": which,
            "matrix": matrix,
            **operator.notes(),
        },
    )
