"""Solve every pair that no earlier witness settles, and prove each separator on the spot.

Deciding a pair is projecting a deep interior point of the training cone (the
least-squares classifier, mended and lengthened) onto the cone of the pair: the active set starts
empty and holds only the rows that the probe's label pushes against. That takes a dozen
changes where continuing the minimum-norm problem took ninety. Every separator found on
the way is a separator of the training set, so it may settle one class of every probe;
it is tried on those of its block whose turn has not come. Blocks are bounded, so that the
time a pair does not grow with the number of probes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from invariance.core._compiled import compiled, compiled_inside
from invariance.weakness.separability._active_set import EARLY_STOP, Combination, SolverOutcome
from invariance.weakness.separability._certificates import EPSILON
from invariance.weakness.separability._conditioning import Conditioned
from invariance.weakness.separability._kernels import (
    Factors,
    SeparationProblem,
    dots,
    lowest_margin,
    resume,
    workspace,
)

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

#: How much longer than a separator with margins of 1 the projected point is.
REACH = 100.0
#: Most probes that share their separators.
BLOCK = 1024
#: Most active rows of a separator of the training points.
_MOST_ACTIVE = 16_384
#: Marks a pair that no witness has settled.
OPEN = -1
#: Witnesses, and combinations, that are returned at a time.
_ROOM = 256


@dataclass(eq=False)
class PairSweep:
    """What one block's sweep found; combinations are not yet checked.

    Attributes:
        owner: ``(b, K)`` which witness provably gives a probe a class, else -1.
        margin: ``(b, K)`` that witness's smallest margin on the training points and the
            probe, divided by ``|W|`` and ``|x|``, less the rounding bound.
        witnesses: ``(w, K, p)`` classifiers on the given features, or none.
        combinations: ``(probe, class)`` to the Farkas combination found for it.
        solves: How many pairs were solved.
        steps: How many active-set changes they took.
    """

    owner: Indices
    margin: Array
    witnesses: Array
    combinations: dict[tuple[int, int], Combination]
    solves: int
    steps: int


class SweepProof(NamedTuple):
    """Given features of training points and a block's probes, and a classifier to change.

    Attributes:
        labels: ``(n,)`` training labels.
        unit: ``(p, n + b)`` the given features divided by their lengths.
        lifted: ``(n + b, p)`` what a solver's point adds to a classifier on the features.
        sizes: ``(n + b,)`` their lengths.
        start: ``(K, p)`` the classifier.
        start_scores: ``(K, n + b)`` its scores.
        start_size: ``(1,)`` length of its longest row.
        products: ``(slots, n + b)`` products of lifted points with all features.
        filled: ``(slots,)`` which of them are up to date.
        scores: ``(K, n + b)`` scratch.
        witness: ``(K, p)`` scratch.
    """

    labels: Indices
    unit: Array
    lifted: Array
    sizes: Array
    start: Array
    start_scores: Array
    start_size: Array
    products: Array
    filled: Flags
    scores: Array
    witness: Array


class Results(NamedTuple):
    """Room for what one call of the compiled sweep returns.

    Attributes:
        owner: ``(b, K)``; see :class:`PairSweep`.
        margin: ``(b, K)``.
        witnesses: ``(w, K, p)``.
        ends: ``(c, 3)`` probe and class of an inseparable pair, and where its rows end.
        entries: ``(e, 2)`` point and other class of the combinations' rows.
        weights: ``(e,)`` their multipliers.
    """

    owner: Indices
    margin: Array
    witnesses: Array
    ends: Indices
    entries: Indices
    weights: Array


@compiled_inside
def _prove(  # noqa: PLR0912 - one loop after another, compiled whole
    problem: SeparationProblem,
    factors: Factors,
    size: int,
    proof: SweepProof,
    first: int,
    results: Results,
    index: int,
    offset: int,
) -> bool:
    """Multiply out the start plus multipliers times active rows, on the given features.

    A score of a unit feature is a sum of ``p`` products, then of ``size + 1`` terms of
    lengths ``|start_c|`` and ``|multiplier| |lifted|``; an entry of the rounded witness is a
    sum of ``size + 1`` terms. Each term costs at most half an epsilon of the lengths' sum.
    """
    n_train, (n_classes, width) = proof.labels.size, proof.start.shape
    scores, witness, end = proof.scores, proof.witness, proof.scores.shape[1]
    for c in range(n_classes):
        for i in range(n_train):
            scores[c, i] = proof.start_scores[c, i]
        for i in range(n_train + first, end):
            scores[c, i] = proof.start_scores[c, i]
        for f in range(width):
            witness[c, f] = proof.start[c, f]
    length = proof.start_size[0]
    for k in range(size):
        point, other, weight = factors.active[k, 0], factors.active[k, 1], factors.multipliers[k]
        label, slot = problem.labels[point], problem.slot_of[point]
        if point == n_train:  # the probe whose turn it is
            point += first
        length += abs(weight) * proof.sizes[point]
        if not proof.filled[slot]:
            dots(proof.unit, proof.lifted[point], proof.products[slot])
            proof.filled[slot] = True
        products, plus, minus = proof.products[slot], scores[label], scores[other]
        for i in range(n_train):
            change = weight * products[i]
            plus[i] += change
            minus[i] -= change
        for i in range(n_train + first, end):
            change = weight * products[i]
            plus[i] += change
            minus[i] -= change
        for f in range(width):
            change = weight * proof.lifted[point, f]
            witness[label, f] += change
            witness[other, f] -= change
    reach = 4.0 * (width + 2 * size + 8) * EPSILON * length
    least = lowest_margin(proof.labels, scores, problem.own, problem.rival)[0]
    square = 0.0
    for c in range(n_classes):
        for f in range(width):
            square += witness[c, f] * witness[c, f]
    norm = np.sqrt(square)
    if not (least > reach and norm < np.inf):
        return False
    settled = False
    for i in range(first, end - n_train):
        best, high, second = 0, -np.inf, -np.inf
        for c in range(n_classes):
            value = scores[c, n_train + i]
            if value > high:
                best, high, second = c, value, high
            elif value > second:
                second = value
        if high - second > reach and results.owner[i, best] == OPEN:
            results.owner[i, best] = offset + index
            results.margin[i, best] = (min(least, high - second) - reach) / norm
            settled = True
    slot = index % results.witnesses.shape[0]
    for c in range(n_classes):
        for f in range(width):
            results.witnesses[slot, c, f] = witness[c, f]
    return settled


@compiled_inside
def _keep_combination(
    factors: Factors, size: int, point: int, other: int, results: Results, begin: int
) -> int:
    """Store the last combination from entry ``begin`` on; return where it ends."""
    for k in range(size):
        if factors.weights[k] < 0.0:
            results.entries[begin, 0] = factors.active[k, 0]
            results.entries[begin, 1] = factors.active[k, 1]
            results.weights[begin] = -factors.weights[k]
            begin += 1
    results.entries[begin, 0] = point
    results.entries[begin, 1] = other
    results.weights[begin] = 1.0
    return begin + 1


@compiled
def _sweep(  # noqa: PLR0912 - one loop, compiled whole
    problem: SeparationProblem,
    factors: Factors,
    proof: SweepProof,
    unseen: Array,
    base: Array,
    start: Array,
    separator: Array,
    results: Results,
    stop: float,
    begin: int,
    offset: int,
    keep: bool,
) -> tuple[int, int, int, int, int]:
    """Settle pairs from number ``begin`` on until done or until ``results`` is full.

    Shapes: ``unseen (b, r)``, ``base (K, n + 1)``, ``start (K, r)``, ``separator (K, r)``.
    """
    n_probes, n_classes = results.owner.shape
    last, width = problem.labels.size - 1, unseen.shape[1]
    # Not a literal zero, for which numba would compile once more what it is passed to.
    zero = begin - begin
    n_witnesses = n_combinations = n_entries = solves = steps = zero
    loaded = -1
    for pair in range(begin, n_probes * n_classes):
        probe, target = pair // n_classes, pair % n_classes
        if results.owner[probe, target] != OPEN:
            continue
        if (
            (keep and n_witnesses == results.witnesses.shape[0])
            or n_combinations == results.ends.shape[0]
            or n_entries + factors.multipliers.size >= results.weights.size
        ):
            return pair, n_witnesses, n_combinations, solves, steps
        if 2 * problem.used[0] > problem.point_of.size:
            for slot in range(problem.used[0]):
                problem.slot_of[problem.point_of[slot]] = -1
                proof.filled[slot] = False
            problem.used[0] = 0
        if probe != loaded:
            loaded = probe
            x = unseen[probe]
            for f in range(width):
                problem.rows[last, f] = problem.columns[f, last] = x[f]
            for c in range(n_classes):
                base[c, last] = 0.0
                for f in range(width):
                    base[c, last] += start[c, f] * x[f]
            for slot in range(problem.used[0]):
                point, row = problem.point_of[slot], problem.products[slot]
                if point == last:
                    dots(problem.columns, x, row)
                    proof.filled[slot] = False
                else:
                    row[last] = 0.0
                    for f in range(width):
                        row[last] += problem.rows[point, f] * x[f]
        problem.labels[last] = target
        for c in range(n_classes):
            for i in range(last + 1):
                problem.scores[c, i] = base[c, i]
            for f in range(width):
                separator[c, f] = start[c, f]
        outcome, size, used, point, other = resume(problem, factors, zero, separator, stop)
        solves += 1
        steps += used
        if outcome == 1:
            if _prove(problem, factors, size, proof, probe, results, n_witnesses, offset):
                n_witnesses += 1
        elif outcome == -1:
            n_entries = _keep_combination(factors, size, point, other, results, n_entries)
            results.ends[n_combinations, 0] = probe
            results.ends[n_combinations, 1] = target
            results.ends[n_combinations, 2] = n_entries
            n_combinations += 1
    return n_probes * n_classes, n_witnesses, n_combinations, solves, steps


def separate_training(
    points: Array, labels: Indices, n_classes: int
) -> tuple[SolverOutcome, Array, Combination | None]:
    """Find the minimum-norm separator of the first ``len(labels)`` points.

    Shapes: ``points (m, r)``, ``labels (n,)``; returns ``(K, r)``.
    """
    start = np.zeros((n_classes, points.shape[1]))
    return separate(points, np.arange(len(labels)), labels, start, stop=1.0 - 1e-9)


def separate(
    points: Array, labelled: Indices, labels: Indices, start: Array, *, stop: float = EARLY_STOP
) -> tuple[SolverOutcome, Array, Combination | None]:
    """Find the separator of labelled points that is nearest to ``start``.

    Shapes: ``points (m, r)``, ``labelled (k,)``, ``labels (k,)``, ``start (K, r)``; returns ``(K,
    r)``.
    """
    # The pair of the last point and its label, with the others as training points.
    rows, target = points[labelled], int(labels[-1])
    start = np.ascontiguousarray(start)
    count, n_classes = len(rows), len(start)
    problem, factors = workspace(rows, labels, n_classes, most_active=_MOST_ACTIVE)
    nothing = _proof(
        labels[:-1], np.empty((count, 0)), np.empty((count, 0)), np.empty((n_classes, 0)), problem
    )
    owner = np.where(np.arange(n_classes) == target, OPEN, OPEN - 1)[None]
    results = _results(owner, np.zeros(owner.shape), nothing, factors, 1)
    separator = np.empty_like(start)
    _, _, refuted, _, _ = _sweep(
        problem, factors, nothing, rows[-1:], start @ problem.columns, start, separator, results,
        stop, 0, 0, False,
    )  # fmt: skip
    if not refuted:
        reached = smallest_margin(rows @ separator.T, labels) >= 0.99 * stop
        return SolverOutcome.SEPARATED if reached else SolverOutcome.STUCK, separator, None
    (end,) = results.ends[:1, 2].tolist()
    entries = results.entries[:end]
    combination = Combination(labelled[entries[:, 0]], entries[:, 1], results.weights[:end])
    return SolverOutcome.INSEPARABLE, separator, combination


def smallest_margin(scores: Array, labels: Indices) -> float:
    """Return by how much each label's score leads, at least; ``scores`` is ``(m, K)``."""
    order = np.arange(len(labels))
    own, rival = scores[order, labels], scores.copy()
    rival[order, labels] = -np.inf
    return float((own - rival.max(axis=1)).min())


