"""The version space: all last-layer classifiers that fit the training set, by volume.

Given frozen features, the classifiers ``(W, b)`` that label every training point
correctly form an open convex cone. Its *support* on unseen points, which labels occur at
all, is what the pair proxy counts, and is unchanged by every invertible affine map of
the features. Its *volume* is finer, and depends on how classifiers are measured. Two
choices are offered:

* ``coordinates="whitened"``: the classifier's logits on the training points are standard
  normal on the span of the features (a projector decides, so only the span matters).
  Invariant under every invertible affine map of the features: layer and neuron scaling,
  permutation, folding, splitting. Not under dormant units, which enlarge the span.
* ``coordinates="raw"``: the entries of W and b are standard normal as they stand: solid
  angles in the network's own coordinates. Invariant under orthogonal maps of the
  features (permutations), and NOT under scalings: solid angles are not affine-invariant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import qr
from torch import Tensor, nn

from invariance.core._errors import MeasureError, unknown_name
from invariance.core._estimate import Estimate
from invariance.core._rng import generator
from invariance.weakness._features import check_labels, frozen_features
from invariance.weakness.separability._active_set import SolverOutcome
from invariance.weakness.separability._conditioning import condition, default_rank_tolerance
from invariance.weakness.separability._pair_sweep import separate_training
from invariance.weakness.volume._chain_diagnostics import effective_sample_size, split_r_hat
from invariance.weakness.volume._hit_and_run import Cone, sample_cone

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Coordinates = Literal["whitened", "raw"]

#: Chains whose R-hat exceeds this have not mixed.
R_HAT_LIMIT = 1.05


@dataclass(frozen=True, eq=False)
class VersionSpace:
    """The cone of classifiers that fit the training set, and a sample of it.

    Attributes:
        coordinates: How classifiers are measured, ``"whitened"`` or ``"raw"``.
        n_classes: Number of classes K.
        rank: Rank r of the training features, with the constant if there is a bias.
        dimension: ``(K - 1) r``: directions in which classifiers differ on training points
            modulo a shift common to all classes. The cone is open, so this is its dimension.
        lineality: Further directions in which a classifier may move freely: the shifts,
            and what no training point sees.
        centre: ``(K, r)`` centre of the largest ball in the cone's unit ball, unit
            norm, in the sampling coordinates: the hard-margin solution for rows of unit
            length.
        radius: Radius of the ball around ``centre`` that stays in the cone.
        labelings: ``(samples, u)`` int16 class of every unseen point under every sampled
            classifier; -1 at points that training leaves entirely free (whitened only).
        probabilities: ``(u, K)`` share of the samples that give each label; ``1 / K`` at free
            points, where no scale is set and symmetry decides.
        free: ``(u,)`` which points those are.
        chains: Number of chains; samples are ordered chain by chain.
        effective_samples: Smallest effective sample size over the monitored functionals
            (agreement with the centre, and each class's share of the unseen points).
        r_hat: Largest split R-hat over the same.
    """

    coordinates: Coordinates
    n_classes: int
    rank: int
    dimension: int
    lineality: int
    centre: Array
    radius: float
    labelings: npt.NDArray[np.int16]
    probabilities: Array
    free: npt.NDArray[np.bool_]
    chains: int
    effective_samples: float
    r_hat: float

    @property
    def converged(self) -> bool:
        """Whether the chains agree (R-hat at most 1.05)."""
        return self.r_hat <= R_HAT_LIMIT

    @property
    def point_entropy(self) -> Array:
        """``(u,)`` entropy in nats of each unseen point's label (plug-in)."""
        return entropy(self.probabilities)

    @property
    def labeling_entropy(self) -> tuple[float, bool]:
        """Plug-in entropy in nats of the whole labeling of the points that are not free.

        Returns:
            The entropy, and whether it is saturated: when more than a tenth of the samples
            are one of a kind, the sample is too small and the value is a lower bound.
        """
        fixed = np.ascontiguousarray(self.labelings[:, ~self.free])
        if not fixed.shape[1]:
            return 0.0, False
        _, counts = np.unique(fixed, axis=0, return_counts=True)
        share = counts / counts.sum()
        return float(-(share * np.log(share)).sum()), bool((counts == 1).sum() > 0.1 * len(fixed))

    def weakness(self) -> Estimate:
        """Volume-weighted weakness: the effective number of labels, summed over points.

        ``sum_j exp(H_j)`` with ``H_j`` the entropy of point j's label. Between u (training
        decides every point) and the pair proxy's count (every feasible label is equally
        likely). The standard error is a jackknife over chains.

        Returns:
            The estimate; ``converged`` and ``detail`` carry the diagnostics.
        """
        value = float(np.exp(self.point_entropy).sum())
        by_chain = self.labelings.reshape(self.chains, -1, self.labelings.shape[1])
        tables = np.stack([_shares(part, self.n_classes, self.free) for part in by_chain])
        without = (tables.sum(axis=0)[None] - tables) / max(1, self.chains - 1)
        jackknife = np.exp(entropy(without)).sum(axis=1)
        spread = (self.chains - 1) / self.chains * ((jackknife - jackknife.mean()) ** 2).sum()
        return Estimate(
            value,
            stderr=math.sqrt(spread) if self.chains > 1 else None,
            exact=False,
            method=f"hit-and-run on the version space, {self.coordinates} coordinates",
            converged=self.converged,
            detail={
                "samples": len(self.labelings),
                "effective_samples": self.effective_samples,
                "r_hat": self.r_hat,
                "dimension": self.dimension,
                "rank": self.rank,
                "free_points": int(self.free.sum()),
                "coordinates": self.coordinates,
            },
        )


def entropy(probabilities: Array) -> Array:
    """Entropy in nats over the last axis, with ``0 log 0 = 0``."""
    logs = np.log(np.where(probabilities > 0.0, probabilities, 1.0))
    result: Array = -(probabilities * logs).sum(axis=-1)
    return result


def _shares(labelings: npt.NDArray[np.int16], n_classes: int, free: npt.NDArray[np.bool_]) -> Array:
    shares = np.stack([(labelings == k).mean(axis=0) for k in range(n_classes)], axis=1)
    shares[free] = 1.0 / n_classes
    return shares


@dataclass(frozen=True, eq=False)
class _Frame:
    """Training rows and probes in coordinates where the target is standard normal."""

    train: Array
    probes: Array
    noise: Array  # (u, q): a probe's logits also get an independent normal (K x q) times this
    free: npt.NDArray[np.bool_]


def _frame(
    train: Array, unseen: Array, *, bias: bool, coordinates: Coordinates, tolerance: float
) -> _Frame:
    points = condition(train, unseen, bias=bias, rank_tolerance=tolerance)
    n = len(train)
    whitened = points.equilibrated @ points.basis
    # Whitening leaves a rotation open. Fix it by pivoted orthogonalisation of the training
    # rows, a function of their projector alone: equal seeds then give equal chains on
    # networks whose features differ by an affine map, up to round-off.
    turn, upper, _ = qr(whitened[:n].T, mode="economic", pivoting=True)
    turn = turn * np.where(np.diag(upper)[: turn.shape[1]] < 0.0, -1.0, 1.0)
    whitened = whitened @ turn
    rows, probes = whitened[:n], whitened[n:]
    if coordinates == "whitened":
        # Rows of unit mean square, so that logits on training points are of order one.
        scale = math.sqrt(n)
        return _Frame(rows * scale, probes * scale, np.zeros((len(unseen), 0)), points.free)
    ones = np.ones((n + len(unseen), 1 if bias else 0))
    raw = np.hstack([np.vstack([train, unseen]), ones])
    raw /= np.abs(raw).max()  # a common factor of all rows changes no labeling
    loading = rows.T @ raw[:n]  # raw[:n] = rows @ loading: rows is orthonormal
    # Logits W raw^T = (W loading^T) rows^T with W standard normal: covariance loading
    # loading^T = factor factor^T. In the coordinates V with W loading^T = V factor^T, V is
    # standard normal and a row z becomes z factor.
    left, gains, right = np.linalg.svd(loading, full_matrices=False)
    factor = left * gains
    # A raw probe splits into what training rows span and an independent rest.
    inside = raw[n:] @ right.T
    outside = raw[n:] - inside @ right
    sizes = np.linalg.norm(outside, axis=1)
    noise = np.where(
        sizes[:, None] > tolerance * np.linalg.norm(raw[n:], axis=1)[:, None], outside, 0.0
    )
    return _Frame(rows @ factor, inside, noise, np.zeros(len(unseen), dtype=np.bool_))


def version_space(
    model: nn.Module,
    x_train: Tensor,
    y_train: Tensor,
    x_unseen: Tensor,
    *,
    samples: int = 800,
    seed: int = 0,
    coordinates: Coordinates = "whitened",
    chains: int = 16,
    thin: int | None = None,
    warmup: int | None = None,
    rank_tolerance: float | None = None,
) -> VersionSpace:
    """Describe and sample the last-layer classifiers that fit the training set.

    Args:
        model: A network that ends with a linear layer, in eval mode.
        x_train: ``(n, ...)`` training inputs.
        y_train: ``(n,)`` their labels.
        x_unseen: ``(u, ...)`` unseen inputs.
        samples: Classifiers to keep, over all chains (rounded up to a multiple).
        seed: Seed of the chains.
        coordinates: ``"whitened"`` (affine-invariant) or ``"raw"``; see the module.
        chains: Parallel chains, at least 2.
        thin: Steps between kept samples; by default 8 times the dimension.
        warmup: Steps before sampling; by default 60 times the dimension, at least 400.
        rank_tolerance: As for :func:`~invariance.weakness.separability._pair_proxy.pair_proxy`.

    Returns:
        The :class:`VersionSpace`; look at ``converged`` before using the sample.

    Raises:
        MeasureError: If the training points are not linearly separable in the features (the
            space is empty), this stays undecided, or an argument is out of range.
        UsageError: If ``coordinates`` is unknown.
    """
    if coordinates not in ("whitened", "raw"):
        raise unknown_name("coordinates", coordinates, ("whitened", "raw"))
    if samples < 1 or chains < 2:
        raise MeasureError(
            f"Need samples >= 1 and chains >= 2 (to compare them). Got {samples} and {chains}."
        )
    features = frozen_features(model, x_train, x_unseen)
    train, unseen = features.values
    classes = features.n_classes
    labels = check_labels(y_train, len(train), classes)
    if rank_tolerance is None:
        rank_tolerance = default_rank_tolerance(features.epsilon)
    frame = _frame(
        train, unseen, bias=features.bias, coordinates=coordinates, tolerance=rank_tolerance
    )
    cone = Cone(frame.train, labels, classes)
    centre, radius = _centre(cone)
    rank = frame.train.shape[1]
    dimension = (classes - 1) * rank
    # Through an integer seed from the package's own streams, one NumPy generator.
    stream = generator(seed, "version space", coordinates)
    random = np.random.default_rng(int(torch.randint(2**62, (), generator=stream)))
    keep = -(-samples // chains)
    found: list[npt.NDArray[np.int16]] = []

    def visit(state: Array) -> None:
        logits = cone.gauge.T @ (state @ frame.probes.T)  # (chains, K, u)
        if frame.noise.shape[1]:
            rest = random.standard_normal((chains, classes, frame.noise.shape[1]))
            logits = logits + rest @ frame.noise.T
        winners = logits.argmax(axis=1).astype(np.int16)
        winners[:, frame.free] = -1
        found.append(winners)

    sample_cone(
        cone,
        cone.gauge @ centre,
        keep=keep,
        chains=chains,
        thin=max(5, 8 * dimension) if thin is None else thin,
        warmup=max(400, 60 * dimension) if warmup is None else warmup,
        random=random,
        visit=visit,
    )
    by_chain = np.stack(found, axis=1)  # (chains, keep, u)
    settled = (centre @ frame.probes.T).argmax(axis=0)
    effective, r_hat = _diagnose(by_chain, settled, frame.free, classes)
    labelings = by_chain.reshape(chains * keep, -1)
    columns = train.shape[1] + int(features.bias)
    return VersionSpace(
        coordinates=coordinates,
        n_classes=classes,
        rank=rank,
        dimension=dimension,
        lineality=classes * columns - dimension,
        centre=centre,
        radius=radius,
        labelings=labelings,
        probabilities=_shares(labelings, classes, frame.free),
        free=frame.free,
        chains=chains,
        effective_samples=effective,
        r_hat=r_hat,
    )


def volume_weakness(
    model: nn.Module, x_train: Tensor, y_train: Tensor, x_unseen: Tensor, **options: Any
) -> Estimate:
    """Effective number of labels left open by the version space, whitened: affine-invariant.

    Args:
        model: A network that ends with a linear layer, in eval mode.
        x_train: ``(n, ...)`` training inputs.
        y_train: ``(n,)`` their labels.
        x_unseen: ``(u, ...)`` unseen inputs.
        options: As for :func:`version_space`.

    Returns:
        :meth:`VersionSpace.weakness`.

    Raises:
        MeasureError: As for :func:`version_space`.
    """
    options = {"coordinates": "whitened", **options}
    return version_space(model, x_train, y_train, x_unseen, **options).weakness()


def volume_weakness_raw(
    model: nn.Module, x_train: Tensor, y_train: Tensor, x_unseen: Tensor, **options: Any
) -> Estimate:
    """Effective number of labels left open, by solid angle in the network's own coordinates.

    As :func:`volume_weakness`, in raw coordinates, where a scaling of the features matters.

    Args:
        model: A network that ends with a linear layer, in eval mode.
        x_train: ``(n, ...)`` training inputs.
        y_train: ``(n,)`` their labels.
        x_unseen: ``(u, ...)`` unseen inputs.
        options: As for :func:`version_space`.

    Returns:
        :meth:`VersionSpace.weakness`.

    Raises:
        MeasureError: As for :func:`version_space`.
    """
    options = {"coordinates": "raw", **options}
    return version_space(model, x_train, y_train, x_unseen, **options).weakness()


def _centre(cone: Cone) -> tuple[Array, float]:
    """Unit-norm centre of the cone and the radius of the ball around it."""
    lengths = np.linalg.norm(cone.rows, axis=1, keepdims=True)
    unit = np.divide(cone.rows, lengths, out=np.zeros_like(cone.rows), where=lengths > 0.0)
    outcome, separator, _ = separate_training(unit, cone.labels, cone.n_classes)
    if outcome == SolverOutcome.INSEPARABLE:
        raise MeasureError(
            "The training points are not linearly separable in the network's last features, so "
            "no classifier fits them and the version space is empty. Train to full accuracy, "
            "or leave out the points that the network gets wrong."
        )
    if outcome != SolverOutcome.SEPARATED:
        raise MeasureError(
            "Whether the training points are linearly separable stayed undecided at float64 "
            "precision: the version space is empty or too thin to sample."
        )
    centre = separator - separator.mean(axis=0, keepdims=True)
    centre = centre / np.linalg.norm(centre)
    # Each wall (e_y - e_c) . W z has a normal of length sqrt(2) |z|.
    gaps = Cone(unit, cone.labels, cone.n_classes).gaps((cone.gauge @ centre)[None])[0]
    gaps[np.arange(len(unit)), cone.labels] = np.inf
    return centre, float(gaps.min()) / math.sqrt(2.0)


def _diagnose(
    by_chain: npt.NDArray[np.int16],
    settled: Indices,
    free: npt.NDArray[np.bool_],
    classes: int,
) -> tuple[float, float]:
    if free.all():
        return float(by_chain.shape[0] * by_chain.shape[1]), 1.0
    fixed = by_chain[:, :, ~free]
    functionals = [(fixed == settled[~free]).mean(axis=2)]
    functionals += [(fixed == k).mean(axis=2) for k in range(classes)]
    effective = min(effective_sample_size(f) for f in functionals)
    r_hat = max(split_r_hat(f) for f in functionals)
    return effective, r_hat
