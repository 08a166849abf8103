"""Naive references for separability: one linear program from scratch for every question."""

from __future__ import annotations

import itertools

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
