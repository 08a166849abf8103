"""Naive references for separability: one linear program from scratch for every question."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
from scipy.optimize import linprog


def separable_by_linprog(features, labels, n_classes, *, bias=True):
    """Whether labelled points are strictly separable: maximise the margin in a unit box."""
    features = np.asarray(features, dtype=float)
    rows = np.hstack([features, np.ones((len(features), 1))]) if bias else features
    width = rows.shape[1]
    system = []
    for row, label in zip(rows, labels, strict=True):
        for other in range(n_classes):
            if other == label:
                continue
            entry = np.zeros((n_classes, width))
            entry[label], entry[other] = row, -row
            system.append(np.append(-entry.ravel(), 1.0))
    system = np.array(system)
    cost = np.zeros(system.shape[1])
    cost[-1] = -1.0
    bounds = [(-1e3, 1e3)] * (system.shape[1] - 1) + [(None, 1.0)]
    result = linprog(cost, A_ub=system, b_ub=np.zeros(len(system)), bounds=bounds, method="highs")
    assert result.status == 0, result.message
    return result.x[-1] > 1e-7


def feasible_pairs_by_linprog(train, labels, unseen, n_classes, *, bias=True):
    """``(u, K)`` booleans, one program a pair."""
    table = np.zeros((len(unseen), n_classes), dtype=bool)
    for probe, target in itertools.product(range(len(unseen)), range(n_classes)):
        table[probe, target] = separable_by_linprog(
            np.vstack([train, unseen[probe]]), [*labels, target], n_classes, bias=bias
        )
    return table


def separable_exactly(features, labels, n_classes, *, bias=True):
    """Whether labelled points are strictly separable, in rational arithmetic.

    Gordan's alternative, A w > 0 or y >= 0, y != 0 with A^T y = 0, decided by the first
    phase of the simplex method with Bland's rule on fractions: no rounding anywhere.
    """
    rows = []
    for point, label in zip(features, labels, strict=True):
        x = [Fraction(float(value)) for value in point] + [Fraction(1)] * bias
        for other in range(n_classes):
            if other != label:
                rows.append(
                    [
                        value * (int(c == label) - int(c == other))
                        for c in range(n_classes)
                        for value in x
                    ]
                )
    columns = [[*row, Fraction(1)] for row in rows]  # A^T y = 0 and sum(y) = 1
    height = len(columns[0])
    right = [Fraction(0)] * (height - 1) + [Fraction(1)]
    table = [
        [column[i] for column in columns]
        + [Fraction(int(i == k)) for k in range(height)]
        + [right[i]]
        for i in range(height)
    ]
    basis = [len(columns) + i for i in range(height)]
    cost = [-sum(row[j] for row in table) for j in range(len(columns))]
    value = -sum(row[-1] for row in table)
    while True:
        entering = next((j for j, c in enumerate(cost) if c < 0), None)
        if entering is None:
            return value != 0  # artificial variables stay: no y, so separable
        ratios = [
            (row[-1] / row[entering], basis[i], i)
            for i, row in enumerate(table)
            if row[entering] > 0
        ]
        _, _, leaving = min(ratios)
        lead = table[leaving][entering]
        table[leaving] = [entry / lead for entry in table[leaving]]
        for i, row in enumerate(table):
            if i != leaving and row[entering] != 0:
                factor = row[entering]
                table[i] = [a - factor * b for a, b in zip(row, table[leaving], strict=True)]
        factor = cost[entering]
        cost = [c - factor * a for c, a in zip(cost, table[leaving][: len(columns)], strict=True)]
        value -= factor * table[leaving][-1]
        basis[leaving] = entering