def sweep_pairs(
    data: Conditioned,
    labels: Indices,
    separator: Array,
    probes: Indices,
    settled: Flags,
    *,
    keep_witnesses: bool = True,
) -> PairSweep:
    """Settle the pairs of a block of probes, sharing each separator among them.

    Shapes: ``labels (n,)``, ``separator (K, r)``, ``probes (b,)``, ``settled (b, K)``.
    """
    n_train, n_classes = data.n_train, separator.shape[0]
    rows = np.append(np.arange(n_train), n_train + probes)
    start = REACH * separator
    problem, factors = workspace(
        np.vstack([data.points[:n_train], data.points[:1]]), np.append(labels, 0), n_classes
    )
    base = start @ problem.columns
    proof = _proof(
        labels,
        data.equilibrated[rows],
        data.points[rows] @ data.basis.T,
        start @ data.basis.T,
        problem,
    )
    owner = np.where(settled, OPEN - 1, OPEN)
    margin = np.full(owner.shape, np.nan)
    unseen = data.points[rows[n_train:]]
    witnesses: list[Array] = [np.empty((0, *proof.start.shape))]
    combinations: dict[tuple[int, int], Combination] = {}
    pair = count = solves = steps = 0
    while pair < owner.size:
        results = _results(owner, margin, proof, factors, _ROOM if keep_witnesses else 1)
        pair, stored, found, more_solves, more_steps = _sweep(
            problem, factors, proof, unseen, base, start, np.empty_like(start), results,
            EARLY_STOP, pair, count, keep_witnesses,
        )  # fmt: skip
        count, solves, steps = count + stored, solves + more_solves, steps + more_steps
        if keep_witnesses:
            witnesses.append(results.witnesses[:stored])
        begin = 0
        for row, target, end in results.ends[:found].tolist():
            where = results.entries[begin:end, 0]
            combinations[int(probes[row]), target] = Combination(
                np.where(where == n_train, rows[n_train + row], where),
                results.entries[begin:end, 1],
                results.weights[begin:end],
            )
            begin = end
    return PairSweep(owner, margin, np.concatenate(witnesses), combinations, solves, steps)


