"""Re-checking of separability certificates in plain float64 arithmetic.

Nothing here trusts the solver: a verdict is counted only when one of these two checks
passes, and each states exactly what it proves.

**Feasible.** A witness W is multiplied out against the given features (columns scaled by
powers of two, which is exact). With the standard bound ``gamma_p |w| . |x|``,
``gamma_p = p eps / (1 - p eps)``, on the rounding error of a dot product of length p
(N. Higham, *Accuracy and Stability of Numerical Algorithms*, section 3.1), a margin
larger than twice the bound of both its logits is positive in exact arithmetic. So a
feasible verdict is a proof.

**Infeasible.** Multipliers ``y >= 0`` over rows ``a_k = (e_label - e_other) x_k^T`` with
``|x_k| = 1``. If a classifier W had every margin at least delta, then
``delta sum(y) <= <W, sum_k y_k a_k> <= |W| |sum_k y_k a_k|``. With
``R = sum(y) / |sum_k y_k a_k|``, the sum computed with its own rounding bound added: *no
classifier of Frobenius norm at most R delta has all margins at least delta*. A verdict
needs ``R >= 1 / tolerance``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from invariance.weakness.active_set import Combination

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

EPSILON = float(np.finfo(np.float64).eps)
#: Largest |sum_k y_k a_k| / sum(y) of an accepted certificate of infeasibility.
INFEASIBLE_TOLERANCE = 1e-12


@dataclass(frozen=True, eq=False)
class WitnessCheck:
    """What a stack of witnesses proves.

    Attributes:
        separates: ``(w,)`` whether each classifies every training point correctly.
        margin: ``(w,)`` its smallest training margin divided by ``|W| max|x|``.
        proved: ``(w, u)`` the class that it provably gives each probe, -1 where unclear.
        probe_margin: ``(w, u)`` that class's margin, divided in the same way.
    """

    separates: npt.NDArray[np.bool_]
    margin: Array
    proved: Indices
    probe_margin: Array


def check_witnesses(witnesses: Array, train: Array, labels: Indices, probes: Array) -> WitnessCheck:
    """Multiply witnesses out and bound the rounding error.

    Args:
        witnesses: ``(w, K, p)`` classifiers.
        train: ``(n, p)`` training points.
        labels: ``(n,)`` their labels.
        probes: ``(u, p)`` unseen points.

    Returns:
        The :class:`WitnessCheck`.
    """
    count, _, width = witnesses.shape
    n_train = train.shape[0]
    rows = np.vstack([train, probes])
    scale = np.linalg.norm(witnesses, axis=(1, 2)) * np.linalg.norm(rows, axis=1).max(initial=0.0)
    gamma = (width + 4) * EPSILON
    logits = np.einsum("wkp,mp->wmk", witnesses, rows, optimize=True)
    bound = 2.0 * gamma * np.einsum("wkp,mp->wmk", np.abs(witnesses), np.abs(rows), optimize=True)
    lower, upper = logits - bound, logits + bound
    order = np.arange(n_train)
    own = lower[:, order, labels]
    rivals = upper[:, :n_train].copy()
    rivals[:, order, labels] = -np.inf
    slack = (own - rivals.max(axis=2)).min(axis=1, initial=np.inf)
    finite = np.isfinite(witnesses).all(axis=(1, 2))
    separates = (slack > 0.0) & finite
    winner = logits[:, n_train:].argmax(axis=2)
    own = np.take_along_axis(lower[:, n_train:], winner[..., None], axis=2)[..., 0]
    rivals = upper[:, n_train:].copy()
    np.put_along_axis(rivals, winner[..., None], -np.inf, axis=2)
    lead = own - rivals.max(axis=2, initial=-np.inf)
    clear = (lead > 0.0) & separates[:, None]
    safe = np.where(scale > 0.0, scale, 1.0)
    return WitnessCheck(
        separates=separates,
        margin=np.where(count, slack / safe, 0.0),
        proved=np.where(clear, winner, -1),
        probe_margin=lead / safe[:, None],
    )


def norm_bounds(
    combinations: Sequence[Combination], labels: Sequence[Indices], points: Array, n_classes: int
) -> Array:
    """Compute what each combination proves about every separator's norm.

    Args:
        combinations: Rows and multipliers.
        labels: For each combination, the labels of its points, ``(k,)``.
        points: ``(m, p)`` points; they are normalised here.
        n_classes: Number of classes K.

    Returns:
        ``(len(combinations),)`` the bound R: no classifier with ``|W| <= R`` has every
        margin at least 1 on unit-length points. 0 where a multiplier is negative.
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
