"""Compiled inner loops of the active-set method; the readable form is ``active_set``.

Every loop runs along contiguous memory, so that the compiler vectorises it, and no loop
allocates. The interpreter lock is released: networks and blocks of probes run on threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from invariance.core._compiled import compiled

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_BIG = 1e300


class Problem(NamedTuple):
    """Labelled points, and room for one pass over them.

    Attributes:
        rows: ``(m, r)`` points.
        columns: ``(r, m)`` the same, transposed.
        labels: ``(m,)`` their labels.
        scores: ``(K, m)`` scratch.
        own: ``(m,)`` scratch.
        rival: ``(m,)`` scratch.
    """

    rows: Array
    columns: Array
    labels: Indices
    scores: Array
    own: Array
    rival: Array


class Factors(NamedTuple):
    """The active rows, their multipliers, and an orthonormal basis of their span.

    Attributes:
        basis: ``(room, K r)``, one basis vector a row.
        factor: ``(room, room)``; row k holds column k of the triangular factor.
        active: ``(room, 2)`` point and other class of each active row.
        multipliers: ``(room,)``.
        along: ``(room,)`` a new row's coefficients in the basis.
        weights: ``(room,)`` a new row as a combination of the active rows.
        outside: ``(K r,)`` a new row's part outside their span.
    """

    basis: Array
    factor: Array
    active: Indices
    multipliers: Array
    along: Array
    weights: Array
    outside: Array


@compiled
def score(columns: Array, separator: Array, scores: Array) -> None:
    """Set ``scores[c, i] = separator[c] . columns[:, i]``."""
    width, count = columns.shape
    for c in range(separator.shape[0]):
        into = scores[c]
        into[:] = 0.0
        f = 0
        while f + 2 < width:  # three columns at a time: fewer passes over ``into``
            u, v, w = separator[c, f], separator[c, f + 1], separator[c, f + 2]
            x, y, z = columns[f], columns[f + 1], columns[f + 2]
            for i in range(count):
                into[i] += u * x[i] + v * y[i] + w * z[i]
            f += 3
        while f < width:
            u, x = separator[c, f], columns[f]
            for i in range(count):
                into[i] += u * x[i]
            f += 1


@compiled
def worst_margin(problem: Problem, separator: Array) -> tuple[float, int, int]:
    """Find the smallest margin, its point, and the class that its label is closest to."""
    scores, own, rival, labels = problem.scores, problem.own, problem.rival, problem.labels
    score(problem.columns, separator, scores)
    count = labels.size
    for i in range(count):
        own[i] = scores[labels[i], i]
        scores[labels[i], i] = -_BIG
    rival[:] = scores[0]
    for c in range(1, scores.shape[0]):
        row = scores[c]
        for i in range(count):
            rival[i] = row[i] if row[i] > rival[i] else rival[i]
    least, where = _BIG, 0
    for i in range(count):
        if own[i] - rival[i] < least:
            least, where = own[i] - rival[i], i
    other = 0
    for c in range(1, scores.shape[0]):
        if scores[c, where] > scores[other, where]:
            other = c
    return least, where, other


@compiled
def split(factors: Factors, size: int, x: Array, plus: int, minus: int) -> float:
    """Split the row with ``x`` at ``plus`` and ``-x`` at ``minus`` by the active rows' span.

    Returns:
        The square of the part outside; that part and the coefficients are in ``factors``.
    """
    basis, along, outside = factors.basis, factors.along, factors.outside
    total, width = outside.size, x.size
    outside[:] = 0.0
    square = 0.0
    for f in range(width):
        outside[plus + f] = x[f]
        outside[minus + f] = -x[f]
        square += 2.0 * x[f] * x[f]
    for k in range(size):
        row = basis[k]
        inner = 0.0
        for f in range(width):
            inner += (row[plus + f] - row[minus + f]) * x[f]
        along[k] = inner
        for j in range(total):
            outside[j] -= inner * row[j]
    rest = _square(outside)
    if rest < 0.25 * square:  # cancellation: orthogonalise once more
        for k in range(size):
            row = basis[k]
            inner = 0.0
            for j in range(total):
                inner += row[j] * outside[j]
            along[k] += inner
            for j in range(total):
                outside[j] -= inner * row[j]
        rest = _square(outside)
    return rest


@compiled
def _square(vector: Array) -> float:
    total = 0.0
    for value in vector:
        total += value * value
    return total


@compiled
def blocking_row(factors: Factors, size: int) -> tuple[float, int]:
    """Express the new row by the active ones; find which multiplier reaches zero first."""
    weights, factor = factors.weights, factors.factor
    weights[:size] = factors.along[:size]
    for k in range(size - 1, -1, -1):
        column = factor[k]
        value = weights[k] / column[k]
        weights[k] = value
        for j in range(k):
            weights[j] -= value * column[j]
    step, blocking = _BIG, -1
    for k in range(size):
        if weights[k] > 1e-13 and factors.multipliers[k] < step * weights[k]:
            step, blocking = factors.multipliers[k] / weights[k], k
    return step, blocking


@compiled
def append_row(
    factors: Factors, size: int, point: int, other: int, multiplier: float, rest: float
) -> None:
    """Make the row that was split last active."""
    length = np.sqrt(rest)
    row, outside = factors.basis[size], factors.outside
    for j in range(outside.size):
        row[j] = outside[j] / length
    factors.factor[size, :size] = factors.along[:size]
    factors.factor[size, size] = length
    factors.active[size, 0] = point
    factors.active[size, 1] = other
    factors.multipliers[size] = multiplier


@compiled
def drop_row(factors: Factors, size: int, which: int) -> None:
    """Remove one of ``size`` active rows and restore the factorisation by rotations."""
    basis, factor = factors.basis, factors.factor
    for k in range(which, size - 1):
        factors.multipliers[k] = factors.multipliers[k + 1]
        factors.active[k] = factors.active[k + 1]
        factor[k, : k + 2] = factor[k + 1, : k + 2]
    for k in range(which, size - 1):
        length = np.sqrt(factor[k, k] ** 2 + factor[k, k + 1] ** 2)
        cosine, sine = factor[k, k] / length, factor[k, k + 1] / length
        for j in range(k, size - 1):
            first, second = factor[j, k], factor[j, k + 1]
            factor[j, k] = cosine * first + sine * second
            factor[j, k + 1] = cosine * second - sine * first
        upper, lower = basis[k], basis[k + 1]
        for j in range(upper.size):
            first, second = upper[j], lower[j]
            upper[j] = cosine * first + sine * second
            lower[j] = cosine * second - sine * first


@compiled
def resume(
    problem: Problem,
    factors: Factors,
    size: int,
    separator: Array,
    stop: float,
    dependent: float,
    limit: int,
) -> tuple[int, int, int, int, int]:
    """Run Goldfarb and Idnani's method on from ``size`` active rows.

    Args:
        problem: The labelled points.
        factors: The active rows so far; holds those of the end, and the last combination.
        size: How many rows are active, their multipliers being non-negative.
        separator: ``(K, r)`` the projection onto the active rows, overwritten; with no
            active rows the point to project.
        stop: Margin to reach.
        dependent: Relative square below which a row depends on the active ones.
        limit: Most changes of the active set.

    Returns:
        Outcome (1 separated, -1 inseparable, 0 stuck), number of active rows, steps, and
        the point and other class of the last row; when inseparable, that row plus
        ``-weights`` times the active rows is zero.
    """
    width = separator.shape[1]
    flat = separator.reshape(separator.size)
    steps = 0
    while True:
        margin, point, other = worst_margin(problem, separator)
        if margin >= stop:
            return 1, size, steps, point, other
        x = problem.rows[point]
        plus, minus = problem.labels[point] * width, other * width
        square = 2.0 * _square(x)
        multiplier = 0.0
        while True:
            steps += 1
            rest = split(factors, size, x, plus, minus)
            dual_step, blocking = blocking_row(factors, size)
            free = rest > dependent * square
            if not free and blocking < 0:
                return -1, size, steps, point, other
            primal_step = _BIG
            if free:
                violation = 1.0
                for f in range(width):
                    violation -= (flat[plus + f] - flat[minus + f]) * x[f]
                primal_step = violation / rest
            step = min(dual_step, primal_step)
            if steps >= limit or not np.isfinite(step):
                return 0, size, steps, point, other
            multiplier += step
            for k in range(size):
                factors.multipliers[k] -= step * factors.weights[k]
            if free:
                for j in range(flat.size):
                    flat[j] += step * factors.outside[j]
            if primal_step <= dual_step:
                break
            drop_row(factors, size, blocking)
            size -= 1
        if size == factors.multipliers.size:
            return 0, size, steps, point, other
        append_row(factors, size, point, other, multiplier, rest)
        size += 1


@compiled
def separate(
    problem: Problem, factors: Factors, separator: Array, stop: float, dependent: float, limit: int
) -> tuple[int, int, int, int, int]:
    """Run :func:`resume` from no active rows; ``separator`` is the point to project."""
    return resume(problem, factors, 0, separator, stop, dependent, limit)
