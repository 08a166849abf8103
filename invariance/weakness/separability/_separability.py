"""Which (probe, class) pairs a frozen feature map leaves open, each verdict certified."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from invariance.weakness.separability._active_set import Combination, SolverOutcome
from invariance.weakness.separability._certificates import INFEASIBLE_TOLERANCE
from invariance.weakness.separability._certified import (
    TRAINING_SET,
    CertificateBook,
    Pair,
    PairVerdicts,
    Status,
)
from invariance.weakness.separability._conditioning import Conditioned
from invariance.weakness.separability._fallback import candidates
from invariance.weakness.separability._pair_sweep import (
    BLOCK,
    separate,
    smallest_margin,
    sweep_pairs,
)

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

__all__ = ["PairVerdicts", "Status", "settle_pairs"]

#: Length of the least-squares classifier for one-hot targets, and where mending it stops.
_LENGTH, _DEPTH = 10.0, 0.1
_RIDGE = 1e-12
#: Fewer probes than this are not worth a thread of their own.
_PROBES_A_THREAD = 50


def settle_pairs(
    conditioned: Conditioned,
    labels: Indices,
    n_classes: int,
    *,
    tolerance: float = INFEASIBLE_TOLERANCE,
    keep_witnesses: bool = True,
    workers: int = 1,
) -> PairVerdicts:
    """Decide every (probe, class) pair and certify each verdict.

    Shapes: ``labels (n,)``.
    """
    book = CertificateBook(conditioned, labels, n_classes, tolerance, keep_witnesses)
    separator = separate_policy(book)
    if separator is None:
        return book.verdicts()
    book.settle_free(separator)
    probes = np.flatnonzero(~conditioned.free)
    count = max(1, -(-len(probes) // BLOCK), min(workers, len(probes) // _PROBES_A_THREAD))
    blocks = np.array_split(probes, count)
    settled = [book.status[block] == Status.FEASIBLE for block in blocks]
    solves = steps = 0
    with ThreadPoolExecutor(min(workers, count)) as pool:
        sweeps = pool.map(
            lambda block, done: sweep_pairs(
                conditioned, labels, separator, block, done, keep_witnesses=keep_witnesses
            ),
            blocks,
            settled,
        )
        for block, sweep in zip(blocks, sweeps, strict=True):
            book.add_sweep(block, sweep)
            solves, steps = solves + sweep.solves, steps + sweep.steps
    for probe, target in np.argwhere(book.status == Status.UNDECIDED).tolist():
        _insist(book, (probe, target))
    return book.verdicts(solves, steps)


def separate_policy(book: CertificateBook) -> Array | None:
    """Separate the training points, and enter the proof in the book either way.

    Shapes: returns ``(K, r)``.
    """
    data = book.data
    labelled, points = np.arange(data.n_train), data.points[: data.n_train]
    # The least-squares classifier is deep inside, or nearly so: a few rows mend it.
    normal = points.T @ points
    normal[np.diag_indices_from(normal)] += _RIDGE * np.trace(normal)
    goal = (book.labels == np.arange(book.n_classes)[:, None]) @ points
    start = _LENGTH * np.linalg.solve(normal, goal.T).T
    outcome, separator, combination = separate(
        data.points, labelled, book.labels, start, stop=_DEPTH
    )
    if outcome == SolverOutcome.SEPARATED and book.add_separators(separator[None]):
        return _with_margins_of_one(separator, points, book.labels)
    if combination is not None:
        book.add_combinations({TRAINING_SET: combination})
    if not book.policy_is_settled():
        for candidate in candidates(data.points, labelled, book.labels, book.n_classes):
            if isinstance(candidate, Combination):
                book.add_combinations({TRAINING_SET: candidate})
            elif book.add_separators(candidate[None]):
                return _with_margins_of_one(candidate, points, book.labels)
            if book.policy_is_settled():
                break
    return None


def _with_margins_of_one(separator: Array, points: Array, labels: Indices) -> Array:
    least = smallest_margin(points @ separator.T, labels)
    result: Array = separator / max(least, float(np.finfo(np.float64).tiny))
    return result


def _insist(book: CertificateBook, pair: Pair) -> None:
    """Try the fallback methods on one pair until one of their answers can be proved."""
    data = book.data
    probe, target = pair
    if data.free[probe]:
        return  # the rank is ambiguous here: what a solver says would depend on the cut
    labelled = np.append(np.arange(data.n_train), data.n_train + probe)
    labels = np.append(book.labels, target)
    for candidate in candidates(data.points, labelled, labels, book.n_classes):
        if isinstance(candidate, Combination):
            book.add_combinations({pair: candidate})
        else:
            book.add_separators(candidate[None])
        if book.status[pair] != Status.UNDECIDED:
            return
