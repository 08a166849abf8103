"""Expansion of one node of the labeling tree: all its children in one call.

Every node continues the active set of its nearest solved ancestor. All nodes project the
same deep interior point of the training cone, so an ancestor's active rows and
multipliers are dual feasible for every descendant, and only the rows of the new labels
are left to add: a handful of changes where a solve from nothing takes fifty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from invariance.core._compiled import compiled
from invariance.weakness.separability._active_set import EARLY_STOP, Combination
from invariance.weakness.separability._certificates import EPSILON
from invariance.weakness.separability._conditioning import Conditioned
from invariance.weakness.separability._kernels import (
    Factors,
    SeparationProblem,
    State,
    load,
    resume,
    saved_state,
    score,
    solve_on,
    workspace,
)

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Points(NamedTuple):
    """What a separator is checked against, see :func:`check_separator`.

    Attributes:
        basis: ``(r, p)`` from whitened coordinates to the given features.
        columns: ``(p, n + u)`` the given features, training points first.
        lengths: ``(n + u,)`` their lengths, 1 where zero.
        labels: ``(n,)`` training labels.
    """

    basis: Array
    columns: Array
    lengths: Array
    labels: Indices


@dataclass(frozen=True, eq=False)
class Expansion:
    """The answers to one node's children.

    Attributes:
        state: The node's own state, where its descendants continue.
        separators: ``(t, K, r)`` one for each target; meaningful where checked.
        checked: ``(t,)`` whether it provably separates the training points.
        given: ``(t, u)`` labels that it provably gives the unseen points, else -1.
        combinations: The Farkas combination of each target that has one, not yet checked.
    """

    state: State
    separators: Array
    checked: Flags
    given: Indices
    combinations: list[Combination | None]


def points_of(data: Conditioned, labels: Indices) -> Points:
    """Lay out what separators are checked against."""
    lengths = np.linalg.norm(data.equilibrated, axis=1)
    return Points(
        np.ascontiguousarray(data.basis.T),
        np.ascontiguousarray(data.equilibrated.T),
        np.where(lengths > 0.0, lengths, 1.0),
        np.ascontiguousarray(labels),
    )


@compiled
def check_separator(points: Points, separator: Array, scores: Array, given: Indices) -> bool:
    """Compiled check of one separator, as ``check_witnesses`` checks many.

    The rounding bound there holds for every order of the sums and for fused
    multiply-adds, which is all that the compiler may change.

    Shapes: ``separator (K, r)``, ``scores (K, n + u)``, ``given (u,)``.
    """
    witness = separator @ points.basis
    n_classes, width = witness.shape
    largest = 0.0
    for c in range(n_classes):
        square = 0.0
        for f in range(width):
            square += witness[c, f] * witness[c, f]
        if not np.isfinite(square):
            return False
        largest = max(largest, square)
    reach = 4.0 * (width + 4) * EPSILON * np.sqrt(largest)
    score(points.columns, witness, scores)
    n_train = points.labels.size
    separates = True
    for i in range(scores.shape[1]):
        best, first, second = -1, -np.inf, -np.inf
        for c in range(n_classes):
            value = scores[c, i]
            if value > first:
                best, first, second = c, value, first
            elif value > second:
                second = value
        clear = (first - second) / points.lengths[i] > reach
        if i < n_train:
            separates = separates and clear and best == points.labels[i]
        else:
            given[i - n_train] = best if clear else -1
    return separates


@compiled
def _expand(
    problem: SeparationProblem,
    factors: Factors,
    state: State,
    points: Points,
    targets: Indices,
    separators: Array,
    outcomes: Indices,
    sizes: Indices,
    given: Indices,
    rows: Indices,
    weights: Array,
) -> None:
    """Solve the last point's targets, each from ``state``; check each separator."""
    last = problem.labels.size - 1
    scores = np.empty((separators.shape[1], points.lengths.size))
    for t in range(targets.size):
        size = load(state, problem, factors, separators[t])
        problem.labels[last] = targets[t]
        outcome, size, _, point, other = resume(problem, factors, size, separators[t], EARLY_STOP)
        outcomes[t] = outcome
        if outcome == 1 and not check_separator(points, separators[t], scores, given[t]):
            outcomes[t] = 0
        elif outcome == -1:
            for k in range(size):
                rows[t, k, 0], rows[t, k, 1] = factors.active[k, 0], factors.active[k, 1]
                weights[t, k] = -factors.weights[k]
            rows[t, size, 0], rows[t, size, 1], weights[t, size] = point, other, 1.0
            sizes[t] = size + 1


def expand(
    data: Conditioned,
    points: Points,
    named: list[tuple[int, int]],
    depth: int,
    targets: list[int],
    state: State,
) -> Expansion:
    """Find a separator or a Farkas combination for each target label of one point."""
    n_train, n_classes = data.n_train, state.separator.shape[0]
    where = np.array([j for j, _ in named] + [depth], dtype=np.int64)
    labelled = np.append(np.arange(n_train), n_train + where)
    labels = np.concatenate([points.labels, [label for _, label in named], [targets[0]]])
    rows, labels = data.points[labelled], labels.astype(np.int64)
    state = _settle(rows[:-1], labels[:-1], state)
    problem, factors = workspace(rows, labels, n_classes)
    count, room = len(targets), len(factors.multipliers)
    separators = np.empty((count, *state.separator.shape))
    outcomes, sizes = np.zeros(count, np.int64), np.zeros(count, np.int64)
    given = np.full((count, data.points.shape[0] - n_train), -1, dtype=np.int64)
    refuted, weights = np.empty((count, room + 1, 2), np.int64), np.empty((count, room + 1))
    _expand(
        problem, factors, state, points, np.array(targets, dtype=np.int64), separators, outcomes,
        sizes, given, refuted, weights,
    )  # fmt: skip
    combinations: list[Combination | None] = [
        Combination(
            labelled[refuted[t, :size, 0]], refuted[t, :size, 1], np.maximum(weights[t, :size], 0.0)
        )
        if size
        else None
        for t, size in enumerate(sizes.tolist())
    ]
    return Expansion(state, separators, outcomes == 1, given, combinations)


def _settle(rows: Array, labels: Indices, state: State) -> State:
    """Continue a state until it separates the labelled points."""
    problem, factors = workspace(rows, labels, len(state.separator))
    separator = np.empty_like(state.separator)
    outcome, size, steps = solve_on(problem, factors, state, separator, EARLY_STOP)
    if outcome != 1 or not steps:
        return state  # still dual feasible for the children, only less far
    return saved_state(factors, size, separator)
