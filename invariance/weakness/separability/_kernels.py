"""Compiled inner loops of the active-set method.

The dual method of Goldfarb and Idnani for cones of linear classifiers. The separator
nearest to a point ``W_0`` of labelled points ``x_i`` (rows),

    minimise |W - W_0|^2 / 2   subject to   (e_y - e_c) . W x_i >= 1  for all i, c != y_i,

exists exactly when the points are linearly separable. The method keeps the solution for
a subset of active rows, adds a violated row, and drops rows whose multipliers would turn
negative (D. Goldfarb and A. Idnani, "A numerically stable dual method for solving
strictly convex quadratic programs", Math. Programming 27, 1983). It ends when every
margin is positive, or when a violated row is a non-negative combination of the negatives
of active rows: that combination is a Farkas certificate that no separator exists.

The objective's Hessian is the identity, so an orthonormal basis of the active rows and a
triangular factor (a thin QR factorisation, kept by Gram-Schmidt with one repetition and
Givens rotations) is all the linear algebra. A separator is its start plus multipliers
times active rows, so scores follow the multipliers through inner products of the few
active points with all points, and no step multiplies the whole separator out.

Every loop runs along contiguous memory, so that the compiler vectorises it, and no loop
allocates. Arrays are copied by loops: numba compiles an assignment of slices for seconds.
The interpreter lock is released: networks and blocks of probes run on threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from invariance.core._compiled import compiled, compiled_inside
from invariance.weakness.separability._active_set import DEPENDENT, MAX_STEPS

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_BIG = 1e300
_DEPENDENT_SQUARE = DEPENDENT**2
#: Most active rows, and most points whose inner products are kept, unless told otherwise.
MOST_ACTIVE = 2048


class SeparationProblem(NamedTuple):
    """Labelled points, and a separator's scores on them.

    Attributes:
        rows: ``(m, r)`` points.
        columns: ``(r, m)`` the same, transposed.
        labels: ``(m,)`` their labels.
        scores: ``(K, m)``.
        own: ``(m,)`` scratch.
        rival: ``(m,)`` scratch.
        products: ``(slots, m)`` inner products of some points with all.
        slot_of: ``(m,)`` where a point's products are, -1 for nowhere.
        point_of: ``(slots,)`` the inverse.
        used: ``(1,)`` how many slots are taken.
    """

    rows: Array
    columns: Array
    labels: Indices
    scores: Array
    own: Array
    rival: Array
    products: Array
    slot_of: Indices
    point_of: Indices
    used: Indices


class Factors(NamedTuple):
    """The active rows, their multipliers, and an orthonormal basis of their span.

    Attributes:
        basis: ``(room, K r)``, one basis vector a row.
        factor: ``(room, room)``; row k holds column k of the triangular factor.
        active: ``(room, 2)`` point and other class of each active row.
        multipliers: ``(room,)``.
        scored: ``(room,)`` the multipliers that the scores know of.
        along: ``(room,)`` a new row's coefficients in the basis.
        weights: ``(room,)`` a new row as a combination of the active rows.
        outside: ``(K r,)`` a new row's part outside their span.
    """

    basis: Array
    factor: Array
    active: Indices
    multipliers: Array
    scored: Array
    along: Array
    weights: Array
    outside: Array


class State(NamedTuple):
    """Where the active-set method stood when it had separated a node's labeling.

    Attributes:
        separator: ``(K, r)``.
        basis: ``(s, K r)`` orthonormal basis of the s active rows.
        factor: ``(s, s)`` their triangular factor, column by column.
        active: ``(s, 2)`` point and other class of each.
        multipliers: ``(s,)``.
    """

    separator: Array
    basis: Array
    factor: Array
    active: Indices
    multipliers: Array


def first_state(separator: Array) -> State:
    """Return the state before any row is active: the point that is projected."""
    return State(
        np.ascontiguousarray(separator),
        np.empty((0, separator.size)),
        np.empty((0, 0)),
        np.empty((0, 2), np.int64),
        np.empty(0),
    )


def saved_state(factors: Factors, size: int, separator: Array) -> State:
    """Keep where the method stands."""
    return State(
        separator,
        factors.basis[:size].copy(),
        factors.factor[:size, :size].copy(),
        factors.active[:size].copy(),
        factors.multipliers[:size].copy(),
    )


def workspace(
    rows: Array, labels: Indices, n_classes: int, *, most_active: int = MOST_ACTIVE
) -> tuple[SeparationProblem, Factors]:
    """Lay out labelled rows for the kernels, with room for their active rows."""
    count, width = rows.shape
    total = n_classes * width
    # Untouched pages of an empty array cost nothing.
    room, slots = min(total, most_active), min(count, most_active)
    problem = SeparationProblem(
        rows=np.ascontiguousarray(rows),
        columns=np.ascontiguousarray(rows.T),
        labels=np.ascontiguousarray(labels),
        scores=np.empty((n_classes, count)),
        own=np.empty(count),
        rival=np.empty(count),
        products=np.empty((slots, count)),
        slot_of=np.full(count, -1, dtype=np.int64),
        point_of=np.empty(slots, np.int64),
        used=np.zeros(1, np.int64),
    )
    factors = Factors(
        basis=np.empty((room, total)),
        factor=np.empty((room, room)),
        active=np.empty((room, 2), np.int64),
        multipliers=np.empty(room),
        scored=np.empty(room),
        along=np.empty(room),
        weights=np.empty(room),
        outside=np.empty(total),
    )
    return problem, factors


@compiled_inside
def dots(columns: Array, vector: Array, into: Array) -> None:
    """Set ``into[i] = vector . columns[:, i]``."""
    width, count = columns.shape
    for i in range(count):
        into[i] = 0.0
    f = 0
    while f + 2 < width:  # three columns at a time: fewer passes over ``into``
        u, v, w = vector[f], vector[f + 1], vector[f + 2]
        x, y, z = columns[f], columns[f + 1], columns[f + 2]
        for i in range(count):
            into[i] += u * x[i] + v * y[i] + w * z[i]
        f += 3
    while f < width:
        u, x = vector[f], columns[f]
        for i in range(count):
            into[i] += u * x[i]
        f += 1


@compiled_inside
def score(columns: Array, separator: Array, scores: Array) -> None:
    """Set ``scores[c, i] = separator[c] . columns[:, i]``."""
    for c in range(separator.shape[0]):
        dots(columns, separator[c], scores[c])


@compiled_inside
def _add(problem: SeparationProblem, point: int, other: int, step: float) -> None:
    """Let the scores follow a separator that moves by ``step`` along one row."""
    plus, minus = problem.scores[problem.labels[point]], problem.scores[other]
    products = problem.products[problem.slot_of[point]]
    for i in range(products.size):
        change = step * products[i]
        plus[i] += change
        minus[i] -= change


@compiled_inside
def lowest_margin(
    labels: Indices, scores: Array, own: Array, rival: Array
) -> tuple[float, int, int]:
    """Find the smallest margin, its point, and the class that its label is closest to."""
    count = labels.size
    for i in range(count):
        own[i] = scores[labels[i], i]
        scores[labels[i], i] = -_BIG
        rival[i] = -_BIG
    for c in range(scores.shape[0]):
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
    for i in range(count):
        scores[labels[i], i] = own[i]
    return least, where, other


@compiled_inside
def split(factors: Factors, size: int, x: Array, plus: int, minus: int) -> float:
    """Split the row with ``x`` at ``plus`` and ``-x`` at ``minus`` by the active rows' span."""
    basis, along, outside = factors.basis, factors.along, factors.outside
    total, width = outside.size, x.size
    for j in range(total):
        outside[j] = 0.0
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


