"""Eigenpairs by decomposing the formed matrix, or by SciPy's ARPACK and LOBPCG."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse.linalg as sparse
import torch

from invariance.core._errors import MeasureError
from invariance.curvature.products._matrix import SymmetricOperator
from invariance.curvature.spectrum._certificates import Criterion, Eigenpairs, recompute_residuals


def solve_dense(operator: SymmetricOperator, high: int, low: int, tolerance: float) -> Eigenpairs:
    """Form the matrix and decompose it."""
    dense = operator.to_dense()
    values, vectors = torch.linalg.eigh(dense.double() if dense.device.type != "mps" else dense)
    values, rows = values.flip(0), vectors.mT.flip(0)
    dim = dense.shape[0]
    index = torch.tensor([*range(high), *range(dim - low, dim)], dtype=torch.long)
    picked, vectors = values[index], rows[index].to(dense.dtype)
    residuals = recompute_residuals(operator, picked, vectors)
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


def solve_scipy(
    operator: SymmetricOperator,
    high: int,
    low: int,
    tolerance: float,
    criterion: Criterion,
    solver: str,
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
    residuals = recompute_residuals(operator, picked, rows)
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
    # LOBPCG's tolerance is absolute: a first rough pass finds the scale.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when it stops early; the residual decides
        rough: Any = sparse.lobpcg(matrix, start, largest=largest, tol=None, maxiter=5)
        scale = float(np.abs(rough[0]).max()) or 1.0
        found: Any = sparse.lobpcg(
            matrix, rough[1], largest=largest, tol=tolerance * scale, maxiter=limit
        )
    return np.asarray(found[0]), np.asarray(found[1])
