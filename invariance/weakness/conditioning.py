"""Coordinates in which separability is decided: scaled, whitened, one unit ray a point.

Feasibility of a system of strict, homogeneous inequalities in ``(W, b)`` does not change
under an invertible affine map of the features, nor when a point is scaled by a positive
number. Three maps of that kind, in order:

1. **Equilibrate**: columns that are zero on every training point are set aside (they
   decide which probes are free); every other column is multiplied by a power of two that
   brings its largest entry into [1, 2), and a column of ones is appended for the bias.
   Powers of two are exact, so certificates checked here are statements about the given
   floating-point features themselves.
2. **Whiten** by a singular value decomposition of the training rows, cut to their rank:
   singular values above ``rank_tolerance`` times the largest count. The tolerance
   follows the precision of the network's parameters, because a unit split in two (say)
   duplicates a feature only up to that precision.
3. **Normalise** every point to unit length.

A probe is *free* when it leaves the span of the training points: it activates a column
that is zero on all of them, or has a component outside the retained singular subspace.
A classifier can then be changed at the probe alone, so all K classes are feasible.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: Relative cut of singular values, by the precision of the network's parameters. Genuine
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
        basis: ``(p, r)`` with ``equilibrated @ basis`` whitened, before normalisation.
        free: ``(u,)`` whether a probe leaves the training span.
        escape: ``(u, p + z)`` for a free probe, a direction in which the classifier can be
            changed without effect on any training point; zero rows elsewhere. The last
            ``z`` entries belong to the columns set aside.
        dead: ``(u, z)`` the probes' entries in the columns that are zero on all training
            points, scaled by powers of two.
        rank: Rank r of the training rows.
        full_rank: True if no singular value was cut, so that whitening is invertible.
        spectrum: ``(min(n, p),)`` singular values of the equilibrated training rows.
        rank_tolerance: The relative cut that was used.
    """

    n_train: int
    points: Array
    lengths: Array
    equilibrated: Array
    basis: Array
    free: npt.NDArray[np.bool_]
    escape: Array
    dead: Array
    rank: int
    full_rank: bool
    spectrum: Array
    rank_tolerance: float


def condition(
    train: Array, unseen: Array, *, bias: bool = True, rank_tolerance: float = RANK_TOLERANCE_DOUBLE
) -> Conditioned:
    """Bring training points and probes into well-conditioned coordinates.

    Args:
        train: ``(n, d)`` finite features of the training points.
        unseen: ``(u, d)`` finite features of the probes.
        bias: Whether classifiers have a bias.
        rank_tolerance: Relative cut of singular values; also the relative size above
            which a probe's component outside the training span makes it free.

    Returns:
        The :class:`Conditioned` points.
    """
    alive = (train != 0.0).any(axis=0)
    equilibrated, dead = _equilibrate(train, unseen, alive, bias)
    n_train = train.shape[0]
    rows = equilibrated[:n_train]
    if rows.shape[1]:
        _, spectrum, right = np.linalg.svd(rows, full_matrices=False)
    else:  # every feature is zero on every training point, and there is no bias
        spectrum, right = np.zeros(0), np.zeros((0, 0))
    rank = int((spectrum > rank_tolerance * spectrum[:1]).sum())
    full_rank = rank == equilibrated.shape[1]
    retained = right[:rank]
    basis = (retained / spectrum[:rank, None]).T
    whitened = equilibrated @ basis
    lengths = np.linalg.norm(whitened, axis=1, keepdims=True)
    points = np.ascontiguousarray(
        np.divide(whitened, lengths, out=np.zeros_like(whitened), where=lengths > 0.0)
    )
    free, escape = _escapes(equilibrated[n_train:], dead, retained, full_rank, rank_tolerance)
    return Conditioned(
        n_train=n_train,
        points=points,
        lengths=lengths[:, 0],
        equilibrated=equilibrated,
        basis=basis,
        free=free,
        escape=escape,
        dead=dead,
        rank=rank,
        full_rank=full_rank,
        spectrum=spectrum,
        rank_tolerance=rank_tolerance,
    )


