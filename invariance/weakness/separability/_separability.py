"""Which (probe, class) pairs a frozen feature map leaves open, each verdict certified."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from invariance.weakness.separability._active_set import Combination, Outcome
from invariance.weakness.separability._certificates import INFEASIBLE_TOLERANCE
from invariance.weakness.separability._certified import POLICY, Ledger, Pair, Status, Verdicts
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

__all__ = ["Status", "Verdicts", "settle_pairs"]

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
) -> Verdicts:
    """Decide every (probe, class) pair and certify each verdict.

    Shapes: ``labels (n,)``.
    """
    ledger = Ledger(conditioned, labels, n_classes, tolerance, keep_witnesses)
    separator = separate_policy(ledger)
    if separator is None:
        return ledger.verdicts()
    ledger.settle_free(separator)
    probes = np.flatnonzero(~conditioned.free)
    count = max(1, -(-len(probes) // BLOCK), min(workers, len(probes) // _PROBES_A_THREAD))
    blocks = np.array_split(probes, count)
    settled = [ledger.status[block] == Status.FEASIBLE for block in blocks]
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
            ledger.add_sweep(block, sweep)
            solves, steps = solves + sweep.solves, steps + sweep.steps
    for probe, target in np.argwhere(ledger.status == Status.UNDECIDED).tolist():
        _insist(ledger, (probe, target))
    return ledger.verdicts(solves, steps)


def separate_policy(ledger: Ledger) -> Array | None:
    """Separate the training points, and enter the proof in the ledger either way.

    Shapes: returns ``(K, r)``.
    """
    data = ledger.data
    labelled, points = np.arange(data.n_train), data.points[: data.n_train]
    # The least-squares classifier is deep inside, or nearly so: a few rows mend it.
    normal = points.T @ points
    normal[np.diag_indices_from(normal)] += _RIDGE * np.trace(normal)
    goal = (ledger.labels == np.arange(ledger.n_classes)[:, None]) @ points
    start = _LENGTH * np.linalg.solve(normal, goal.T).T
    outcome, separator, combination = separate(
        data.points, labelled, ledger.labels, start, stop=_DEPTH
    )
    if outcome == Outcome.SEPARATED and ledger.add_separators(separator[None]):
        return _with_margins_of_one(separator, points, ledger.labels)
    if combination is not None:
        ledger.add_combinations({POLICY: combination})
    if not ledger.policy_is_settled():
        for candidate in candidates(data.points, labelled, ledger.labels, ledger.n_classes):
            if isinstance(candidate, Combination):
                ledger.add_combinations({POLICY: candidate})
            elif ledger.add_separators(candidate[None]):
                return _with_margins_of_one(candidate, points, ledger.labels)
            if ledger.policy_is_settled():
                break
    return None


def _with_margins_of_one(separator: Array, points: Array, labels: Indices) -> Array:
    least = smallest_margin(points @ separator.T, labels)
    result: Array = separator / max(least, float(np.finfo(np.float64).tiny))
    return result


def _insist(ledger: Ledger, pair: Pair) -> None:
    """Try the fallback methods on one pair until one of their answers can be proved."""
    data = ledger.data
    probe, target = pair
    if data.free[probe]:
        return  # the rank is ambiguous here: what a solver says would depend on the cut
    labelled = np.append(np.arange(data.n_train), data.n_train + probe)
    labels = np.append(ledger.labels, target)
    for candidate in candidates(data.points, labelled, labels, ledger.n_classes):
        if isinstance(candidate, Combination):
            ledger.add_combinations({pair: candidate})
        else:
            ledger.add_separators(candidate[None])
        if ledger.status[pair] != Status.UNDECIDED:
            return