@compiled_inside
def _square(vector: Array) -> float:
    total = 0.0
    for value in vector:
        total += value * value
    return total


@compiled_inside
def blocking_row(factors: Factors, size: int) -> tuple[float, int]:
    """Express the new row by the active ones; find which multiplier reaches zero first."""
    weights, factor = factors.weights, factors.factor
    for k in range(size):
        weights[k] = factors.along[k]
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


@compiled_inside
def append_row(
    factors: Factors, size: int, point: int, other: int, multiplier: float, rest: float
) -> None:
    """Make the row that was split last active."""
    length = np.sqrt(rest)
    row, outside = factors.basis[size], factors.outside
    for j in range(outside.size):
        row[j] = outside[j] / length
    for k in range(size):
        factors.factor[size, k] = factors.along[k]
    factors.factor[size, size] = length
    factors.active[size, 0] = point
    factors.active[size, 1] = other
    factors.multipliers[size] = multiplier
    factors.scored[size] = 0.0


@compiled_inside
def drop_row(factors: Factors, size: int, which: int) -> None:
    """Remove one of ``size`` active rows and restore the factorisation by rotations."""
    basis, factor = factors.basis, factors.factor
    for k in range(which, size - 1):
        factors.multipliers[k] = factors.multipliers[k + 1]
        factors.scored[k] = factors.scored[k + 1]
        factors.active[k, 0] = factors.active[k + 1, 0]
        factors.active[k, 1] = factors.active[k + 1, 1]
        for j in range(k + 2):
            factor[k, j] = factor[k + 1, j]
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


