"""The book of certified verdicts: nothing enters it without a check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from invariance.weakness.separability._active_set import Combination
from invariance.weakness.separability._certificates import check_witnesses, norm_bounds
from invariance.weakness.separability._conditioning import Conditioned
from invariance.weakness.separability._exact_proofs import is_exactly_infeasible

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Pair = tuple[int, int]

#: The key of the training set itself among pairs (probe, class).
POLICY: Pair = (-1, -1)
#: Rows up to which rational arithmetic costs less than a millisecond or two.
_SMALL = 10


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
        witnesses: ``(w, K, p + z)`` classifiers on the scaled features, see
            ``Conditioned``; the last z columns act
            on features that are zero on every training point.
        witness_of: ``(u, K)`` index of a witness that gives the probe the class, else -1.
        margin_of: ``(u, K)`` the smallest margin of that witness on the training points and
            the probe, divided by ``|W|`` and ``|x|``; NaN where there is none.
        combinations: Infeasible pair to its Farkas combination (points are numbered training
            points first, then probes); an inseparable training set has the key (-1, -1).
        norm_bound_of: Key as above, to the norm that a separator would have to exceed.
        retained_only: Keys whose infeasibility is proved for the coordinates that the rank
            rule retains, and not for the given features as exact numbers.
        solves: How many pairs needed the solver.
        steps: How many active-set changes they took.
    """

    policy: Status
    status: npt.NDArray[np.int8]
    free: npt.NDArray[np.bool_]
    witnesses: Array
    witness_of: Indices
    margin_of: Array
    combinations: Mapping[Pair, Combination]
    norm_bound_of: Mapping[Pair, float]
    retained_only: Set[Pair] = frozenset()
    solves: int = 0
    steps: int = 0


class Proof(IntEnum):
    """What a combination proves infeasible."""

    NOTHING = 0
    RETAINED = 1  # the problem in the coordinates that the rank rule retains
    GIVEN = 2  # the problem for the given features, as exact numbers


def prove(
    data: Conditioned,
    entries: Sequence[Combination],
    labels: Sequence[Indices],
    n_classes: int,
    tolerance: float,
) -> tuple[list[Proof], Array]:
    """Check Farkas combinations; see :mod:`invariance.weakness.separability._certificates`.

    Args:
        data: Training points and probes.
        entries: The combinations.
        labels: For each, the labels of its points.
        n_classes: Number of classes K.
        tolerance: Largest relative residual.

    Returns:
        What each proves, and ``(len(entries),)`` the norm that a separator would exceed.
    """
    bounds = norm_bounds(entries, labels, data.points, n_classes)
    proofs = [
        Proof.NOTHING if bound * tolerance < 1.0 else _strongest_proof(data, entry, label)
        for entry, label, bound in zip(entries, labels, bounds, strict=True)
    ]
    return proofs, bounds


def _strongest_proof(data: Conditioned, entry: Combination, labels: Indices) -> Proof:
    # A zero row (silent features, no bias) was not normalised; any weight serves it.
    lengths = data.lengths[entry.points]
    weights = entry.weights / np.where(lengths > 0.0, lengths, 1.0)
    given = Combination(entry.points, entry.others, weights)
    if data.full_rank:
        proved = is_exactly_infeasible(given, labels, data.equilibrated)
        return Proof.GIVEN if proved else Proof.NOTHING
    # Some direction was cut, perhaps an exact dependence, perhaps two features that agree
    # up to round-off. Rational arithmetic can tell, but is worth it for small ones only.
    if is_exactly_infeasible(given, labels, data.equilibrated, rational_limit=_SMALL):
        return Proof.GIVEN
    if is_exactly_infeasible(given, labels, data.retained):
        return Proof.RETAINED
    proved = is_exactly_infeasible(given, labels, data.equilibrated)
    return Proof.GIVEN if proved else Proof.NOTHING


