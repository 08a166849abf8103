"""Minimise a sum of exponentials of integer combinations: balancing beyond differences.

Most scalings multiply an entry by one unit's scale and divide it by another's, which is
matrix balancing (:mod:`invariance.symmetry.balance._matrix`). Attention is not of that kind:
a query's weights take ``u_q - u_n``, a key's ``-u_q - u_n``. Here an entry takes any integer
combination, ``f(v) = sum_i h_i exp((D v)_i)``: still convex, still minimised by Newton's method.

Where no minimum exists, the entries that some direction drives to zero without raising any
other are found by one linear program and dropped; the scales that are free then make the
logarithms of the dropped entries least in squares, as for matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.linalg import null_space
from scipy.optimize import linprog

from invariance.core._errors import MeasureError
from invariance.symmetry.balance._matrix import Vector

#: Up to this many scales, Newton steps and null spaces are dense.
_DENSE = 600


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where a sum of exponentials is least.

    Attributes:
        scales: ``(n,)`` the minimiser.
        value: The infimum.
        objective: The sum at ``scales``, which includes dropped entries.
        residual: Largest relative imbalance of a scale's two sides.
        iterations: Newton steps.
        attained: Whether no entry had to be dropped.
    """

    scales: Vector
    value: float
    objective: float
    residual: float
    iterations: int
    attained: bool


def minimise_exponentials(
    design: sparse.csr_matrix, weights: Vector, tolerance: float, max_iterations: int
) -> Minimum:
    """Minimise ``sum_i weights_i exp((design @ v)_i)``.

    Shapes: ``design (m, n)``, ``weights (m,)``.
    """
    design, weights = _merged(design, weights)
    scales, residual, steps = _newton(design, weights, tolerance, max_iterations)
    if residual <= tolerance:
        value = float(_terms(design, weights, scales).sum())
        return Minimum(scales, value, value, residual, steps, True)
    vanishing = _vanishing(design)
    if not vanishing.any():
        value = float(_terms(design, weights, scales).sum())
        return Minimum(scales, value, value, residual, steps, True)
    if design.shape[1] > 4 * _DENSE:
        raise MeasureError(
            f"{int(vanishing.sum())} entries can be scaled to zero in a problem of "
            f"{design.shape[1]} scales, more than can be treated. Remove units whose incoming "
            "or outgoing weights are all zero first (reduce_width)."
        )
    kept, dropped = design[~vanishing], design[vanishing]
    scales, residual, steps = _newton(kept, weights[~vanishing], tolerance, max_iterations)
    free = null_space(kept.toarray()) if kept.shape[0] else np.eye(design.shape[1])
    logs = np.log(weights[vanishing]) + dropped @ scales
    shift, *_ = np.linalg.lstsq(dropped @ free, -logs, rcond=None)
    scales = scales + free @ shift
    value = float(_terms(kept, weights[~vanishing], scales).sum())
    objective = float(_terms(design, weights, scales).sum())
    return Minimum(scales, value, objective, residual, steps, False)


def _merged(design: sparse.csr_matrix, weights: Vector) -> tuple[sparse.csr_matrix, Vector]:
    """Add up entries with equal coefficients, which are one term of the sum."""
    # Rows are compared by a random integer hash: 64 bits, so chance collisions do not occur.
    random = np.random.default_rng(0).integers(1, 2**62, size=design.shape[1], dtype=np.int64)
    keys = design.astype(np.int64) @ random
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    sums = np.bincount(group.reshape(-1), weights, first.size)
    return design[first], np.asarray(sums, dtype=np.float64)


def _terms(design: sparse.csr_matrix, weights: Vector, scales: Vector) -> Vector:
    result: Vector = weights * np.exp(design @ scales)
    return result


def _newton(
    design: sparse.csr_matrix, weights: Vector, tolerance: float, max_iterations: int
) -> tuple[Vector, float, int]:
    """Balance every scale's positive against its negative side."""
    up = design.maximum(0).T.tocsr()
    down = (-design).maximum(0).T.tocsr()
    scales = np.zeros(design.shape[1])
    # Parallel steps: the best change of one scale alone (if its coefficients are +-1), divided
    # by how many scales an entry feels, never raises the sum (Jensen).
    felt = max(1.0, float(np.asarray(abs(design).sum(axis=1)).max(initial=0.0)))
    unit = float(abs(design).max()) <= 1 if design.nnz else False
    for _ in range(60 if unit else 0):
        terms = _terms(design, weights, scales)
        rise, fall = up @ terms, down @ terms
        live = (rise > 0) & (fall > 0)
        change = np.zeros_like(scales)
        change[live] = 0.5 * (np.log(fall[live]) - np.log(rise[live])) / felt
        scales = scales + change
        if float(np.abs(change).max(initial=0.0)) < 1e-2:
            break
    residual, steps = np.inf, 0
    for steps in range(max_iterations + 1):
        terms = _terms(design, weights, scales)
        rise, fall = up @ terms, down @ terms
        live = rise + fall > 0
        new = float(np.max(np.abs(rise - fall)[live] / (rise + fall)[live], initial=0.0))
        if new <= tolerance or steps == max_iterations or float(np.abs(scales).max(initial=0)) > 90:
            return scales, new, steps
        step = _newton_step(design, terms, fall - rise)
        reach = float(np.abs(design @ step).max(initial=0.0))
        if reach < 1e-9 and new >= 0.5 * residual:
            return scales, new, steps  # round-off
        residual = new
        length = min(1.0, 2.0 / reach) if reach > 0 else 0.0
        here = float(terms.sum())
        while length > 1e-6:
            if float(_terms(design, weights, scales + length * step).sum()) <= here * (1 + 1e-14):
                break
            length *= 0.5
        scales = scales + length * step
    return scales, residual, steps


def _newton_step(design: sparse.csr_matrix, terms: Vector, descent: Vector) -> Vector:
    """Solve ``D^T diag(terms) D x = descent``; flat directions stay at rest."""
    hessian = (design.T @ sparse.diags(terms) @ design).tocsr()
    diagonal = hessian.diagonal()
    scale = np.where(diagonal > 0, 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0)), 0.0)
    scaled = (sparse.diags(scale) @ hessian @ sparse.diags(scale)).tocsr()
    if design.shape[1] <= _DENSE:
        answer, *_ = np.linalg.lstsq(scaled.toarray(), scale * descent, rcond=1e-13)
    else:
        answer, _ = sparse.linalg.cg(scaled, scale * descent, rtol=1e-11, atol=0.0, maxiter=2000)
    step: Vector = scale * np.asarray(answer, dtype=np.float64)
    return step


def _vanishing(design: sparse.csr_matrix) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Find the entries that some direction lowers for ever while it raises none."""
    rows, columns = design.shape
    # D w + s <= 0 with 0 <= s <= 1 (SciPy's stubs know dense constraints only).
    joint: Any = sparse.csr_matrix(sparse.hstack([design, sparse.identity(rows)]))
    cost = np.concatenate([np.zeros(columns), -np.ones(rows)])
    bounds: Any = [(None, None)] * columns + [(0.0, 1.0)] * rows
    found = linprog(cost, A_ub=joint, b_ub=np.zeros(rows), bounds=bounds, method="highs")
    if found.status != 0:
        raise MeasureError(f"The linear program for unattained minima failed: {found.message}")
    solution = np.asarray(found.x, dtype=np.float64)
    lowered: np.ndarray[tuple[int], np.dtype[np.bool_]] = solution[columns:] > 0.5
    return lowered
