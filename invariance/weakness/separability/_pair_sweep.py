"""Solve every pair that no earlier witness settles: the NumPy form and the choice of form.

Deciding a pair is projecting a deep interior point of the training cone (the
minimum-norm separator, lengthened) onto the cone of the pair: the active set starts
empty and holds only the rows that the probe's label pushes against. That takes a dozen
changes where continuing the minimum-norm problem takes ninety. Every separator found on
the way is a separator of the training set, so it settles one class for every probe.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from invariance.weakness.separability._active_set import EARLY_STOP, ActiveSet, Combination, Outcome

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

#: How much longer than the minimum-norm separator the projected point is.
REACH = 100.0
#: Set this environment variable to run without numba, which gives the same verdicts.
DISABLE_NUMBA = "INVARIANCE_DISABLE_NUMBA"


@dataclass(eq=False)
class Sweep:
    """What the solver found, before any of it is checked.

    Attributes:
        separators: ``(w, K, r)`` separators of the training points.
        combinations: ``(probe, class)`` to the Farkas combination found for it.
        solves: How many pairs were solved.
        steps: How many active-set changes they took.
    """

    separators: Array
    combinations: dict[tuple[int, int], Combination]
    solves: int
    steps: int


def numba_is_used() -> bool:
    """Whether the compiled kernels run (numba is importable and not switched off)."""
    if os.environ.get(DISABLE_NUMBA, "") not in ("", "0"):
        return False
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def separate_training(
    points: Array, labels: Indices, n_classes: int
) -> tuple[Outcome, Array, Combination | None]:
    """Find the minimum-norm separator of the first ``len(labels)`` points.

    Args:
        points: ``(m, r)`` whitened points, the training points first.
        labels: ``(n,)`` training labels.
        n_classes: Number of classes K.

    Returns:
        The outcome, the separator ``(K, r)``, and the Farkas combination if inseparable.
    """
    start = np.zeros((n_classes, points.shape[1]))
    return separate_from(points, np.arange(len(labels)), labels, start, stop=1.0 - 1e-9)


def separate_from(
    points: Array, labelled: Indices, labels: Indices, start: Array, *, stop: float = EARLY_STOP
) -> tuple[Outcome, Array, Combination | None]:
    """Find the separator of labelled points that is nearest to ``start``.

    Args:
        points: ``(m, r)`` whitened points.
        labelled: ``(k,)`` indices of the labelled ones.
        labels: ``(k,)`` their labels.
        start: ``(K, r)`` the point to project.
        stop: Stop as soon as every margin reaches this; the projection has margins of 1.

    Returns:
        The outcome, the separator, and the Farkas combination if there is none.
    """
    if numba_is_used():
        from invariance.weakness.separability import _pair_sweep_compiled as sweep_compiled

        return sweep_compiled.separate_from(points, labelled, labels, start, stop)
    state = ActiveSet(points, start.shape[0], start=start)
    outcome, combination = state.separate(labelled, labels, stop=stop)
    return outcome, state.separator, combination


def sweep_pairs(points: Array, labels: Indices, separator: Array, probes: Indices) -> Sweep:
    """Settle the pairs of ``probes``, sharing each separator among all of them.

    Args:
        points: ``(m, r)`` whitened points, the training points first.
        labels: ``(n,)`` training labels.
        separator: ``(K, r)`` a separator of the training points with margins of at least 1.
        probes: Indices of points to try every class on.

    Returns:
        The :class:`Sweep`, its first separator being ``separator``.
    """
    if numba_is_used():
        from invariance.weakness.separability import _pair_sweep_compiled as sweep_compiled

        return sweep_compiled.sweep_pairs(points, labels, separator, probes)
    n_classes = separator.shape[0]
    settled = np.zeros((len(probes), n_classes), dtype=bool)
    separators = [separator]
    combinations: dict[tuple[int, int], Combination] = {}
    solves = steps = 0
    _settle(settled, points[probes], separator)
    labelled = np.arange(len(labels) + 1)
    for row, probe in enumerate(probes):
        labelled[-1] = probe
        for target in range(n_classes):
            if settled[row, target]:
                continue
            state = ActiveSet(points, n_classes, start=REACH * separator)
            outcome, combination = state.separate(labelled, np.append(labels, target))
            solves += 1
            steps += state.steps
            if outcome == Outcome.SEPARATED:
                separators.append(state.separator)
                _settle(settled, points[probes], state.separator)
            elif combination is not None:
                combinations[int(probe), target] = combination
    return Sweep(np.stack(separators), combinations, solves, steps)


def _settle(settled: npt.NDArray[np.bool_], probes: Array, separator: Array) -> None:
    settled[np.arange(len(probes)), (probes @ separator.T).argmax(axis=1)] = True
