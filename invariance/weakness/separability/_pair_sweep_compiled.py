"""The compiled form of :mod:`invariance.weakness.separability._pair_sweep`.

Verdicts never depend on which form ran: each is re-checked from its certificate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from invariance.core._compiled import compiled
from invariance.weakness.separability._active_set import (
    DEPENDENT,
    EARLY_STOP,
    MAX_STEPS,
    Combination,
    Outcome,
)
from invariance.weakness.separability._kernels import Factors, Problem, score, separate
from invariance.weakness.separability._pair_sweep import REACH, Sweep

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

#: Most active rows; a problem that needs more is left to the NumPy form.
_MOST_ACTIVE = 2048
#: Separators that are returned at a time.
_SEPARATORS = 256


class Results(NamedTuple):
    """Room for what one call of the compiled sweep returns.

    Attributes:
        separators: ``(s, K, r)``.
        owners: ``(s, 2)`` row and class of each inseparable pair.
        ends: ``(s,)`` where its combination ends.
        entries: ``(e, 2)`` point and other class of the combinations' rows.
        weights: ``(e,)`` their multipliers.
    """

    separators: Array
    owners: Indices
    ends: Indices
    entries: Indices
    weights: Array


@compiled
def _settle(unseen: Array, separator: Array, scores: Array, settled: Flags) -> None:
    """Mark the class that ``separator`` gives each probe."""
    score(unseen, separator, scores)
    for i in range(unseen.shape[1]):
        best = 0
        for c in range(1, scores.shape[0]):
            if scores[c, i] > scores[best, i]:
                best = c
        settled[i, best] = True


@compiled
def _keep_combination(
    factors: Factors, size: int, point: int, other: int, results: Results, begin: int
) -> int:
    """Store the last combination from entry ``begin`` on; return where it ends."""
    for k in range(size):
        if factors.weights[k] < 0.0:
            results.entries[begin] = factors.active[k]
            results.weights[begin] = -factors.weights[k]
            begin += 1
    results.entries[begin, 0] = point
    results.entries[begin, 1] = other
    results.weights[begin] = 1.0
    return begin + 1


@compiled
def _sweep(
    problem: Problem,
    factors: Factors,
    start: Array,
    unseen: Array,
    settled: Flags,
    begin: int,
    results: Results,
    stop: float,
    dependent: float,
    limit: int,
) -> tuple[int, int, int, int, int]:
    """Settle pairs from number ``begin`` on until done or until ``results`` is full.

    Returns:
        The next pair's number, how many separators and combinations were stored, how many
        pairs were solved, and their steps.
    """
    n_probes, n_classes = settled.shape
    last = problem.labels.size - 1
    scores = np.empty((n_classes, n_probes))
    current = np.empty_like(start)
    n_separators = n_combinations = n_entries = solves = steps = 0
    for pair in range(begin, n_probes * n_classes):
        probe, target = pair // n_classes, pair % n_classes
        if settled[probe, target]:
            continue
        if (
            n_separators == results.separators.shape[0]
            or n_combinations == results.ends.size
            or n_entries + factors.multipliers.size >= results.weights.size
        ):
            return pair, n_separators, n_combinations, solves, steps
        problem.rows[last] = unseen[:, probe]
        problem.columns[:, last] = unseen[:, probe]
        problem.labels[last] = target
        current[:] = start
        outcome, size, used, point, other = separate(
            problem, factors, current, stop, dependent, limit
        )
        solves += 1
        steps += used
        if outcome == 1:
            results.separators[n_separators] = current
            n_separators += 1
            _settle(unseen, current, scores, settled)
        elif outcome == -1:
            n_entries = _keep_combination(factors, size, point, other, results, n_entries)
            results.owners[n_combinations, 0] = probe
            results.owners[n_combinations, 1] = target
            results.ends[n_combinations] = n_entries
            n_combinations += 1
    return n_probes * n_classes, n_separators, n_combinations, solves, steps


def separate_from(
    points: Array, labelled: Indices, labels: Indices, start: Array, stop: float
) -> tuple[Outcome, Array, Combination | None]:
    """Compiled form of :func:`invariance.weakness.separability._pair_sweep.separate_from`."""
    problem, factors = workspace(points[labelled], labels, start.shape[0])
    separator = np.array(start, order="C")
    outcome, size, _, point, other = separate(
        problem, factors, separator, stop, DEPENDENT**2, MAX_STEPS
    )
    if outcome != Outcome.INSEPARABLE:
        return Outcome(outcome), separator, None
    combination = Combination(
        labelled[np.append(factors.active[:size, 0], point)],
        np.append(factors.active[:size, 1], other),
        np.append(np.maximum(-factors.weights[:size], 0.0), 1.0),
    )
    return Outcome.INSEPARABLE, separator, combination


def sweep_pairs(points: Array, labels: Indices, separator: Array, probes: Indices) -> Sweep:
    """Compiled form of :func:`invariance.weakness.separability._pair_sweep.sweep_pairs`."""
    n_train, (n_classes, width) = len(labels), separator.shape
    problem, factors = workspace(
        np.vstack([points[:n_train], np.zeros((1, width))]), np.append(labels, 0), n_classes
    )
    unseen = np.ascontiguousarray(points[probes].T)
    settled = np.zeros((len(probes), n_classes), dtype=np.bool_)
    scores = np.empty((n_classes, len(probes)))
    _settle(unseen, separator, scores, settled)
    separators = [separator[None]]
    combinations: dict[tuple[int, int], Combination] = {}
    pair = solves = steps = 0
    while pair < settled.size:
        results = Results(
            np.empty((_SEPARATORS, n_classes, width)),
            np.empty((_SEPARATORS, 2), np.int64),
            np.empty(_SEPARATORS, np.int64),
            np.empty((_SEPARATORS * 32 + len(factors.multipliers) + 1, 2), np.int64),
            np.empty(_SEPARATORS * 32 + len(factors.multipliers) + 1),
        )
        pair, n_separators, n_combinations, more_solves, more_steps = _sweep(
            problem, factors, REACH * separator, unseen, settled, pair, results,
            EARLY_STOP, DEPENDENT**2, MAX_STEPS,
        )  # fmt: skip
        solves, steps = solves + more_solves, steps + more_steps
        separators.append(results.separators[:n_separators])
        begin = 0
        for index in range(n_combinations):
            row, target = (int(value) for value in results.owners[index])
            end = int(results.ends[index])
            where = results.entries[begin:end, 0]
            combinations[int(probes[row]), target] = Combination(
                np.where(where == n_train, probes[row], where),
                results.entries[begin:end, 1],
                results.weights[begin:end],
            )
            begin = end
    return Sweep(np.concatenate(separators), combinations, solves, steps)


def workspace(rows: Array, labels: Indices, n_classes: int) -> tuple[Problem, Factors]:
    """Lay out labelled rows for the kernels, with room for their active rows."""
    count, width = rows.shape
    total = n_classes * width
    room = min(total, _MOST_ACTIVE)  # untouched pages of an empty array cost nothing
    problem = Problem(
        rows=np.ascontiguousarray(rows),
        columns=np.ascontiguousarray(rows.T),
        labels=np.ascontiguousarray(labels),
        scores=np.empty((n_classes, count)),
        own=np.empty(count),
        rival=np.empty(count),
    )
    factors = Factors(
        basis=np.empty((room, total)),
        factor=np.empty((room, room)),
        active=np.empty((room, 2), np.int64),
        multipliers=np.empty(room),
        along=np.empty(room),
        weights=np.empty(room),
        outside=np.empty(total),
    )
    return problem, factors
