"""Certified extreme eigenvalues of curvature matrices.

Whatever the solver says, the residual ``|A v - lambda v|`` is computed again from the
returned vectors. For a symmetric A some eigenvalue lies within that residual of lambda; with
a gap to the next Ritz value the error is at most ``residual^2 / gap`` (Kato and Temple).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse.linalg as sparse
import torch
from torch import Tensor, nn

from invariance.core.errors import MeasureError, unknown_name
from invariance.core.estimate import Estimate
from invariance.curvature.batches import Data
from invariance.curvature.lanczos import Lanczos
from invariance.curvature.losses import LossLike
from invariance.curvature.operators import CurvatureOperator, MatrixName, build_operator

Which: TypeAlias = Literal["largest", "smallest", "both"]
Criterion: TypeAlias = Literal["residual", "value"]
Solver: TypeAlias = Literal["auto", "dense", "lanczos", "arpack", "lobpcg"]

_WHICH = ("largest", "smallest", "both")
_SOLVERS = ("auto", "dense", "lanczos", "arpack", "lobpcg")

#: Matrices up to this size are formed and decomposed: every eigenvalue, no start vector.
DENSE_DIM = 256

#: From this many rows on, every 16th row finds the start vector.
_THIN_FROM, _THIN = 1024, 16

#: Length of the random part of a start vector, relative to the rest.
_RANDOM_SHARE = 0.1

#: Bytes of Lanczos vectors to keep.
_BASIS_BYTES = 1 << 30


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


def eigenpairs(
    operator: CurvatureOperator,
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
        certify_in: Recompute values and residuals in this precision. ``torch.float64`` frees
            float32 eigenvalues of their round-off, for the price of one product in it.

    Returns:
        The pairs, with recomputed residuals.

    Raises:
        MeasureError: A k or tolerance out of range.
        UsageError: An unknown option.
    """
    dim = operator.shape[0]
    if which not in _WHICH:
        raise unknown_name("which", which, _WHICH)
    if solver not in _SOLVERS:
        raise unknown_name("solver", solver, _SOLVERS)
    if criterion not in ("residual", "value"):
        raise unknown_name("criterion", criterion, ("residual", "value"))
    ends = 2 if which == "both" else 1
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
        found = _dense(operator, high, low, asked)
    elif solver in ("arpack", "lobpcg"):
        found = _scipy(operator, high, low, asked, criterion, solver, limit, seed)
    else:
        again = certify_in is not None and certify_in != operator.dtype
        found = _lanczos(operator, high, low, asked, criterion, limit, seed, trust=again)
    if certify_in is None or certify_in == operator.dtype:
        return found
    return _certify_again(operator.in_dtype(certify_in), found, asked, criterion)


