"""Proofs that a system of margins has no solution at all, not even a tiny one.

A combination ``y >= 0`` with ``|sum_k y_k a_k|`` of size 1e-15 rules out every classifier
below a norm of 1e15, but two points that differ in their last bit can be separated by a
larger one. Two checks close that gap for the given floating-point points:

* **Perturbation.** Let the columns of M be the rows a_k, as D independent equations. If M
  has full row rank with smallest singular value s, then ``M (y + z) = 0`` for some
  ``|z| <= |M y| / s``. If every y_k is larger, ``y + z > 0`` is an exact certificate. D is
  counted from the classes and columns that occur, so this applies to points in general
  position, which is what networks give.
* **Rational arithmetic.** Otherwise (duplicates, points on a common ray) the null space
  of M is computed exactly: floating-point numbers are rationals. It must hold a vector
  with positive entries.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import qr
from scipy.linalg.lapack import dtrtri

from invariance.weakness.separability._active_set import Combination

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_EPSILON = float(np.finfo(np.float64).eps)
#: Multipliers below this fraction of the largest may be round-off: try without them.
_NEGLIGIBLE = (1e-10, 1e-6, 1e-3)
#: Most rows that rational elimination takes on without python-flint.
_RATIONAL_ROWS = 40


def is_exactly_infeasible(
    combination: Combination, labels: Indices, points: Array, *, rational_limit: int | None = None
) -> bool:
    """Prove that no classifier gives the combination's points their labels strictly.

    Shapes: ``labels (k,)``, ``points (m, p)``.
    """
    weights = combination.weights
    if not len(weights) or not np.isfinite(weights).all():
        return False
    scaled = weights * np.linalg.norm(points[combination.points], axis=1)
    tried = set()
    for negligible in _NEGLIGIBLE:
        keep = np.flatnonzero(scaled >= negligible * scaled.max(initial=0.0))
        if len(keep) in tried:
            continue
        tried.add(len(keep))
        entry = Combination(combination.points[keep], combination.others[keep], weights[keep])
        if _is_proof(entry, labels[keep], points, rational_limit):
            return True
    return False


def _is_proof(
    entry: Combination, labels: Indices, points: Array, rational_limit: int | None
) -> bool:
    rows = points[entry.points]
    for by_column in (False, True):  # count carefully only where that can matter
        matrix = _equations(rows, labels, entry.others, by_column=by_column)
        if matrix.shape[0] < matrix.shape[1] and _survives_perturbation(matrix, entry.weights):
            return True
    if rational_limit is not None and matrix.shape[1] > rational_limit:
        return False
    return _has_positive_null_vector(matrix)


def _equations(points: Array, labels: Indices, others: Indices, *, by_column: bool) -> Array:
    """Return the combination's equations without those that depend on others by structure.

    The rows form a graph on the classes, an edge from label to other. In each connected
    component the equations of the classes sum to zero, so one class is left out. With
    ``by_column`` every column has a graph of its own, of the rows that are nonzero there.
    """
    links = list(zip(labels.tolist(), others.tolist(), strict=True))
    classes = np.unique(np.append(labels, others))
    incidence = (labels == classes[:, None]).astype(float) - (others == classes[:, None])
    whole = (points != 0.0).all(axis=0) if by_column else (points != 0.0).any(axis=0)
    kept = _spanning(links, classes)
    blocks = [np.einsum("ck,kf->cfk", incidence[kept], points[:, whole])]
    for column in np.flatnonzero(~whole & by_column):
        edges = [link for link, value in zip(links, points[:, column], strict=True) if value != 0.0]
        kept = _spanning(edges, classes)
        blocks.append((incidence[kept] * points[:, column])[:, None])
    return np.concatenate([block.reshape(-1, len(labels)) for block in blocks])


def _spanning(links: list[tuple[int, int]], classes: Indices) -> list[int]:
    """Positions in ``classes`` of the linked ones, without one of each component."""
    parent: dict[int, int] = {}

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    for label, other in links:
        parent.setdefault(label, label)
        parent.setdefault(other, other)
        parent[root(label)] = root(other)
    return [i for i, node in enumerate(classes.tolist()) if parent.get(node, node) != node]


def _survives_perturbation(matrix: Array, weights: Array) -> bool:
    # Powers of two bring each column near unit length without rounding.
    lengths = np.linalg.norm(matrix, axis=0)
    if not (lengths > 0.0).all():
        return False
    exponent = np.frexp(lengths)[1]
    scaled = np.ldexp(matrix, -exponent)
    weights = np.ldexp(weights, exponent)
    size = sum(matrix.shape)
    factor, upper = qr(scaled.T, mode="economic", check_finite=False)  # M^T = Q R
    inverse, info = dtrtri(upper)
    if info:
        return False
    # |M y| >= |y| s(Q) s(R) - |M^T - Q R| |y|, with s(Q) >= 1 - |Q^T Q - I|, and the same for
    # s(R) = 1 / |R^-1| from a computed inverse.
    unit, largest = np.eye(len(upper)), float(np.linalg.norm(scaled))
    defect = np.linalg.norm(upper @ inverse - unit) + np.linalg.norm(factor.T @ factor - unit)
    error = np.linalg.norm(scaled.T - factor @ upper) + 8.0 * size * _EPSILON * largest
    smallest = float((1.0 - 1.01 * defect) / np.linalg.norm(inverse) - error)
    if not smallest > 0.0:
        return False
    weights = weights / np.linalg.norm(weights)
    weights = weights - factor @ (inverse.T @ (scaled @ weights))  # closer to M y = 0
    if weights.min() <= 0.0:
        return False
    rounding = 2.0 * size * _EPSILON * (np.abs(scaled) @ weights)
    residual = float(np.linalg.norm(np.abs(scaled @ weights) + rounding))
    return float(weights.min()) > 1.01 * residual / smallest


def _has_positive_null_vector(matrix: Array) -> bool:
    """Whether the exact null space is one line that a positive vector spans."""
    columns = matrix.shape[1]
    try:
        import flint
    except ImportError:
        if columns > _RATIONAL_ROWS:
            return False
        reduced: list[list[Any]]
        reduced, rank = _reduce([[Fraction(value) for value in row] for row in matrix.tolist()])
    else:
        entries = [
            flint.fmpq(*float(value).as_integer_ratio()) for value in matrix.ravel().tolist()
        ]
        table, rank = flint.fmpq_mat(matrix.shape[0], columns, entries).rref()
        reduced = table.tolist()
    if rank != columns - 1:
        return False
    return _spans_positive_line(reduced, rank, columns)


def _spans_positive_line(reduced: list[list[Any]], rank: int, columns: int) -> bool:
    pivots = [next(j for j in range(columns) if reduced[i][j] != 0) for i in range(rank)]
    (free,) = set(range(columns)) - set(pivots)
    return all(-reduced[i][free] > 0 for i in range(rank))


def _reduce(rows: list[list[Fraction]]) -> tuple[list[list[Fraction]], int]:
    """Reduced row echelon form by Gauss-Jordan elimination, and the rank."""
    rank = 0
    columns = len(rows[0]) if rows else 0
    for column in range(columns):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column] != 0), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        lead = rows[rank][column]
        rows[rank] = [value / lead for value in rows[rank]]
        for i, row in enumerate(rows):
            if i != rank and row[column] != 0:
                factor = row[column]
                rows[i] = [a - factor * b for a, b in zip(row, rows[rank], strict=True)]
        rank += 1
    return rows, rank
