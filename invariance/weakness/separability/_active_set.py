"""The dual active-set method of Goldfarb and Idnani, for cones of linear classifiers.

The separator nearest to a point ``W_0`` of labelled points ``x_i`` (rows),

    minimise |W - W_0|^2 / 2   subject to   (e_y - e_c) . W x_i >= 1  for all i, c != y_i,

exists exactly when the points are linearly separable. The method keeps the solution for
a subset of active rows, adds a violated row, and drops rows whose multipliers would turn
negative (D. Goldfarb and A. Idnani, "A numerically stable dual method for solving
strictly convex quadratic programs", Math. Programming 27, 1983). It ends when every
margin is positive, or when a violated row is a non-negative combination of the negatives
of active rows: that combination is a Farkas certificate that no separator exists.

The objective's Hessian is the identity, so an orthonormal basis of the active rows and a
triangular factor (a thin QR factorisation, kept by Gram-Schmidt with one repetition and
Givens rotations) is all the linear algebra.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

#: Stop once every margin reaches this fraction of the margin that the program asks for.
EARLY_STOP = 1e-3
#: A row whose part outside the active rows is this small, relatively, depends on them.
DEPENDENT = 1e-11
#: Changes of the active set after which a run gives up.
MAX_STEPS = 20_000


class Outcome(IntEnum):
    """How a run of the active-set method ended."""

    STUCK = 0
    SEPARATED = 1
    INSEPARABLE = -1


@dataclass(eq=False)
class Combination:
    """Rows ``(e_y - e_c) x_i^T`` and multipliers whose weighted sum is (nearly) zero.

    Attributes:
        points: ``(k,)`` indices i of the points.
        others: ``(k,)`` the classes c that the labels are compared with.
        weights: ``(k,)`` multipliers, non-negative for a Farkas certificate.
    """

    points: Indices
    others: Indices
    weights: Array


class ActiveSet:
    """The state of the method: separator, active rows, multipliers and their factors.

    Args:
        points: ``(m, r)`` points, ideally of unit length.
        n_classes: Number of classes K.
        start: ``(K, r)`` the point ``W_0``; zero by default.
    """

    def __init__(self, points: Array, n_classes: int, start: Array | None = None) -> None:
        self.points = points
        self.n_classes = n_classes
        self.separator: Array = np.zeros((n_classes, points.shape[1]))
        if start is not None:
            self.separator[:] = start
        size = n_classes * points.shape[1]
        self._basis: Array = np.zeros((min(16, size), size))
        self._factor: Array = np.zeros((min(16, size), min(16, size)))
        self._points: Indices = np.zeros(0, dtype=np.int64)
        self._others: Indices = np.zeros(0, dtype=np.int64)
        self._multipliers: Array = np.zeros(0)
        self.steps = 0

    def separate(
        self,
        labelled: Indices,
        labels: Indices,
        *,
        stop: float = EARLY_STOP,
        max_steps: int = MAX_STEPS,
    ) -> tuple[Outcome, Combination | None]:
        """Continue until the labelled points are separated or proved inseparable.

        Args:
            labelled: ``(k,)`` indices of the labelled points. Every point that earlier
                calls used must be among them, with the same label.
            labels: ``(k,)`` their labels.
            stop: Margin to reach; the program asks for 1.
            max_steps: Give up (``STUCK``) after so many active-set changes.

        Returns:
            The outcome, and for ``INSEPARABLE`` the Farkas combination.
        """
        rows = self.points[labelled]
        order = np.arange(len(labelled))
        self.steps = 0
        while True:
            scores = rows @ self.separator.T
            own = scores[order, labels].copy()
            scores[order, labels] = -np.inf
            other = scores.argmax(axis=1)
            margins = own - scores[order, other]
            worst = int(margins.argmin())
            if margins[worst] >= stop:
                return Outcome.SEPARATED, None
            found = self._add(
                int(labelled[worst]), int(labels[worst]), int(other[worst]), max_steps
            )
            if found is not None:
                return Outcome.INSEPARABLE, found
            if self.steps >= max_steps or not np.isfinite(self.separator).all():
                return Outcome.STUCK, None

    def _add(self, point: int, label: int, other: int, max_steps: int) -> Combination | None:
        """Make one violated row active; return a Farkas combination if that is impossible."""
        row = np.zeros_like(self.separator)
        row[label], row[other] = self.points[point], -self.points[point]
        normal = row.reshape(-1)
        square = float(normal @ normal)
        multiplier = 0.0
        while self.steps < max_steps:
            self.steps += 1
            size = len(self._points)
            along, outside = self._split(normal, size)
            weights = np.zeros(0)
            if size:
                weights = _back_substitute(self._factor[:size, :size], along)
            rest = float(outside @ outside)
            dependent = rest <= DEPENDENT**2 * square
            blocking, dual_step = self._blocking(weights)
            if dependent and blocking < 0:
                return Combination(
                    np.append(self._points, point),
                    np.append(self._others, other),
                    np.append(np.maximum(-weights, 0.0), 1.0),
                )
            violation = 1.0 - float(normal @ self.separator.reshape(-1))
            primal_step = np.inf if dependent else violation / rest
            step = min(dual_step, primal_step)
            self._multipliers = self._multipliers - step * weights
            multiplier += step
            if not dependent:
                self.separator += step * outside.reshape(self.separator.shape)
            if primal_step <= dual_step:
                self._append(point, other, multiplier, along, outside, np.sqrt(rest))
                return None
            self._drop(blocking)
        return None

    def _split(self, normal: Array, size: int) -> tuple[Array, Array]:
        basis = self._basis[:size]
        along = basis @ normal
        outside = normal - along @ basis
        again = basis @ outside
        return along + again, outside - again @ basis

    def _blocking(self, weights: Array) -> tuple[int, float]:
        positive = np.flatnonzero(weights > 1e-13)
        if not len(positive):
            return -1, np.inf
        ratios = self._multipliers[positive] / weights[positive]
        first = int(ratios.argmin())
        return int(positive[first]), float(ratios[first])

    def _append(
        self, point: int, other: int, multiplier: float, along: Array, outside: Array, length: float
    ) -> None:
        size = len(self._points)
        if size == len(self._basis):
            more = min(2 * size, self._basis.shape[1])
            basis = np.zeros((more, self._basis.shape[1]))
            basis[:size] = self._basis
            factor = np.zeros((more, more))
            factor[:size, :size] = self._factor
            self._basis, self._factor = basis, factor
        self._basis[size] = outside / length
        self._factor[:size, size] = along
        self._factor[size, :size] = 0.0
        self._factor[size, size] = length
        self._points = np.append(self._points, point)
        self._others = np.append(self._others, other)
        self._multipliers = np.append(self._multipliers, multiplier)

    def _drop(self, which: int) -> None:
        size = len(self._points)
        self._points = np.delete(self._points, which)
        self._others = np.delete(self._others, which)
        self._multipliers = np.delete(self._multipliers, which)
        factor, basis = self._factor, self._basis
        factor[:size, which : size - 1] = factor[:size, which + 1 : size].copy()
        for k in range(which, size - 1):
            a, b = factor[k, k], factor[k + 1, k]
            h = np.hypot(a, b)
            turn = np.array([[a, b], [-b, a]]) / h
            factor[k : k + 2, k : size - 1] = turn @ factor[k : k + 2, k : size - 1]
            factor[k + 1, k] = 0.0
            basis[k : k + 2] = turn @ basis[k : k + 2]


def _back_substitute(upper: Array, right: Array) -> Array:
    from scipy.linalg import solve_triangular

    solution: Array = solve_triangular(upper, right, check_finite=False)
    return solution
