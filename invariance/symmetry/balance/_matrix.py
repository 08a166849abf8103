"""Balance a non-negative matrix by a diagonal similarity, to float64 precision.

Given ``M >= 0`` find ``u`` with ``min_u sum_ab M_ab exp(-2 (u_a - u_b))`` (Osborne, 1960,
"On pre-conditioning of matrices", J. ACM 7, 338-345). At the minimum every node's row sum
equals its column sum. Monotone parallel Osborne steps come first, Newton's method after.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.sparse.csgraph import connected_components

Vector = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

#: Up to this many nodes a Newton step is solved by Cholesky, above it by CG.
_DENSE = 1500


def scaled_matrix(matrix: sparse.csr_matrix, scales: Vector) -> sparse.csr_matrix:
    """Return ``M[a, b] exp(-2 (u_a - u_b))``."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    data = matrix.data * np.exp(-2.0 * (scales[rows] - scales[matrix.indices]))
    return sparse.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _sums(matrix: sparse.csr_matrix) -> tuple[Vector, Vector]:
    """Return the row and the column sums."""
    out: Vector = np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()
    into: Vector = np.asarray(matrix.sum(axis=0), dtype=np.float64).ravel()
    return out, into


def _imbalance(out: Vector, into: Vector) -> float:
    """Return the largest ``|out - into| / (out + into)`` over nodes with any edge."""
    total = out + into
    live = total > 0
    return float(np.max(np.abs(out - into)[live] / total[live], initial=0.0))


def balance(
    matrix: sparse.csr_matrix, component: Index, tolerance: float, max_iterations: int
) -> tuple[Vector, float, int]:
    """Balance a matrix whose components are strongly connected; return scales and residual."""
    edges = matrix.tocoo()
    moving = edges.row != edges.col  # a self-loop does not feel its node's scale
    matrix = sparse.csr_matrix(
        (edges.data[moving], (edges.row[moving], edges.col[moving])), shape=matrix.shape
    )
    scales = _osborne(matrix, np.zeros(matrix.shape[0]))
    scaled = scaled_matrix(matrix, scales)
    out, into = _sums(scaled)
    residual, steps = _imbalance(out, into), 0
    while residual > tolerance and steps < max_iterations:
        laplacian = sparse.diags(out + into) - scaled - scaled.T
        # Gradient -2 (out - into), Hessian 4 L: the Newton step is (out - into) / 2 through L.
        step = _solve_laplacian(laplacian.tocsr(), 0.5 * (out - into), component)
        longest = float(np.abs(step).max())
        # Within |step| <= 1 a sum of exponentials stays close to its quadratic model, so the
        # clipped step always has a useful length; a line search makes descent certain.
        length = min(1.0, 1.0 / longest) if longest > 0 else 0.0
        here = float(out.sum())
        while length > 1e-6:
            trial = scaled_matrix(matrix, scales + length * step)
            if float(trial.sum()) <= here * (1 + 1e-14):
                break
            length *= 0.5
        steps += 1
        candidate = scales + length * step
        trial = scaled_matrix(matrix, candidate)
        out_new, into_new = _sums(trial)
        new = _imbalance(out_new, into_new)
        stalled = length == 0.0 or (longest < 1e-7 and new >= 0.5 * residual)
        if new < residual or not stalled:
            scales, scaled, out, into, residual = candidate, trial, out_new, into_new, new
        if stalled:
            break
    return scales, residual, steps


def _osborne(matrix: sparse.csr_matrix, scales: Vector, sweeps: int = 60) -> Vector:
    """Take monotone parallel Osborne steps.

    The best single change of node a is ``log(out_a / into_a) / 4``. An edge feels two nodes,
    so by ``exp((x + y) / 2) <= (exp(x) + exp(y)) / 2`` taking half of every node's best
    change at once never increases the sum.
    """
    for _ in range(sweeps):
        out, into = _sums(scaled_matrix(matrix, scales))
        live = (out > 0) & (into > 0)
        change = np.zeros_like(scales)
        change[live] = 0.125 * (np.log(out[live]) - np.log(into[live]))
        scales = scales + change
        if float(np.abs(change).max(initial=0.0)) < 1e-2:
            break
    return scales


def _solve_laplacian(laplacian: sparse.csr_matrix, target: Vector, component: Index) -> Vector:
    """Solve ``L x = target``, with x zero at the first node of each component."""
    _, pins = np.unique(component, return_index=True)
    free = np.setdiff1d(np.arange(laplacian.shape[0]), pins)
    solution = np.zeros_like(target)
    if free.size == 0:
        return solution
    block = laplacian[free][:, free].tocsr()
    scale = 1.0 / np.sqrt(block.diagonal())
    block = sparse.diags(scale) @ block @ sparse.diags(scale)
    goal = target[free] * scale
    if free.size <= _DENSE:
        try:
            solution[free] = scale * cho_solve(cho_factor(block.toarray()), goal)
            return solution
        except LinAlgError:
            pass  # numerically singular: a bottleneck of relative weight below 1e-16
    solution[free] = scale * _conjugate_gradients(block.tocsr(), goal)
    return solution


def _conjugate_gradients(matrix: sparse.csr_matrix, target: Vector) -> Vector:
    """Solve a positive definite system of unit diagonal to relative residual 1e-10."""
    answer, _ = sparse.linalg.cg(matrix, target, rtol=1e-10, atol=0.0, maxiter=2000)
    return np.asarray(answer, dtype=np.float64)


def settle(scales: Vector, component: Index, rows: Index, columns: Index, data: Vector) -> Vector:
    """Shift whole components so that the log-entries between them are least in squares."""
    source, sink = component[rows], component[columns]
    size = int(component.max()) + 1
    logs = 0.5 * np.log(data) - (scales[rows] - scales[columns])
    ones = np.ones(source.size)
    adjacency = sparse.csr_matrix((ones, (source, sink)), shape=(size, size))
    adjacency = adjacency + adjacency.T
    degree = np.asarray(adjacency.sum(axis=1)).ravel()
    target = np.asarray(
        np.bincount(source, logs, size) - np.bincount(sink, logs, size), dtype=np.float64
    )
    _, found = connected_components(adjacency, directed=False)
    islands = found.astype(np.int64)
    shift = _solve_laplacian((sparse.diags(degree) - adjacency).tocsr(), target, islands)
    return scales + shift[component]


def strong_components(matrix: sparse.csr_matrix) -> Index:
    """Return the number of each node's strongly connected component."""
    _, component = connected_components(matrix, directed=True, connection="strong")
    return component.astype(np.int64)


def first_of_island(matrix: sparse.csr_matrix) -> Index:
    """Return, for each node, the first node that it hangs together with by any path."""
    _, island = connected_components(matrix, directed=False)
    _, first = np.unique(island, return_index=True)
    return first[island].astype(np.int64)
