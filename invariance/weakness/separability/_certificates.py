"""Re-checking of separability certificates in plain float64 arithmetic.

Nothing here trusts the solver: a verdict is counted only when one of these two checks
passes, and each states exactly what it proves.

**Feasible.** A witness W is multiplied out against the given features (columns scaled by
powers of two, which is exact). The rounding error of a dot product of length p is at
most ``p eps |w|_2 |x|_2``, up to higher order (N. Higham, *Accuracy and Stability of
Numerical Algorithms*, section 3.1), so a margin larger than twice that bound for both of
its logits is positive in exact arithmetic. So a
feasible verdict is a proof.

**Infeasible.** Multipliers ``y >= 0`` over rows ``a_k = (e_label - e_other) x_k^T`` with
``|x_k| = 1``. If a classifier W had every margin at least delta, then
``delta sum(y) <= <W, sum_k y_k a_k> <= |W| |sum_k y_k a_k|``. With
``R = sum(y) / |sum_k y_k a_k|``, the sum computed with its own rounding bound added: *no
classifier of Frobenius norm at most R delta has all margins at least delta*. A verdict
needs ``R >= 1 / tolerance`` and, so that no margin however small is overlooked, a proof
that an exact combination exists (``_exact_proofs``): for the given features, or, where the
rank rule of ``_conditioning`` cut a direction, at least for the coordinates that it retains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from invariance.weakness.separability._active_set import Combination

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

EPSILON = float(np.finfo(np.float64).eps)
#: Largest |sum_k y_k a_k| / sum(y) of an accepted certificate of infeasibility.
INFEASIBLE_TOLERANCE = 1e-10
#: Logits of one class that are held at once.
_ENTRIES = 4_000_000


@dataclass(frozen=True, eq=False)
class WitnessCheck:
    """What a stack of witnesses proves.

    Attributes:
        separates: ``(w,)`` whether each classifies every training point correctly.
        margin: ``(w,)`` its smallest training margin, divided by ``|W|`` and ``|x|``.
        proved: ``(w, u)`` the class that it provably gives each probe, -1 where unclear.
        probe_margin: ``(w, u)`` that class's margin, divided in the same way.
    """

    separates: npt.NDArray[np.bool_]
    margin: Array
    proved: Indices
    probe_margin: Array


def check_witnesses(witnesses: Array, train: Array, labels: Indices, probes: Array) -> WitnessCheck:
    """Multiply witnesses out and bound the rounding error.

    Shapes: ``witnesses (w, K, p)``, ``train (n, p)``, ``labels (n,)``, ``probes (u, p)``.
    """
    size = max(1, _ENTRIES // max(1, train.shape[0] + probes.shape[0]))
    parts = [
        _check_some(witnesses[begin : begin + size], train, labels, probes)
        for begin in range(0, len(witnesses), size)
    ]
    if not parts:
        empty = np.zeros((0, probes.shape[0]))
        return WitnessCheck(np.zeros(0, bool), np.zeros(0), empty.astype(np.int64), empty)
    return WitnessCheck(
        separates=np.concatenate([part.separates for part in parts]),
        margin=np.concatenate([part.margin for part in parts]),
        proved=np.concatenate([part.proved for part in parts]),
        probe_margin=np.concatenate([part.probe_margin for part in parts]),
    )


def _check_some(witnesses: Array, train: Array, labels: Indices, probes: Array) -> WitnessCheck:
    """:func:`check_witnesses` on as many witnesses as fit in memory; one class at a time."""
    count, n_classes, width = witnesses.shape
    # Twice the bound on both logits of a margin, by Cauchy-Schwarz |w| . |x| <= |w|_2 |x|_2.
    slope = 4.0 * (width + 4) * EPSILON
    reach = slope * np.linalg.norm(witnesses, axis=2).max(axis=1)
    norms = np.linalg.norm(witnesses, axis=(1, 2))
    norms = np.where(norms > 0.0, norms, 1.0)
    train_lengths = np.linalg.norm(train, axis=1)[:, None]
    probe_lengths = np.linalg.norm(probes, axis=1)[:, None]

    own = np.empty((train.shape[0], count))
    rival = np.full((train.shape[0], count), -np.inf)
    first = np.full((probes.shape[0], count), -np.inf)
    second = first.copy()
    winner = np.zeros(first.shape, dtype=np.int64)
    for target in range(n_classes):
        classifier = np.ascontiguousarray(witnesses[:, target].T)
        logits = train @ classifier
        mine = np.flatnonzero(labels == target)
        own[mine] = logits[mine]
        logits[mine] = -np.inf
        np.maximum(rival, logits, out=rival)
        logits = probes @ classifier
        np.maximum(second, np.minimum(first, logits), out=second)
        winner[logits > first] = target
        np.maximum(first, logits, out=first)
    own -= rival
    own /= np.where(train_lengths > 0.0, train_lengths, 1.0)
    slack = own.min(axis=0) - reach
    finite = np.isfinite(witnesses).all(axis=(1, 2)) & np.isfinite(norms)
    separates = (slack > 0.0) & finite
    lead = (first - second) / np.where(probe_lengths > 0.0, probe_lengths, 1.0) - reach
    clear = (lead > 0.0) & separates
    return WitnessCheck(
        separates=separates,
        margin=slack / norms,
        proved=np.where(clear, winner, -1).T,
        probe_margin=(lead / norms).T,
    )


def norm_bounds(
    combinations: Sequence[Combination], labels: Sequence[Indices], points: Array, n_classes: int
) -> Array:
    """Compute what each combination proves about every separator's norm.

    Shapes: ``labels (k,)``, ``points (m, p)``; returns ``(len(combinations),)``.
    """
    if not combinations:
        return np.zeros(0)
    sizes = np.array([len(entry.points) for entry in combinations])
    owner = np.repeat(np.arange(len(combinations)), sizes)
    point = np.concatenate([entry.points for entry in combinations])
    other = np.concatenate([entry.others for entry in combinations])
    label = np.concatenate(list(labels))
    weight = np.concatenate([entry.weights for entry in combinations])
    lengths = np.linalg.norm(points, axis=1)
    unit = np.divide(
        points, lengths[:, None], out=np.zeros_like(points), where=lengths[:, None] > 0
    )
    # One sparse product: row (combination, class), column point.
    shape = (len(combinations) * n_classes, points.shape[0])
    signs = sparse.csr_array(
        (
            np.concatenate([weight, -weight]),
            (
                np.concatenate([owner * n_classes + label, owner * n_classes + other]),
                np.concatenate([point, point]),
            ),
        ),
        shape=shape,
    )
    total = np.asarray(signs @ unit).reshape(len(combinations), -1)
    mass = np.bincount(owner, weights=weight, minlength=len(combinations))
    # Rounding of the products, of the normalisation and of the sums, in the worst order.
    rounding = 4.0 * (sizes + points.shape[1] + 8) * EPSILON * mass
    residual = np.linalg.norm(total, axis=1) + rounding
    lowest = np.minimum.reduceat(weight, np.concatenate([[0], np.cumsum(sizes)[:-1]]))
    valid = (
        (lowest >= 0.0)
        & (mass > 0.0)
        & np.isfinite(residual)
        & np.array(
            [
                bool((entry_labels != entry.others).all())
                for entry, entry_labels in zip(combinations, labels, strict=True)
            ]
        )
    )
    return np.where(valid, mass / np.where(valid, residual, 1.0), 0.0)