def _certify_again(
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
    bounds = _bounds(residuals, gaps, criterion)
    return dataclasses.replace(
        found,
        values=values.cpu().double(),
        residuals=residuals,
        error_bounds=_bounds(residuals, gaps, "value"),
        products=found.products + operator.products,
        converged=bool((bounds <= tolerance * found.scale).all()) or found.scale == 0,
    )


def _dense(operator: CurvatureOperator, high: int, low: int, tolerance: float) -> Eigenpairs:
    dense = operator.to_dense()
    values, vectors = torch.linalg.eigh(dense.double() if dense.device.type != "mps" else dense)
    values, rows = values.flip(0), vectors.mT.flip(0)
    dim = dense.shape[0]
    index = torch.tensor([*range(high), *range(dim - low, dim)], dtype=torch.long)
    picked, vectors = values[index], rows[index].to(dense.dtype)
    residuals = _residuals(operator, picked, vectors)
    scale = float(values.abs().max())
    return Eigenpairs(
        picked.cpu().double(),
        vectors,
        residuals,
        residuals,
        scale,
        dim + len(index),
        bool((residuals <= _floor(tolerance, operator.dtype) * scale).all()) or scale == 0,
        "dense",
    )


def _floor(tolerance: float, dtype: torch.dtype) -> float:
    # A dense decomposition cannot beat round-off, whatever was asked.
    return max(tolerance, 1e3 * torch.finfo(dtype).eps)


def _lanczos(
    operator: CurvatureOperator,
    high: int,
    low: int,
    tolerance: float,
    criterion: Criterion,
    limit: int,
    seed: int,
    *,
    trust: bool,
) -> Eigenpairs:
    before = operator.products
    capacity = max(32, _BASIS_BYTES // (operator.shape[0] * operator.dtype.itemsize))
    found = _converge(operator, high, low, tolerance, criterion, limit, seed, capacity, None, trust)
    if high + low > 1 and found.converged:
        found = _search_copies(operator, found, high, low, tolerance, criterion, limit, seed)
    return dataclasses.replace(found, products=operator.products - before)


def _converge(
    operator: CurvatureOperator,
    high: int,
    low: int,
    tolerance: float,
    criterion: Criterion,
    limit: int,
    seed: int,
    capacity: int,
    deflate: Tensor | None,
    trust: bool = False,
) -> Eigenpairs:
    """Iterate until the recomputed residuals meet the tolerance, or the budget is spent."""
    start = _start(operator, high, low, seed, deflate)
    process = Lanczos(
        operator.rows,
        start,
        n_largest=high,
        n_smallest=low,
        capacity=capacity,
        seed=seed,
        deflate=deflate,
    )
    strictness = 1.0
    free = operator.shape[0] - (0 if deflate is None else deflate.shape[0])
    wanted = min(high + low, free)
    while True:
        grown = process.steps < limit and process.step()
        if process.size < wanted and grown:
            continue
        _, estimates, gaps, scale = process.estimates()
        bounds = _bounds(estimates, gaps, criterion)
        ready = bool((bounds <= strictness * tolerance * scale).all()) and (
            process.size > wanted or process.exhausted or process.size >= free
        )
        if ready or not grown:
            pairs = process.pairs()
            residuals = (
                pairs.estimates  # the caller certifies, in another precision
                if trust
                else _residuals(operator, pairs.values, pairs.vectors, deflate)
            )
            bounds = _bounds(residuals, pairs.gaps, criterion)
            met = bool((bounds <= tolerance * pairs.scale).all())
            # Round-off keeps the true residual above the recurrence's estimate: press on,
            # but not below what the precision can hold.
            strictness *= 0.1
            if met or not grown or strictness * tolerance < torch.finfo(operator.dtype).eps:
                return Eigenpairs(
                    pairs.values,
                    pairs.vectors,
                    residuals,
                    _bounds(residuals, pairs.gaps, "value"),
                    pairs.scale,
                    operator.products,
                    met,
                    "Lanczos",
                )


def _start(
    operator: CurvatureOperator, high: int, low: int, seed: int, deflate: Tensor | None
) -> Tensor:
    """Return a start vector: random, or close to what a share of the rows already shows.

    The extreme eigenvectors of a sixteenth of the rows, at little cost, lie at a modest angle
    to those of all rows, where a random vector starts almost orthogonal to them. A random
    part stays, so that no eigenvector is out of reach.
    """
    random = operator.random_vectors(1, seed=seed, stream=f"start {deflate is not None}")[0]
    if deflate is not None or operator.objective.batches.rows < _THIN_FROM:
        return random
    sample = operator.thinned(_THIN)
    if sample is None:
        return random
    process = Lanczos(sample.rows, random, n_largest=high, n_smallest=low, capacity=64, seed=seed)
    for _ in range(10 + 2 * (high + low)):
        if not process.step():
            break
        _, estimates, _, scale = process.estimates()
        if process.size > high + low and float(estimates.max()) <= 0.2 * scale:
            break
    found = process.pairs().vectors.sum(0)
    start: Tensor = found / found.norm() + _RANDOM_SHARE * random / random.norm()
    return start


def _search_copies(
    operator: CurvatureOperator,
    found: Eigenpairs,
    high: int,
    low: int,
    tolerance: float,
    criterion: Criterion,
    limit: int,
    seed: int,
) -> Eigenpairs:
    """Look for further copies of multiple eigenvalues, which one start vector cannot see.

    The matrix is deflated by the pairs found; an extreme eigenvalue of the rest that beats
    the worst pair found is put in its place, until none does.
    """
    dim = operator.shape[0]
    capacity = max(32, _BASIS_BYTES // (dim * operator.dtype.itemsize))
    for attempt in range(high + low):
        if found.vectors.shape[0] >= dim:
            break
        basis = torch.linalg.qr(found.vectors.mT)[0].mT.contiguous()
        rest = _converge(
            operator,
            min(high, 1),
            min(low, 1),
            max(tolerance, 1e-2),
            "residual",
            limit,
            seed + 1 + attempt,
            capacity,
            basis,
        )
        slack = rest.residuals.max().item() + tolerance * found.scale
        beats_high = high and rest.values[0] > found.values[high - 1] + slack
        beats_low = low and rest.values[-1] < found.values[high] - slack
        if not beats_high and not beats_low:
            break
        rest = _converge(
            operator,
            min(high, 1),
            min(low, 1),
            tolerance,
            criterion,
            limit,
            seed + 1 + attempt,
            capacity,
            basis,
        )
        found = _merge(found, rest, high, low)
    return found


def _merge(one: Eigenpairs, two: Eigenpairs, high: int, low: int) -> Eigenpairs:
    values = torch.cat([one.values, two.values])
    order = values.argsort(descending=True)
    index = torch.cat([order[:high], order[len(order) - low :]])
    return Eigenpairs(
        values[index],
        torch.cat([one.vectors, two.vectors])[index],
        torch.cat([one.residuals, two.residuals])[index],
        # Copies have no gap: only the residual bounds their error.
        torch.cat([one.residuals, two.residuals])[index],
        max(one.scale, two.scale),
        one.products + two.products,
        one.converged and two.converged,
        one.solver,
    )


def _scipy(
    operator: CurvatureOperator,
    high: int,
    low: int,
    tolerance: float,
    criterion: Criterion,
    solver: Solver,
    limit: int,
    seed: int,
) -> Eigenpairs:
    """Solve each end with SciPy's ARPACK or LOBPCG, then certify."""
    before, dim = operator.products, operator.shape[0]
    matrix = operator.to_scipy()
    asked = tolerance**0.5 if criterion == "value" else tolerance
    values: list[float] = []
    vectors: list[np.ndarray[Any, Any]] = []
    for count, largest in ((high, True), (low, False)):
        if not count:
            continue
        start = operator.random_vectors(count, seed=seed, stream="start").cpu().numpy()
        if solver == "arpack":
            if count >= dim:
                raise MeasureError(f"ARPACK finds fewer than {dim} pairs. Use solver='dense'.")
            try:
                w, v = sparse.eigsh(
                    matrix,
                    k=count,
                    which="LA" if largest else "SA",
                    v0=start[0],
                    tol=asked,
                    maxiter=limit,
                )
            except sparse.ArpackNoConvergence as error:
                w, v = error.eigenvalues, error.eigenvectors
                if len(w) < count:
                    raise MeasureError(
                        f"ARPACK found {len(w)} of {count} pairs in {limit} restarts. "
                        "Raise max_products or the tolerance, or use solver='lanczos'."
                    ) from error
        else:
            w, v = _lobpcg(matrix, start.T, largest, asked, limit)
        order = np.argsort(w)[::-1]
        values += [float(entry) for entry in w[order]]
        vectors += list(v.T[order])
    rows = torch.as_tensor(np.stack(vectors), dtype=operator.dtype, device=operator.device)
    rows = rows / rows.norm(dim=1, keepdim=True)
    picked = torch.tensor(values, dtype=torch.float64)
    residuals = _residuals(operator, picked, rows)
    scale = float(picked.abs().max())
    return Eigenpairs(
        picked,
        rows,
        residuals,
        residuals,
        scale,
        operator.products - before,
        bool((residuals <= asked * scale).all()),
        "ARPACK" if solver == "arpack" else "LOBPCG",
    )


def _lobpcg(
    matrix: Any,
    start: npt.NDArray[np.float64],
    largest: bool,
    tolerance: float,
    limit: int,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    import warnings

    # LOBPCG's tolerance is absolute: a first rough pass finds the scale.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when it stops early; the residual decides
        rough: Any = sparse.lobpcg(matrix, start, largest=largest, tol=None, maxiter=5)
        scale = float(np.abs(rough[0]).max()) or 1.0
        found: Any = sparse.lobpcg(
            matrix, rough[1], largest=largest, tol=tolerance * scale, maxiter=limit
        )
    return np.asarray(found[0]), np.asarray(found[1])


def _bounds(residuals: Tensor, gaps: Tensor, criterion: Criterion) -> Tensor:
    if criterion == "residual":
        return residuals
    return torch.where(gaps > 0, torch.minimum(residuals, residuals**2 / gaps), residuals)


def _residuals(
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


def hessian_eigenvalues(
    model: nn.Module | CurvatureOperator,
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
        loss: The loss; see :class:`~invariance.curvature.operators.CurvatureOperator`.
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
            f"{which} of the {operator.label}: {pairs.solver}, residual {worst:.2g} recomputed"
            f"{'' if certify_in is None else f' in {certify_in}'}"
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
            **operator.objective.notes(),
        },
    )