@dataclass(eq=False)
class Ledger:
    """Collects witnesses and combinations, checks each, and keeps what they prove.

    Attributes:
        data: Training points and probes.
        labels: ``(n,)`` training labels.
        n_classes: Number of classes K.
        tolerance: Largest relative residual of a combination.
    """

    data: Conditioned
    labels: Indices
    n_classes: int
    tolerance: float
    policy: Status = Status.UNDECIDED
    combinations: dict[Pair, Combination] = field(default_factory=dict)
    norm_bound_of: dict[Pair, float] = field(default_factory=dict)
    retained_only: set[Pair] = field(default_factory=set)

    def __post_init__(self) -> None:
        n_probes = self.data.points.shape[0] - self.data.n_train
        shape = (n_probes, self.n_classes)
        self.status = np.zeros(shape, dtype=np.int8)
        self.witness_of = np.full(shape, -1, dtype=np.int64)
        self.margin_of = np.full(shape, np.nan)
        self._witnesses: list[Array] = []
        self._count = 0

    def policy_is_settled(self) -> bool:
        """Whether the training points are proved separable or inseparable."""
        return self.policy != Status.UNDECIDED

    def add_separators(self, separators: Array) -> bool:
        """Check separators of the training points; settle a class a probe for each.

        Args:
            separators: ``(w, K, r)`` classifiers on the whitened points.

        Returns:
            Whether the first of them provably separates the training points.
        """
        witnesses = separators @ self.data.basis.T
        n_dead = self.data.dead.shape[1]
        padded = np.concatenate([witnesses, np.zeros((*witnesses.shape[:2], n_dead))], axis=2)
        check = check_witnesses(witnesses, self._train(), self.labels, self._probes())
        # A free probe's dead features were not multiplied out: those pairs come later.
        index, probe = np.nonzero((check.proved >= 0) & ~self.data.free)
        margin = np.minimum(check.margin[index], check.probe_margin[index, probe])
        self._record(padded, index, probe, check.proved[index, probe], margin)
        if check.separates.any():
            self.policy = Status.FEASIBLE
        return bool(check.separates[0])

    def settle_free(self, separator: Array) -> None:
        """Prove every class of every free probe: change a classifier where only it looks.

        Args:
            separator: ``(K, r)`` a separator of the whitened training points.
        """
        data, n_dead = self.data, self.data.dead.shape[1]
        train = np.hstack([self._train(), np.zeros((data.n_train, n_dead))])
        base = np.hstack([separator @ data.basis.T, np.zeros((self.n_classes, n_dead))])
        targets = np.arange(self.n_classes)
        for probe in np.flatnonzero(data.free):
            point = np.append(self._probes()[probe], data.dead[probe])
            direction = data.escape[probe].copy()
            if n_dead and data.dead[probe].any():
                direction[:-n_dead] = 0.0  # exactly invisible to every training point
            lift = 2.0 * (np.ptp(base @ point) + np.abs(base).max()) / float(direction @ point)
            stack = np.repeat(base[None], self.n_classes, axis=0)
            stack[targets, targets] += lift * direction
            check = check_witnesses(stack, train, self.labels, point[None])
            hits = np.flatnonzero(check.proved[:, 0] == targets)
            margin = np.minimum(check.margin, check.probe_margin[:, 0])[hits]
            self._record(stack, hits, np.full(len(hits), probe), hits, margin)

    def add_combinations(self, combinations: Mapping[Pair, Combination]) -> None:
        """Check Farkas combinations, by pair or for :data:`POLICY`, and keep the proofs."""
        keys = list(combinations)
        entries = [combinations[key] for key in keys]
        labels = [self._labels_of(key)[entry.points] for key, entry in combinations.items()]
        proofs, bounds = prove(self.data, entries, labels, self.n_classes, self.tolerance)
        for key, entry, proof, bound in zip(keys, entries, proofs, bounds, strict=True):
            if proof == Proof.NOTHING:
                continue
            if proof == Proof.RETAINED:
                self.retained_only.add(key)
            if key == POLICY:
                self.policy = Status.INFEASIBLE
                self.status[:] = Status.INFEASIBLE
            else:
                self.status[key] = Status.INFEASIBLE
            self.combinations[key] = entry
            self.norm_bound_of[key] = float(bound)

    def verdicts(self, solves: int = 0, steps: int = 0) -> Verdicts:
        """Close the book."""
        data = self.data
        width = data.equilibrated.shape[1] + data.dead.shape[1]
        return Verdicts(
            policy=self.policy,
            status=self.status,
            free=data.free,
            witnesses=np.concatenate([np.zeros((0, self.n_classes, width)), *self._witnesses]),
            witness_of=self.witness_of,
            margin_of=self.margin_of,
            combinations=self.combinations,
            norm_bound_of=self.norm_bound_of,
            retained_only=frozenset(self.retained_only),
            solves=solves,
            steps=steps,
        )

    def _record(
        self, witnesses: Array, index: Indices, probe: Indices, target: Indices, margin: Array
    ) -> None:
        order = np.argsort(margin, kind="stable")  # of several, the last one is kept
        order = order[~(self.margin_of[probe[order], target[order]] >= margin[order])]
        chosen = probe[order], target[order]
        self.status[chosen] = Status.FEASIBLE
        self.witness_of[chosen] = self._count + index[order]
        self.margin_of[chosen] = margin[order]
        self._witnesses.append(witnesses)
        self._count += len(witnesses)

    def _labels_of(self, key: Pair) -> Indices:
        extra = np.full(self.status.shape[0], -1, dtype=np.int64)
        if key != POLICY:
            extra[key[0]] = key[1]
        return np.append(self.labels, extra)

    def _train(self) -> Array:
        return self.data.equilibrated[: self.data.n_train]

    def _probes(self) -> Array:
        return self.data.equilibrated[self.data.n_train :]
