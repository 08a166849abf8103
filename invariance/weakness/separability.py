"""Which (probe, class) pairs a frozen feature map leaves open, each verdict certified."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from invariance.weakness.active_set import ActiveSet, Combination, Outcome
from invariance.weakness.certificates import (
    INFEASIBLE_TOLERANCE,
    check_witnesses,
    norm_bounds,
)
from invariance.weakness.conditioning import Conditioned

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


class Status(IntEnum):
    """The verdict on one pair, or on the training set itself."""

    UNDECIDED = 0
    FEASIBLE = 1
    INFEASIBLE = -1


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Certified verdicts on every pair of one network.

    Attributes:
        policy: Whether the training points alone are linearly separable.
        status: ``(u, K)`` int8 array of :class:`Status` values.
        free: ``(u,)`` probes that leave the span of the training points.
        witnesses: ``(w, K, p)`` classifiers on the equilibrated features.
        witness_of: ``(u, K)`` index of a witness that gives the probe the class, else -1.
        margin_of: ``(u, K)`` the smallest normalised margin of that witness on the training
            points and the probe; NaN where there is none.
        combinations: ``(probe, class)`` to the Farkas combination of an infeasible pair;
            the key (-1, -1) holds that of an inseparable training set.
        norm_bound_of: Key as above, to the norm that a separator would have to exceed.
        solves: How many pairs needed the solver.
        steps: How many active-set changes they took.
    """

    policy: Status
    status: npt.NDArray[np.int8]
    free: npt.NDArray[np.bool_]
    witnesses: Array
    witness_of: Indices
    margin_of: Array
    combinations: dict[tuple[int, int], Combination] = field(default_factory=dict)
    norm_bound_of: dict[tuple[int, int], float] = field(default_factory=dict)
    solves: int = 0
    steps: int = 0


def settle_pairs(
    conditioned: Conditioned,
    labels: Indices,
    n_classes: int,
    *,
    tolerance: float = INFEASIBLE_TOLERANCE,
) -> Verdicts:
    """Decide every (probe, class) pair and certify each verdict.

    Args:
        conditioned: Training points and probes.
        labels: ``(n,)`` training labels.
        n_classes: Number of classes K.
        tolerance: Largest relative residual of a certificate of infeasibility.

    Returns:
        The :class:`Verdicts`.
    """
    return _Settler(conditioned, labels, n_classes, tolerance).run()