def _proof(
    labels: Indices, given: Array, lifted: Array, classifier: Array, problem: SeparationProblem
) -> SweepProof:
    """Lay out what separators are proved on: training points and probes ``given``."""
    lengths = np.linalg.norm(given, axis=1)
    unit = np.ascontiguousarray((given / np.where(lengths > 0.0, lengths, 1.0)[:, None]).T)
    slots = len(problem.point_of)
    return SweepProof(
        labels=np.ascontiguousarray(labels),
        unit=unit,
        lifted=lifted,
        sizes=np.linalg.norm(lifted, axis=1),
        start=classifier,
        start_scores=classifier @ unit,
        start_size=np.linalg.norm(classifier, axis=1).max(keepdims=True),
        products=np.empty((slots, unit.shape[1])),
        filled=np.zeros(slots, dtype=np.bool_),
        scores=np.empty((len(classifier), unit.shape[1])),
        witness=np.empty_like(classifier),
    )


def _results(
    owner: Indices, margin: Array, proof: SweepProof, factors: Factors, witnesses: int
) -> Results:
    """Make room for one call's findings."""
    room = _ROOM * 32 + len(factors.multipliers) + 1
    return Results(
        owner,
        margin,
        np.empty((witnesses, *proof.start.shape)),
        np.empty((_ROOM, 3), np.int64),
        np.empty((room, 2), np.int64),
        np.empty(room),
    )
