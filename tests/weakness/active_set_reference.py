"""The active-set method written out in NumPy: the reference for the compiled loops.

Continues the minimum-norm problem, where the package projects a deep point; multiplies
every score out, where the package follows inner products.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular

from invariance.weakness.separability._active_set import (
    DEPENDENT,
    EARLY_STOP,
    MAX_STEPS,
    Combination,
    SolverOutcome,
)

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


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
    ) -> tuple[SolverOutcome, Combination | None]:
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
                return SolverOutcome.SEPARATED, None
            found = self._add(
                int(labelled[worst]), int(labels[worst]), int(other[worst]), max_steps
            )
            if found is not None:
                return SolverOutcome.INSEPARABLE, found
            if self.steps >= max_steps or not np.isfinite(self.separator).all():
                return SolverOutcome.STUCK, None

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
    solution: Array = solve_triangular(upper, right, check_finite=False)
    return solution


def status_of_pairs(points: Array, labels: Indices, n_classes: int) -> npt.NDArray[np.int8]:
    """Decide every pair of the points after the labelled ones by its own solve."""
    n_train = len(labels)
    status = np.zeros((len(points) - n_train, n_classes), dtype=np.int8)
    for probe, target in np.ndindex(*status.shape):
        labelled = np.append(np.arange(n_train), n_train + probe)
        outcome, _ = ActiveSet(points, n_classes).separate(labelled, np.append(labels, target))
        status[probe, target] = int(outcome)
    return status