class _Settler:
    """Working state of :func:`settle_pairs`."""

    def __init__(
        self, conditioned: Conditioned, labels: Indices, n_classes: int, tolerance: float
    ) -> None:
        self.data = conditioned
        self.labels = labels
        self.n_classes = n_classes
        self.tolerance = tolerance
        self.n_train = conditioned.n_train
        self.n_probes = conditioned.points.shape[0] - conditioned.n_train
        self.hint = np.zeros((self.n_probes, n_classes), dtype=bool)
        self.separators: list[Array] = []
        self.found: dict[tuple[int, int], Combination] = {}
        self.solves = 0
        self.steps = 0

    def run(self) -> Verdicts:
        base = ActiveSet(self.data.points, self.n_classes)
        train = np.arange(self.n_train)
        outcome, combination = base.separate(train, self.labels, stop=1.0 - 1e-9)
        if outcome != Outcome.SEPARATED:
            return self._without_policy(outcome, combination)
        self._keep(base.separator)
        probes = np.arange(self.n_train, self.n_train + self.n_probes)
        for probe in np.flatnonzero(~self.data.free):
            labelled = np.append(train, probes[probe])
            for target in range(self.n_classes):
                if not self.hint[probe, target]:
                    self._solve(base.copy(), labelled, int(probe), target)
        return self._certify()

    def _solve(self, state: ActiveSet, labelled: Indices, probe: int, target: int) -> None:
        outcome, combination = state.separate(labelled, np.append(self.labels, target))
        self.solves += 1
        self.steps += state.steps
        if outcome == Outcome.SEPARATED:
            self._keep(state.separator)
        elif combination is not None:
            self.found[probe, target] = combination

    def _keep(self, separator: Array) -> None:
        """Store a separator of the training points; it classifies every probe too."""
        self.separators.append(separator.copy())
        winners = (self.data.points[self.n_train :] @ separator.T).argmax(axis=1)
        self.hint[np.arange(self.n_probes), winners] = True

    def _certify(self) -> Verdicts:
        data = self.data
        train, probes = data.equilibrated[: self.n_train], data.equilibrated[self.n_train :]
        witnesses = np.stack(self.separators) @ data.basis.T
        check = check_witnesses(witnesses, train, self.labels, probes)
        policy = Status.FEASIBLE if check.separates[0] else Status.UNDECIDED
        shape = (self.n_probes, self.n_classes)
        status = np.zeros(shape, dtype=np.int8)
        witness_of = np.full(shape, -1, dtype=np.int64)
        margin_of = np.full(shape, np.nan)
        for index in np.flatnonzero(check.separates):
            proved = check.proved[index]
            where = np.flatnonzero(proved >= 0)
            margin = np.minimum(check.margin[index], check.probe_margin[index, where])
            old = margin_of[where, proved[where]]
            better = ~(old >= margin)
            chosen = where[better], proved[where[better]]
            status[chosen] = Status.FEASIBLE
            witness_of[chosen] = index
            margin_of[chosen] = margin[better]
        self._certify_free(witnesses[0], status, margin_of)
        keys = list(self.found)
        labels = np.append(self.labels, np.full(self.n_probes, -1))
        relabelled = []
        for probe, target in keys:
            entry = labels[self.found[probe, target].points].copy()
            entry[entry < 0] = target
            relabelled.append(entry)
        bounds = norm_bounds(list(self.found.values()), relabelled, data.points, self.n_classes)
        proved_bounds = {}
        for key, bound in zip(keys, bounds, strict=True):
            if bound >= 1.0 / self.tolerance and status[key] == Status.UNDECIDED:
                status[key] = Status.INFEASIBLE
                proved_bounds[key] = float(bound)
        return Verdicts(
            policy=policy,
            status=status,
            free=data.free,
            witnesses=witnesses,
            witness_of=witness_of,
            margin_of=margin_of,
            combinations={key: self.found[key] for key in proved_bounds},
            norm_bound_of=proved_bounds,
            solves=self.solves,
            steps=self.steps,
        )

    def _certify_free(self, witness: Array, status: npt.NDArray[np.int8], margin_of: Array) -> None:
        """Prove a free probe's classes: change the classifier where only it looks."""
        data = self.data
        n_dead = data.dead.shape[1]
        train = np.hstack([data.equilibrated[: self.n_train], np.zeros((self.n_train, n_dead))])
        for probe in np.flatnonzero(data.free):
            point = np.append(data.equilibrated[self.n_train + probe], data.dead[probe])
            direction = data.escape[probe]
            base = np.hstack([witness, np.zeros((self.n_classes, n_dead))])
            logits = base @ point
            reach = float(direction @ point)
            stack = np.repeat(base[None], self.n_classes, axis=0)
            lift = 2.0 * (np.ptp(logits) + np.abs(witness).max()) / reach
            for target in range(self.n_classes):
                stack[target, target] += lift * direction
            check = check_witnesses(stack, train, self.labels, point[None])
            for hit in np.flatnonzero(check.proved[:, 0] == np.arange(self.n_classes)):
                target = int(hit)
                status[probe, target] = Status.FEASIBLE
                margin_of[probe, target] = min(check.margin[target], check.probe_margin[target, 0])

    def _without_policy(self, outcome: Outcome, combination: Combination | None) -> Verdicts:
        policy = Status.UNDECIDED
        combinations, bounds = {}, {}
        if combination is not None:
            labels = self.labels[combination.points]
            bound = norm_bounds([combination], [labels], self.data.points, self.n_classes)[0]
            if outcome == Outcome.INSEPARABLE and bound >= 1.0 / self.tolerance:
                policy = Status.INFEASIBLE
                combinations[-1, -1], bounds[-1, -1] = combination, float(bound)
        shape = (self.n_probes, self.n_classes)
        return Verdicts(
            policy=policy,
            status=np.full(shape, policy, dtype=np.int8),
            free=self.data.free,
            witnesses=np.zeros((0, self.n_classes, self.data.equilibrated.shape[1])),
            witness_of=np.full(shape, -1, dtype=np.int64),
            margin_of=np.full(shape, np.nan),
            combinations=combinations,
            norm_bound_of=bounds,
        )
