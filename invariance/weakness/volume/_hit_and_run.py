"""Hit-and-run on a cone of linear classifiers.

Target: classifiers ``W`` (K x r) with independent standard normal entries, given that
``W z_i`` is largest at class ``y_i`` for every training row ``z_i``. The norm of such a
sample is independent of its direction, so directions are uniform by solid angle. The
part of W that is common to all classes is independent of the rest and left out: a
classifier is held as ``V = H W``, with the K - 1 orthonormal rows of H orthogonal to 1.

Each step draws a direction, then the exact position along it: a normal truncated to the
chord (Lovász, "Hit-and-run mixes fast", Math. Programming 86, 1999; for a normal target,
the general scheme of Smith, Operations Research 32, 1984). Directions are normal,
with a covariance that is fixed before sampling starts, so the target is exact: a blend of
the Dikin ellipsoid at the centre (the inverse Hessian of the logarithmic barrier, which
adapts to narrow cones) and of the covariance of warm-up states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.linalg import helmert
from scipy.special import log_ndtr, ndtri_exp

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

#: Share of the Dikin ellipsoid in the directions; keeps the chain irreducible.
_DIKIN_SHARE = 0.1
#: Margins are recomputed from scratch after so many steps, to stop round-off drift.
_REFRESH = 64
#: Warm-up rounds; each doubles the last, and replaces the states that directions use.
_ROUNDS = 4
#: States a chain contributes to the directions of the next round.
_POOL = 8
#: Entries of the largest intermediate array when the barrier's Hessian is summed up.
_CHUNK = 4_000_000


def truncated_normal(low: Array, high: Array, uniform: Array) -> Array:
    """Draw standard normals truncated to ``[low, high]`` by inversion, in log space."""
    # Work in the left tail, where log Phi keeps its digits: mirror what lies right of 0.
    mirror = low > 0.0
    a, b = np.where(mirror, -high, low), np.where(mirror, -low, high)
    top = log_ndtr(b)
    # log(Phi(a) + u (Phi(b) - Phi(a))), relative to the larger term Phi(b).
    share = np.exp(log_ndtr(a) - top)
    drawn = np.clip(ndtri_exp(top + np.log(share + uniform * (1.0 - share))), a, b)
    result: Array = np.where(mirror, -drawn, drawn)
    return result


@dataclass(eq=False)
class Cone:
    """Classifiers that give every training row its label.

    Attributes:
        rows: ``(n, r)`` training rows.
        labels: ``(n,)`` their classes.
        n_classes: Number of classes K.
    """

    rows: Array
    labels: Indices
    n_classes: int

    @cached_property
    def gauge(self) -> Array:
        """``(K - 1, K)`` orthonormal rows, orthogonal to the vector of ones."""
        matrix: Array = helmert(self.n_classes)
        return matrix

    def gaps(self, reduced: Array) -> Array:
        """Own logit minus every class's, linear in the classifier.

        Shapes: ``reduced (m, K - 1, r)``; returns ``(m, n, K)``.
        """
        logits = self.rows @ (reduced.transpose(0, 2, 1) @ self.gauge)
        own = logits[:, np.arange(len(self.rows)), self.labels]
        result: Array = own[:, :, None] - logits
        return result

    def walls(self, reduced: Array) -> Array:
        """Like :meth:`gaps`, with 1 at the own class, which is no wall."""
        gaps = self.gaps(reduced)
        gaps[:, np.arange(len(self.rows)), self.labels] = 1.0
        return gaps

    def dikin_covariance(self, reduced: Array) -> Array:
        """Inverse Hessian at V of the logarithmic barrier plus ``|V|^2 / 2``.

        Shapes: ``reduced (K - 1, r)``.
        """
        weights = self.walls(reduced[None])[0] ** -2.0  # (n, K); the own normal is zero
        k, r = reduced.shape
        total = np.zeros((k * k, r * r))
        size = max(1, _CHUNK // max(k**3, r * r))
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            normal = self.gauge.T[self.labels[part]][:, None, :] - self.gauge.T  # (s, K, k)
            classes = normal.transpose(0, 2, 1) @ (weights[part, :, None] * normal)
            outer = self.rows[part, :, None] * self.rows[part, None, :]
            total += classes.reshape(len(classes), -1).T @ outer.reshape(len(outer), -1)
        hessian = total.reshape(k, k, r, r).transpose(0, 2, 1, 3).reshape(k * r, k * r)
        inverse: Array = np.asarray(np.linalg.inv(hessian + np.eye(k * r)), dtype=np.float64)
        return inverse


class _Directions:
    """The law of directions: a normal whose covariance learns the shape of the cone."""

    def __init__(self, dikin: Array, shape: tuple[int, int]) -> None:
        self.dikin: Array = dikin / float(np.trace(dikin))
        self.shape = shape
        self.factor: Array = np.asarray(np.linalg.cholesky(self.dikin), dtype=np.float64)

    def learn(self, states: list[Array]) -> None:
        """Mix in the covariance of warm-up states, one ``(chains, K - 1, r)`` array each."""
        found = np.concatenate([state.reshape(len(state), -1) for state in states])
        spread = np.cov(found.T).reshape(self.dikin.shape)
        mixed = (1.0 - _DIKIN_SHARE) * spread / float(np.trace(spread)) + _DIKIN_SHARE * self.dikin
        self.factor = np.asarray(np.linalg.cholesky(mixed), dtype=np.float64)

    def draw(self, chains: int, random: np.random.Generator) -> Array:
        """Draw one direction a chain, ``(chains, K - 1, r)``."""
        local = random.standard_normal((chains, len(self.factor)))
        return (local @ self.factor.T).reshape(chains, *self.shape)


def _step(
    cone: Cone, state: Array, gaps: Array, directions: _Directions, random: np.random.Generator
) -> tuple[Array, Array]:
    """Move every chain once along its own line; keep the gaps up to date."""
    direction = directions.draw(len(state), random)
    slope = cone.gaps(direction)
    # gap + t slope > 0 for every wall: 1 + t ratio > 0.
    ratio = (slope / gaps).reshape(len(state), -1)
    steepest, fastest = ratio.min(axis=1), ratio.max(axis=1)
    low = np.where(fastest > 0.0, -1.0 / np.where(fastest > 0.0, fastest, 1.0), -np.inf)
    high = np.where(steepest < 0.0, -1.0 / np.where(steepest < 0.0, steepest, -1.0), np.inf)
    length = np.sqrt((direction**2).sum(axis=(1, 2)))
    centre = -(state * direction).sum(axis=(1, 2)) / length**2
    drawn = truncated_normal(
        (low - centre) * length, (high - centre) * length, random.random(len(state))
    )
    step = centre + drawn / length
    moved = gaps + step[:, None, None] * slope
    # Round-off may put an end of the chord on a wall: stay where we are then.
    inside = moved.reshape(len(state), -1).min(axis=1) > 0.0
    step = np.where(inside, step, 0.0)
    gaps = moved if inside.all() else gaps + step[:, None, None] * slope
    return state + step[:, None, None] * direction, gaps


def sample_cone(
    cone: Cone,
    start: Array,
    *,
    keep: int,
    chains: int,
    thin: int,
    warmup: int,
    random: np.random.Generator,
    visit: Callable[[Array], None],
) -> None:
    """Run parallel chains and hand every kept state to ``visit``.

    Shapes: ``start (K - 1, r)``, ``visit (chains, K - 1, r)``.
    """
    first = start * (np.sqrt(start.size) / np.linalg.norm(start))
    directions = _Directions(cone.dikin_covariance(first), (first.shape[0], first.shape[1]))
    state = np.repeat(first[None], chains, axis=0)
    for round_ in range(_ROUNDS):
        steps = max(2, warmup * 2**round_ // (2**_ROUNDS - 1))
        trail = []
        for count in range(steps):
            if count % _REFRESH == 0:
                gaps = cone.walls(state)
            state, gaps = _step(cone, state, gaps, directions, random)
            if count >= steps // 2 and count % max(1, steps // (2 * _POOL)) == 0:
                trail.append(state)
        directions.learn(trail)
    for _ in range(keep):
        for count in range(thin):
            if count % _REFRESH == 0:
                gaps = cone.walls(state)
            state, gaps = _step(cone, state, gaps, directions, random)
        visit(state)