@compiled_inside
def resume(  # noqa: PLR0912 - one loop, compiled whole
    problem: SeparationProblem, factors: Factors, size: int, separator: Array, stop: float
) -> tuple[int, int, int, int, int]:
    """Run Goldfarb and Idnani's method on from ``size`` active rows.

    Shapes: ``separator (K, r)``.
    """
    width = separator.shape[1]
    flat = separator.reshape(separator.size)
    steps = 0
    while True:
        for k in range(size):
            step = factors.multipliers[k] - factors.scored[k]
            if step != 0.0:
                _add(problem, factors.active[k, 0], factors.active[k, 1], step)
                factors.scored[k] = factors.multipliers[k]
        margin, point, other = lowest_margin(
            problem.labels, problem.scores, problem.own, problem.rival
        )
        if margin >= stop:
            return 1, size, steps, point, other
        if size == factors.multipliers.size:
            return 0, size, steps, point, other
        x = problem.rows[point]
        if problem.slot_of[point] < 0:
            slot = problem.used[0]
            if slot == problem.point_of.size:
                return 0, size, steps, point, other
            dots(problem.columns, x, problem.products[slot])
            problem.slot_of[point], problem.point_of[slot] = slot, point
            problem.used[0] = slot + 1
        plus, minus = problem.labels[point] * width, other * width
        square = 2.0 * _square(x)
        multiplier = 0.0
        while True:
            steps += 1
            rest = split(factors, size, x, plus, minus)
            dual_step, blocking = blocking_row(factors, size)
            free = rest > _DEPENDENT_SQUARE * square
            if not free and blocking < 0:
                return -1, size, steps, point, other
            primal_step = _BIG
            if free:
                violation = 1.0
                for f in range(width):
                    violation -= (flat[plus + f] - flat[minus + f]) * x[f]
                primal_step = violation / rest
            step = min(dual_step, primal_step)
            if steps >= MAX_STEPS or not np.isfinite(step):
                return 0, size, steps, point, other
            multiplier += step
            for k in range(size):
                factors.multipliers[k] -= step * factors.weights[k]
            if free:
                for j in range(flat.size):
                    flat[j] += step * factors.outside[j]
            if primal_step <= dual_step:
                break
            gone = factors.active[blocking]
            _add(problem, gone[0], gone[1], -factors.scored[blocking])
            drop_row(factors, size, blocking)
            size -= 1
        append_row(factors, size, point, other, multiplier, rest)
        size += 1


@compiled_inside
def load(state: State, problem: SeparationProblem, factors: Factors, separator: Array) -> int:
    """Continue from ``state``; return how many rows are active."""
    size, total = state.multipliers.size, state.separator.size
    for k in range(size):
        for j in range(total):
            factors.basis[k, j] = state.basis[k, j]
        for j in range(k + 1):
            factors.factor[k, j] = state.factor[k, j]
        factors.active[k, 0], factors.active[k, 1] = state.active[k, 0], state.active[k, 1]
        factors.multipliers[k] = factors.scored[k] = state.multipliers[k]
    for c in range(separator.shape[0]):
        for f in range(separator.shape[1]):
            separator[c, f] = state.separator[c, f]
    score(problem.columns, separator, problem.scores)
    if problem.used[0] + size > problem.point_of.size:
        for slot in range(problem.used[0]):
            problem.slot_of[problem.point_of[slot]] = -1
        problem.used[0] = 0
    for k in range(size):  # a row that is dropped takes its part of the scores along
        point = factors.active[k, 0]
        if problem.slot_of[point] < 0:
            slot = problem.used[0]
            dots(problem.columns, problem.rows[point], problem.products[slot])
            problem.slot_of[point], problem.point_of[slot] = slot, point
            problem.used[0] = slot + 1
    return size


@compiled
def solve_on(
    problem: SeparationProblem, factors: Factors, state: State, separator: Array, stop: float
) -> tuple[int, int, int]:
    """Run :func:`resume` from ``state``; return the outcome, the active rows and the steps."""
    size = load(state, problem, factors, separator)
    outcome, size, steps, _, _ = resume(problem, factors, size, separator, stop)
    return outcome, size, steps
