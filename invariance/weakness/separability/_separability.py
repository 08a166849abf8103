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
from invariance.weakness.separability._pair_sweep import separate_training, sweep_pairs

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

__all__ = ["Status", "Verdicts", "settle_pairs"]

#: Fewer probes than this are not worth a thread of their own.
_PROBES_A_THREAD = 50


def settle_pairs(
    conditioned: Conditioned,
    labels: Indices,
    n_classes: int,
    *,
    tolerance: float = INFEASIBLE_TOLERANCE,
    workers: int = 1,
) -> Verdicts:
    """Decide every (probe, class) pair and certify each verdict.

    Args:
        conditioned: Training points and probes.
        labels: ``(n,)`` training labels.
        n_classes: Number of classes K.
        tolerance: Largest relative residual of a certificate of infeasibility.
        workers: Threads to spread the probes over.

    Returns:
        The ``Verdicts``; they do not depend on ``workers``.
    """
    ledger = Ledger(conditioned, labels, n_classes, tolerance)
    separator = separate_policy(ledger)
    if separator is None:
        return ledger.verdicts()
    ledger.settle_free(separator)
    probes = conditioned.n_train + np.flatnonzero(~conditioned.free)
    solves = steps = 0
    blocks = np.array_split(probes, max(1, min(workers, len(probes) // _PROBES_A_THREAD)))
    with ThreadPoolExecutor(len(blocks)) as pool:
        sweeps = pool.map(
            lambda block: sweep_pairs(conditioned.points, labels, separator, block), blocks
        )
        for sweep in sweeps:
            ledger.add_separators(sweep.separators)
            ledger.add_combinations(
                {
                    (probe - conditioned.n_train, target): entry
                    for (probe, target), entry in sweep.combinations.items()
                }
            )
            solves, steps = solves + sweep.solves, steps + sweep.steps
    for probe, target in np.argwhere(ledger.status == Status.UNDECIDED).tolist():
        _insist(ledger, (probe, target))
    return ledger.verdicts(solves, steps)


def separate_policy(ledger: Ledger) -> Array | None:
    """Separate the training points, and enter the proof in the ledger either way.

    Args:
        ledger: The book to enter it in.

    Returns:
        A ``(K, r)`` separator with margins of at least 1, proved; ``None`` if there is
        none or the question stays undecided.
    """
    data = ledger.data
    outcome, separator, combination = separate_training(
        data.points, ledger.labels, ledger.n_classes
    )
    if outcome == Outcome.SEPARATED and ledger.add_separators(separator[None]):
        return separator
    if combination is not None:
        ledger.add_combinations({POLICY: combination})
    if not ledger.policy_is_settled():
        labelled = np.arange(data.n_train)
        for candidate in candidates(data.points, labelled, ledger.labels, ledger.n_classes):
            if isinstance(candidate, Combination):
                ledger.add_combinations({POLICY: candidate})
            elif ledger.add_separators(candidate[None]):
                scores = data.points[: data.n_train] @ candidate.T
                return candidate / _least_margin(scores, ledger.labels)
            if ledger.policy_is_settled():
                break
    return None


def _least_margin(scores: Array, labels: Indices) -> float:
    order = np.arange(len(labels))
    own = scores[order, labels].copy()
    scores[order, labels] = -np.inf
    return max(float((own - scores.max(axis=1)).min()), float(np.finfo(np.float64).tiny))


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
