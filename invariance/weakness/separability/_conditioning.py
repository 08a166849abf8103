"""Coordinates in which separability is decided: scaled, whitened, one unit ray a point.

Feasibility of a system of strict, homogeneous inequalities in ``(W, b)`` does not change
under an invertible affine map of the features, nor when a point is scaled by a positive
number. Four steps:

1. **Equilibrate**: columns that are zero on every training point are set aside (they
   decide which probes are free); every other column is multiplied by a power of two that
   brings its largest entry into [1, 2), and a column of ones is appended for the bias.
   Powers of two are exact, so certificates checked here are statements about the given
   floating-point features themselves.
2. **Select** independent columns by a QR factorisation of the training rows with column
   pivoting: diagonal entries above ``rank_tolerance`` times the first count. The tolerance
   follows the precision of the network's parameters, because a unit split in two (say)
   duplicates a feature only up to that precision. Usually every column is selected.
3. **Whiten** the selected columns by a singular value decomposition.
4. **Normalise** every point to unit length.

A probe is *free* when it leaves the span of the training points: it activates a column
that is zero on all of them, or a column that was not selected differs, relatively by
more than the tolerance, from what the selected ones give on the training points. A
classifier can then be changed at the probe alone, so all K classes are feasible.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.linalg import qr, solve_triangular

Array = npt.NDArray[np.float64]

#: Relative cut of the rank rule, by the precision of the network's parameters. Genuine
#: directions of trained networks lie above 1e-4, duplicated ones below a few epsilons.
RANK_TOLERANCE_SINGLE = 2e-6
RANK_TOLERANCE_DOUBLE = 1e-11


def default_rank_tolerance(epsilon: float) -> float:
    """Return the rank tolerance for parameters of machine epsilon ``epsilon``."""
    return RANK_TOLERANCE_DOUBLE if epsilon < 1e-12 else RANK_TOLERANCE_SINGLE


@dataclass(frozen=True, eq=False)
class Conditioned:
    """Training points and probes in the coordinates that the solver uses.

    Attributes:
        n_train: How many of the rows are training points (the first ones).
        points: ``(n + u, r)`` whitened rows of unit length.
        lengths: ``(n + u,)`` lengths of the whitened rows before normalisation.
        equilibrated: ``(n + u, p)`` the features with columns scaled by powers of two,
            the bias column of ones last (if there is a bias). An exact image of the input.
        retained: ``(n + u, r)`` the coordinates that the rank rule retains: the selected
            columns of ``equilibrated``, or all of it where none was cut.
        basis: ``(p, r)`` with ``equilibrated @ basis`` whitened, before normalisation.
        free: ``(u,)`` whether a probe leaves the training span.
        escape: ``(u, p + z)`` for a free probe, a direction in which the classifier can be
            changed without effect on any training point; zero rows elsewhere. The last
            ``z`` entries belong to the columns set aside.
        dead: ``(u, z)`` the probes' entries in the columns that are zero on all training
            points, scaled by powers of two.
        rank: Rank r of the training rows.
        full_rank: True if every column was selected, so that whitening is invertible.
        relation: ``(p, q)`` for each of the q columns that were not selected, the column
            minus its combination of selected ones: zero on training points to tolerance.
        rank_tolerance: The relative cut that was used.
    """

    n_train: int
    points: Array
    lengths: Array
    equilibrated: Array
    retained: Array
    basis: Array
    free: npt.NDArray[np.bool_]
    escape: Array
    dead: Array
    rank: int
    full_rank: bool
    relation: Array
    rank_tolerance: float


def condition(
    train: Array, unseen: Array, *, bias: bool = True, rank_tolerance: float = RANK_TOLERANCE_DOUBLE
) -> Conditioned:
    """Bring training points and probes into well-conditioned coordinates.

    Shapes: ``train (n, d)``, ``unseen (u, d)``.
    """
    alive = (train != 0.0).any(axis=0)
    equilibrated, dead = _equilibrate(train, unseen, alive, bias)
    n_train = train.shape[0]
    selected, relation = _select(equilibrated[:n_train], rank_tolerance)
    full_rank = len(selected) == equilibrated.shape[1]
    retained = equilibrated if full_rank else np.ascontiguousarray(equilibrated[:, selected])
    basis = np.zeros((equilibrated.shape[1], len(selected)))
    if len(selected):
        _, spectrum, right = np.linalg.svd(retained[:n_train], full_matrices=False)
        basis[np.arange(len(basis)) if full_rank else selected] = (right / spectrum[:, None]).T
    points, lengths = _normalise(equilibrated @ basis)
    deviation = _deviation(equilibrated[n_train:], relation, rank_tolerance)
    # In the direction ``relation @ deviation`` no training point moves, and the probe does.
    escape, sizes = _normalise(np.hstack([deviation @ relation.T, dead]))
    return Conditioned(
        n_train=n_train,
        points=points,
        lengths=lengths,
        equilibrated=equilibrated,
        retained=retained,
        basis=basis,
        free=sizes > 0.0,
        escape=escape,
        dead=dead,
        rank=len(selected),
        full_rank=full_rank,
        relation=relation,
        rank_tolerance=rank_tolerance,
    )


def _select(rows: Array, tolerance: float) -> tuple[npt.NDArray[np.int64], Array]:
    """Select independent columns; relate the others to them."""
    width = rows.shape[1]
    if not width:  # every feature is zero on every training point, and there is no bias
        return np.zeros(0, dtype=np.int64), np.zeros((0, 0))
    upper, pivots = qr(rows, mode="r", pivoting=True)
    diagonal = np.abs(np.diag(upper))
    rank = int((diagonal > tolerance * diagonal[0]).sum())
    selected, others = pivots[:rank], pivots[rank:]
    relation = np.zeros((width, width - rank))
    relation[others, np.arange(width - rank)] = 1.0
    relation[selected] = -solve_triangular(upper[:rank, :rank], upper[:rank, rank:])
    return np.sort(selected).astype(np.int64), relation


def _normalise(rows: Array) -> tuple[Array, Array]:
    """Rows of unit length (zero rows stay), and the lengths."""
    lengths = np.linalg.norm(rows, axis=1)
    safe = np.where(lengths > 0.0, lengths, 1.0)
    return np.ascontiguousarray(rows / safe[:, None]), lengths


def _deviation(rows: Array, relation: Array, tolerance: float) -> Array:
    """How far each row is from the relations, where that is more than round-off."""
    deviation = rows @ relation
    scale = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(np.abs(deviation) > tolerance * scale, deviation, 0.0)


def with_escapes(conditioned: Conditioned, probes: npt.NDArray[np.int64]) -> Conditioned:
    """Add the directions that only probes have as coordinates, so that no probe is free.

    Probes that leave the training span can still depend on each other: two that activate
    the same otherwise dead feature do. In these coordinates they are ordinary points.
    """
    data, n_train = conditioned, conditioned.n_train
    rows = np.append(np.arange(n_train), n_train + probes)
    dead = data.dead[probes]
    dead = dead[:, dead.any(axis=0)]
    n_dead, width = dead.shape[1], data.equilibrated.shape[1]
    live = data.equilibrated[rows]
    features = np.hstack([live, np.vstack([np.zeros((n_train, n_dead)), dead])])
    deviation = _deviation(live[n_train:], data.relation, data.rank_tolerance)
    rank, directions = independent_directions(np.hstack([deviation, dead]))
    if rank == n_dead and not deviation.any():
        directions = np.eye(n_dead, data.relation.shape[1] + n_dead, data.relation.shape[1])
    escapes = np.vstack([np.zeros((n_train, rank)), np.hstack([deviation, dead]) @ directions.T])
    outward = np.zeros((width + n_dead, data.relation.shape[1] + n_dead))
    outward[:width, : data.relation.shape[1]] = data.relation
    outward[width:, data.relation.shape[1] :] = np.eye(n_dead)
    whiten = np.vstack([data.basis, np.zeros((n_dead, data.rank))])
    points, lengths = _normalise(np.hstack([features @ whiten, escapes]))
    full_rank = data.full_rank and rank == n_dead
    return Conditioned(
        n_train=n_train,
        points=points,
        lengths=lengths,
        equilibrated=np.ascontiguousarray(features),
        retained=np.ascontiguousarray(
            features if full_rank else np.hstack([data.retained[rows], escapes])
        ),
        basis=np.hstack([whiten, outward @ directions.T]),
        free=np.zeros(len(probes), dtype=bool),
        escape=np.zeros_like(features[n_train:]),
        dead=np.zeros((len(probes), 0)),
        rank=data.rank + rank,
        full_rank=full_rank,
        relation=np.zeros((width + n_dead, 0)),
        rank_tolerance=data.rank_tolerance,
    )


def reordered(conditioned: Conditioned, order: npt.NDArray[np.int64]) -> Conditioned:
    """Return the same points with the probes in another order."""
    data = conditioned
    rows = np.append(np.arange(data.n_train), data.n_train + order)
    return replace(
        data,
        points=data.points[rows],
        lengths=data.lengths[rows],
        equilibrated=data.equilibrated[rows],
        retained=data.retained[rows],
        free=data.free[order],
        escape=data.escape[order],
        dead=data.dead[order],
    )


def independent_directions(vectors: Array) -> tuple[int, Array]:
    """Return the rank of unit-scale rows, and an orthonormal basis of their span."""
    if not vectors.any():
        return 0, np.zeros((0, vectors.shape[1]))
    sizes = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, sizes, out=np.zeros_like(vectors), where=sizes > 0.0)
    _, values, right = np.linalg.svd(unit, full_matrices=False)
    rank = int((values > RANK_TOLERANCE_DOUBLE * values[0]).sum())
    return rank, right[:rank]


def jointly_free(conditioned: Conditioned) -> npt.NDArray[np.bool_]:
    """Which probes leave the span of the training points AND all other probes.

    Shapes: returns ``(u,)``.
    """
    escapes = conditioned.escape
    free = np.flatnonzero(conditioned.free)
    result = np.zeros(len(escapes), dtype=bool)
    rank, _ = independent_directions(escapes[free])
    for probe in free:
        others = escapes[free[free != probe]]
        result[probe] = independent_directions(others)[0] < rank
    return result


def _equilibrate(
    train: Array, unseen: Array, alive: npt.NDArray[np.bool_], bias: bool
) -> tuple[Array, Array]:
    """Scale columns by powers of two; return the live columns (with bias) and the dead."""
    both = np.vstack([train, unseen])
    largest = np.abs(train).max(axis=0, initial=0.0)
    largest = np.where(alive, largest, np.abs(both).max(axis=0, initial=0.0))
    exponent = np.frexp(np.where(largest > 0.0, largest, 1.0))[1] - 1
    scaled = np.ldexp(both, -exponent)
    live = scaled[:, alive]
    if bias:
        live = np.hstack([live, np.ones((both.shape[0], 1))])
    return np.ascontiguousarray(live), scaled[train.shape[0] :, ~alive]
