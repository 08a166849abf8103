"""What is tried on a question that the first method left without a certificate.

Each rung offers candidates, a separator or a Farkas combination, for the caller to
check; a solver's status is never a verdict (HiGHS returns "numerical difficulties" for
some of these programs, which says nothing about feasibility).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import linprog

from invariance.weakness.separability._active_set import Combination, SolverOutcome
from invariance.weakness.separability._pair_sweep import separate

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def candidates(
    points: Array, labelled: Indices, labels: Indices, n_classes: int
) -> Iterator[Array | Combination]:
    """Offer separators and Farkas combinations for labelled points, best rung first.

    Shapes: ``points (m, r)``, ``labelled (k,)``, ``labels (k,)``; returns ``(K, r)``.
    """
    for stop in (1e-3, 1.0 - 1e-9):  # the minimum-norm problem, early and to the end
        start = np.zeros((n_classes, points.shape[1]))
        outcome, separator, combination = separate(points, labelled, labels, start, stop=stop)
        if combination is not None:
            yield combination
        elif outcome == SolverOutcome.SEPARATED:
            yield separator
    yield from _linear_program(points, labelled, labels, n_classes)


def _linear_program(
    points: Array, labelled: Indices, labels: Indices, n_classes: int
) -> Iterator[Array | Combination]:
    """Maximise the smallest margin in a unit box by HiGHS, in two scalings."""
    width = points.shape[1]
    point = np.repeat(labelled, n_classes - 1)
    label = np.repeat(labels, n_classes - 1)
    other = np.array(
        [c for own in labels.tolist() for c in range(n_classes) if c != own], dtype=np.int64
    )
    rows = len(point)
    column = np.arange(width)
    where = np.repeat(np.arange(rows), width)
    values = points[point].ravel()
    matrix = sparse.csr_array(
        (
            np.concatenate([-values, values, np.ones(rows)]),
            (
                np.concatenate([where, where, np.arange(rows)]),
                np.concatenate(
                    [
                        (label[:, None] * width + column).ravel(),
                        (other[:, None] * width + column).ravel(),
                        np.full(rows, n_classes * width),
                    ]
                ),
            ),
        ),
        shape=(rows, n_classes * width + 1),
    )
    cost: Array = np.append(np.zeros(n_classes * width), -1.0)
    for box in (1.0, 1e4):
        bounds: Any = [(-box, box)] * (n_classes * width) + [(None, None)]
        result = linprog(
            cost, A_ub=cast(Any, matrix), b_ub=np.zeros(rows), bounds=bounds, method="highs"
        )
        if result.status != 0 or result.x is None:
            continue
        yield np.asarray(result.x[:-1], dtype=np.float64).reshape(n_classes, width)
        weights = np.maximum(-np.asarray(result.ineqlin.marginals, dtype=np.float64), 0.0)
        active = np.flatnonzero(weights > 0.0)
        if len(active):
            yield Combination(point[active], other[active], weights[active])
