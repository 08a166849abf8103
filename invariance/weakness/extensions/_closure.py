"""From complete labelings to all partial ones, without another solve.

The classifiers that give some points certain labels form an open set. So unless a point
can take no label at all, a jointly feasible partial labeling extends to a complete one:
the partial labelings are exactly the restrictions of the complete ones.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

#: Most rows that are sorted, summed over all subsets of the points.
WORK_LIMIT = 400_000_000


def closure_work(labelings: npt.NDArray[np.int64]) -> float:
    """Bound the work of :func:`count_restrictions`: rows times subsets of varying points."""
    varying = int((labelings != labelings[:1]).any(axis=0).sum())
    return len(labelings) * math.pow(2.0, varying)


def count_restrictions(labelings: npt.NDArray[np.int64]) -> int:
    """Count the distinct partial labelings that a set of complete ones restricts to.

    Shapes: ``labelings (L, u)``.
    """
    varying = (labelings != labelings[:1]).any(axis=0)
    constant = int((~varying).sum())
    columns = labelings[:, varying].T.copy()
    # A point with one possible label is there or not: a factor of two each.
    nothing = np.zeros(len(labelings), dtype=np.int64)
    return _count(nothing, columns, 0) << constant


def _count(kept: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], position: int) -> int:
    """Count distinct (kept part, subset of the columns from ``position`` on).

    ``kept`` numbers, for every row, the part that was kept so far; rows are distinct in
    ``kept`` together with the columns that are still open.
    """
    if position == len(columns):
        return len(np.unique(kept))
    column = columns[position]
    with_it = kept * (int(column.max()) + 1) + column
    _, with_it = np.unique(with_it, return_inverse=True)
    total = _count(with_it, columns, position + 1)
    # Leave the point out: rows that now agree are one.
    rest = columns[position + 1 :]
    first = _distinct(kept, rest)
    return total + _count(kept[first], columns[:, first], position + 1)


def _distinct(kept: npt.NDArray[np.int64], rest: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Indices of one row for each distinct (kept, rest)."""
    code = kept
    for column in rest:
        _, code = np.unique(code * (int(column.max()) + 1) + column, return_inverse=True)
    _, first = np.unique(code, return_index=True)
    return first
