"""The tree of labelings that a policy leaves open, one unseen point a level.

A node is a labeling of the first few points, some perhaps left out; its children label
the next point with each class that stays jointly feasible. Three things save solves:
every separator found is a witness for all prefixes of the labeling that it gives the
points; every Farkas combination names the few labels that clash, and no node that
holds those is solved again; and a solve continues its parent's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from invariance.core._errors import MeasureError
from invariance.weakness.extensions._kernels import expand, points_of
from invariance.weakness.separability._active_set import Combination
from invariance.weakness.separability._certificates import check_witnesses
from invariance.weakness.separability._certified import Proof, prove
from invariance.weakness.separability._conditioning import Conditioned
from invariance.weakness.separability._fallback import candidates
from invariance.weakness.separability._kernels import State, first_state
from invariance.weakness.separability._pair_sweep import REACH

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

#: The mark of a point that a partial labeling leaves out.
UNLABELLED = -1
#: Separators that a node remembers as its own; more would only cost memory.
_REMEMBERED = 256


class BudgetError(MeasureError):
    """Counting exactly would take more solves than allowed."""


@dataclass(frozen=True, eq=False)
class Node:
    """A jointly feasible labeling of the first points.

    Attributes:
        prefix: Labels of the first ``len(prefix)`` points, :data:`UNLABELLED` for none.
        matching: ``(k,)`` indices of known separators that give those labels.
        state: Where the solver stood at the nearest ancestor that was solved.
    """

    prefix: tuple[int, ...]
    matching: Indices
    state: State


@dataclass(eq=False)
class ExtensionTree:
    """Finds the children of nodes, each verdict certified.

    Attributes:
        data: Training points and probes, none of them free.
        labels: ``(n,)`` training labels.
        n_classes: Number of classes K.
        separator: ``(K, r)`` a proved separator of the training points.
        tolerance: Largest relative residual of a Farkas combination.
        budget: Most solves before :class:`BudgetError`; ``None`` for no limit.
        solves: How many solves were needed so far.
        undecided: How many children could neither be proved feasible nor infeasible.
    """

    data: Conditioned
    labels: Indices
    n_classes: int
    separator: Array
    tolerance: float
    budget: int | None = None
    solves: int = 0
    undecided: int = 0
    _separators: list[Array] = field(default_factory=list)
    _given: Indices = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    _clashes: dict[tuple[int, int], list[list[tuple[int, int]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._given = np.zeros((16, self.n_points), dtype=np.int64)
        self._points = points_of(self.data, self.labels)
        if self._enter([REACH * self.separator]) == [None]:
            raise MeasureError("The separator given does not separate the training points.")

    @property
    def n_points(self) -> int:
        """Number of unseen points, the tree's depth."""
        return int(self.data.points.shape[0]) - self.data.n_train

    def refuse(self, point: int, target: int) -> None:
        """Enter a pair that is known to be infeasible on its own."""
        self._clashes.setdefault((point, target), []).append([])

    def root(self) -> Node:
        """The empty labeling."""
        state = first_state(REACH * self.separator)
        return Node((), np.arange(len(self._separators)), state)

    def children(self, node: Node, *, skip: bool) -> list[Node]:
        """List a node's children: every feasible class of the next point."""
        found = []
        if skip:
            found.append(replace(node, prefix=(*node.prefix, UNLABELLED)))
        depth = len(node.prefix)
        given = self._given[node.matching, depth]
        matching = [node.matching[given == target] for target in range(self.n_classes)]
        missing = [
            target
            for target in range(self.n_classes)
            if not len(matching[target]) and not self._clashes_known(node.prefix, (depth, target))
        ]
        state = node.state
        if missing:
            witnesses, state = self._solve(node, missing)
        else:
            witnesses = []
        for target, witness in zip(missing, witnesses, strict=True):
            if witness is not None:
                matching[target] = np.array([witness])
        for target, known in enumerate(matching):
            if len(known):
                prefix = (*node.prefix, target)
                found.append(Node(prefix, known[:_REMEMBERED], state))
        return found

    def _solve(self, node: Node, targets: list[int]) -> tuple[list[int | None], State]:
        """For each child, return the index of a separator, or None if it is infeasible."""
        if self.budget is not None and self.solves + len(targets) > self.budget:
            raise BudgetError(f"Counting exactly needs more than {self.budget} solves.")
        self.solves += len(targets)
        named = [(j, label) for j, label in enumerate(node.prefix) if label != UNLABELLED]
        depth = len(node.prefix)
        answer = expand(self.data, self._points, named, depth, targets, node.state)
        indices = [
            self._keep(separator, given) if checked else None
            for separator, given, checked in zip(
                answer.separators, answer.given, answer.checked, strict=True
            )
        ]
        witnesses: list[int | None] = []
        for target, index, combination in zip(targets, indices, answer.combinations, strict=True):
            labelling = [*named, (depth, target)]
            if combination is not None:
                settled, witness = self._refute(combination, labelling), None
            else:
                settled, witness = self._fits(index, labelling)
            witnesses.append(witness if settled else self._insist(labelling))
        return witnesses, answer.state

    def _insist(self, named: list[tuple[int, int]]) -> int | None:
        """Try the fallback methods until one of their answers can be proved."""
        labelled, labels = self._labelled(named)
        for candidate in candidates(self.data.points, labelled, labels, self.n_classes):
            if isinstance(candidate, Combination):
                settled, witness = self._refute(candidate, named), None
            else:
                settled, witness = self._fits(self._enter([candidate])[0], named)
            if settled:
                return witness
        self.undecided += 1
        return None

    def _labelled(self, named: list[tuple[int, int]]) -> tuple[Indices, Indices]:
        where, labels = np.array(named, dtype=np.int64).T
        return (
            np.append(np.arange(self.data.n_train), self.data.n_train + where),
            np.append(self.labels, labels),
        )

    def _fits(self, index: int | None, named: list[tuple[int, int]]) -> tuple[bool, int | None]:
        """Whether a checked separator gives the labels, and its index if so."""
        if index is None:
            return False, None
        given = self._given[index]
        fits = all(given[j] == label for j, label in named)
        return fits, index if fits else None

    def _enter(self, separators: list[Array]) -> list[int | None]:
        """Check separators; keep each that holds with the labels that it provably gives."""
        if not separators:
            return []
        data = self.data
        check = check_witnesses(
            np.stack(separators) @ data.basis.T,
            data.equilibrated[: data.n_train],
            self.labels,
            data.equilibrated[data.n_train :],
        )
        indices: list[int | None] = []
        for separator, separates, proved in zip(
            separators, check.separates, check.proved, strict=True
        ):
            if not separates:
                indices.append(None)
                continue
            indices.append(self._keep(separator, proved))
        return indices

    def _keep(self, separator: Array, given: Indices) -> int:
        """Store a checked separator and the labels that it provably gives."""
        index = len(self._separators)
        if index == len(self._given):
            self._given = np.concatenate([self._given, np.zeros_like(self._given)])
        self._given[index] = given
        self._separators.append(separator)
        return index

    def _refute(self, combination: Combination, named: list[tuple[int, int]]) -> bool:
        """Check a combination; remember which labels clash."""
        data = self.data
        labels = np.append(self.labels, np.full(self.n_points, UNLABELLED))
        for j, label in named:
            labels[data.n_train + j] = label
        entry_labels = labels[combination.points]
        proofs, _ = prove(data, [combination], [entry_labels], self.n_classes, self.tolerance)
        if proofs[0] == Proof.NOTHING:
            return False
        used = combination.points[combination.weights > 0.0] - data.n_train
        clash = sorted({(int(j), int(labels[data.n_train + j])) for j in used if j >= 0})
        if clash:
            self._clashes.setdefault(clash[-1], []).append(clash[:-1])
        return True

    def _clashes_known(self, prefix: tuple[int, ...], last: tuple[int, int]) -> bool:
        return any(
            all(prefix[j] == label for j, label in clash) for clash in self._clashes.get(last, ())
        )
