"""The book of certified verdicts: nothing enters it without a check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from invariance.weakness.separability._active_set import Combination
from invariance.weakness.separability._certificates import EPSILON, check_witnesses, norm_bounds
from invariance.weakness.separability._conditioning import Conditioned
from invariance.weakness.separability._exact_proofs import is_exactly_infeasible
from invariance.weakness.separability._pair_sweep import PairSweep

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Pair = tuple[int, int]

#: The key of the training set itself among pairs (probe, class).
TRAINING_SET: Pair = (-1, -1)
#: Rows up to which rational arithmetic costs less than a millisecond or two.
_SMALL = 10


class Status(IntEnum):
    """The verdict on one pair, or on the training set itself."""

    UNDECIDED = 0
    FEASIBLE = 1
    INFEASIBLE = -1


@dataclass(frozen=True, eq=False)
class PairVerdicts:
    """Certified verdicts on every pair of one network.

    Attributes:
        policy: Whether the training points alone are linearly separable.
        status: ``(u, K)`` int8 array of :class:`Status` values.
        free: ``(u,)`` probes that leave the span of the training points.
        witnesses: ``(w, K, p + z)`` classifiers on the scaled features, see
            ``Conditioned``; the last z columns act
            on features that are zero on every training point. Empty where not wanted.
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

    Shapes: returns ``(len(entries),)``.
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
class CertificateBook:
    """Collects witnesses and combinations, checks each, and keeps what they prove.

    Attributes:
        data: Training points and probes.
        labels: ``(n,)`` training labels.
        n_classes: Number of classes K.
        tolerance: Largest relative residual of a combination.
        keep_witnesses: Whether to keep the witnesses themselves, not only what they prove.
    """

    data: Conditioned
    labels: Indices
    n_classes: int
    tolerance: float
    keep_witnesses: bool = True
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

        Shapes: ``separators (w, K, r)``.
        """
        witnesses = separators @ self.data.basis.T
        check = check_witnesses(witnesses, self._train(), self.labels, self._probes())
        # A free probe's dead features were not multiplied out: those pairs come later.
        index, probe = np.nonzero((check.proved >= 0) & ~self.data.free)
        margin = np.minimum(check.margin[index], check.probe_margin[index, probe])
        order = np.argsort(margin, kind="stable")  # of several, the last one is kept
        index, probe, margin = index[order], probe[order], margin[order]
        target = check.proved[index, probe]
        better = ~(self.margin_of[probe, target] >= margin)
        index, probe, target, margin = index[better], probe[better], target[better], margin[better]
        self._enter(probe, target, self._count + index, margin)
        if self.keep_witnesses:
            self._witnesses.append(self._padded(witnesses))
        self._count += len(witnesses)
        if check.separates.any():
            self.policy = Status.FEASIBLE
        return bool(check.separates[0])

    def add_sweep(self, probes: Indices, sweep: PairSweep) -> None:
        """Take over what a sweep has proved, and check the combinations that it found."""
        block, target = np.nonzero(sweep.owner >= 0)
        probe = probes[block]
        owner = sweep.owner[block, target]
        self._enter(probe, target, self._count + owner, sweep.margin[block, target])
        if self.keep_witnesses:
            self._witnesses.append(self._padded(sweep.witnesses))
        self._count += int(owner.max(initial=-1)) + 1
        self.add_combinations(sweep.combinations)

    def settle_free(self, separator: Array) -> None:
        """Prove every class of every free probe: change a classifier where only it looks.

        Class t's witness adds a multiple of the probe's direction to row t of one classifier,
        so on training points it moves one score by as much as it errs.

        Shapes: ``separator (K, r)``.
        """
        data, n_dead, targets = self.data, self.data.dead.shape[1], np.arange(self.n_classes)
        base = separator @ data.basis.T
        train, lengths = self._train(), np.linalg.norm(self._train(), axis=1)
        lengths = np.where(lengths > 0.0, lengths, 1.0)
        scores = train @ base.T
        own = scores[np.arange(len(train)), self.labels]
        rival = np.where(self.labels[:, None] == targets, -np.inf, scores)
        best = rival.max(axis=1)
        longest = float(np.linalg.norm(base, axis=1).max())
        for probe in np.flatnonzero(data.free):
            point = np.append(self._probes()[probe], data.dead[probe])
            direction = data.escape[probe].copy()
            if n_dead and data.dead[probe].any():
                direction[:-n_dead] = 0.0  # exactly invisible to every training point
            live = direction[: len(direction) - n_dead]
            given = base @ point[: len(live)]
            lift = 2.0 * (np.ptp(given) + np.abs(base).max()) / float(direction @ point)
            # Row t errs by ``moved`` on training points of other classes, and so on its own.
            length = float(np.linalg.norm(direction))
            moved = np.abs(train @ live) * abs(lift)
            slope = 4.0 * (len(point) + 8) * EPSILON * (longest + abs(lift) * length)
            slack = float(((own - best - moved) / lengths).min(initial=np.inf)) - slope
            raised = given + lift * float(direction @ point)
            others = np.where(np.eye(self.n_classes, dtype=bool), -np.inf, given).max(axis=1)
            lead = (raised - others) / float(np.linalg.norm(point)) - slope
            hits = np.flatnonzero(np.minimum(slack, lead) > 0.0)
            square = (base**2).sum() + 2.0 * lift * (base @ live) + (lift * length) ** 2
            margin: Array = np.asarray(np.minimum(slack, lead) / np.sqrt(square), dtype=np.float64)
            self._enter(np.full(len(hits), probe), hits, self._count + hits, margin[hits])
            if self.keep_witnesses:
                stack = self._padded(np.repeat(base[None], self.n_classes, axis=0))
                stack[targets, targets] += lift * direction
                self._witnesses.append(stack)
            self._count += self.n_classes

    def add_combinations(self, combinations: Mapping[Pair, Combination]) -> None:
        """Check Farkas combinations, by pair or for :data:`TRAINING_SET`, and keep the proofs."""
        keys = list(combinations)
        entries = [combinations[key] for key in keys]
        labels = [self._labels_of(key, entry.points) for key, entry in combinations.items()]
        proofs, bounds = prove(self.data, entries, labels, self.n_classes, self.tolerance)
        for key, entry, proof, bound in zip(keys, entries, proofs, bounds, strict=True):
            if proof == Proof.NOTHING:
                continue
            if proof == Proof.RETAINED:
                self.retained_only.add(key)
            if key == TRAINING_SET:
                self.policy = Status.INFEASIBLE
                self.status[:] = Status.INFEASIBLE
            else:
                self.status[key] = Status.INFEASIBLE
            self.combinations[key] = entry
            self.norm_bound_of[key] = float(bound)

    def verdicts(self, solves: int = 0, steps: int = 0) -> PairVerdicts:
        """Close the book."""
        data = self.data
        width = data.equilibrated.shape[1] + data.dead.shape[1]
        return PairVerdicts(
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

    def _enter(self, probe: Indices, target: Indices, witness: Indices, margin: Array) -> None:
        self.status[probe, target] = Status.FEASIBLE
        self.witness_of[probe, target] = witness if self.keep_witnesses else -1
        self.margin_of[probe, target] = margin

    def _padded(self, witnesses: Array) -> Array:
        """Witnesses that look at no feature that is zero on every training point."""
        return np.pad(witnesses, ((0, 0), (0, 0), (0, self.data.dead.shape[1])))

    def _labels_of(self, key: Pair, points: Indices) -> Indices:
        n_train = len(self.labels)
        own = self.labels[np.minimum(points, n_train - 1)]
        return np.where(points < n_train, own, key[1])

    def _train(self) -> Array:
        return self.data.equilibrated[: self.data.n_train]

    def _probes(self) -> Array:
        return self.data.equilibrated[self.data.n_train :]