def with_escapes(conditioned: Conditioned, probes: npt.NDArray[np.int64]) -> Conditioned:
    """Add the directions that only probes have as coordinates, so that no probe is free.

    Probes that leave the training span can still depend on each other: two that activate
    the same otherwise dead feature do. In these coordinates they are ordinary points.

    Args:
        conditioned: Points as :func:`condition` returns them.
        probes: Indices of the probes to keep.

    Returns:
        The training points and those probes, in ``r + rank(escapes)`` coordinates.
    """
    data, n_train = conditioned, conditioned.n_train
    rows = np.append(np.arange(n_train), n_train + probes)
    dead = data.dead[probes]
    dead = dead[:, dead.any(axis=0)]
    live = data.equilibrated[rows]
    features = np.hstack([live, np.vstack([np.zeros((n_train, dead.shape[1])), dead])])
    whiten = np.vstack([data.basis, np.zeros((dead.shape[1], data.rank))])
    escapes = np.hstack([_outside(data, live[n_train:]), dead])
    rank, directions = independent_directions(escapes)
    whitened = np.hstack(
        [
            features @ whiten,
            np.vstack([np.zeros((n_train, rank)), features[n_train:] @ directions.T]),
        ]
    )
    lengths = np.linalg.norm(whitened, axis=1)
    safe = np.where(lengths > 0.0, lengths, 1.0)
    return Conditioned(
        n_train=n_train,
        points=np.ascontiguousarray(whitened / safe[:, None]),
        lengths=lengths,
        equilibrated=np.ascontiguousarray(features),
        basis=np.hstack([whiten, directions.T]),
        free=np.zeros(len(probes), dtype=bool),
        escape=np.zeros_like(features[n_train:]),
        dead=np.zeros((len(probes), 0)),
        rank=data.rank + rank,
        full_rank=data.rank + rank == features.shape[1],
        spectrum=data.spectrum,
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

    Args:
        conditioned: Points as :func:`condition` returns them.

    Returns:
        ``(u,)``. Such a probe takes any label whatever the others are labelled.
    """
    escapes = conditioned.escape
    free = np.flatnonzero(conditioned.free)
    result = np.zeros(len(escapes), dtype=bool)
    rank, _ = independent_directions(escapes[free])
    for probe in free:
        others = escapes[free[free != probe]]
        result[probe] = independent_directions(others)[0] < rank
    return result


def _outside(data: Conditioned, rows: Array) -> Array:
    """The components of rows outside the retained span; zero where they are round-off."""
    if data.full_rank:
        return np.zeros_like(rows)
    frame: Array = data.basis / np.linalg.norm(data.basis, axis=0)
    outside: Array = rows - (rows @ frame) @ frame.T
    outside -= (outside @ frame) @ frame.T
    sizes = np.linalg.norm(outside, axis=1)
    outside[sizes <= data.rank_tolerance * np.linalg.norm(rows, axis=1)] = 0.0
    return outside


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


def _escapes(
    probes: Array, dead: Array, retained: Array, full_rank: bool, tolerance: float
) -> tuple[npt.NDArray[np.bool_], Array]:
    """Find the free probes and, for each, a direction that no training point sees."""
    outside = np.zeros_like(probes)
    if not full_rank:
        outside = probes - (probes @ retained.T) @ retained
        outside -= (outside @ retained.T) @ retained  # once more: orthogonal to round-off
        sizes = np.linalg.norm(outside, axis=1)
        outside[sizes <= tolerance * np.linalg.norm(probes, axis=1)] = 0.0
    escape = np.hstack([outside, dead])
    lengths = np.linalg.norm(escape, axis=1, keepdims=True)
    escape = np.divide(escape, lengths, out=np.zeros_like(escape), where=lengths > 0.0)
    return lengths[:, 0] > 0.0, escape
