"""Rank correlations of many variables in many bootstrap resamples at once.

A resample is a row of counts: how often each network was drawn. Average ranks within a
resample follow from cumulative counts along the order of the full sample, so no resample is
ever sorted, and all variables share the same resamples: differences of correlations and
partial correlations then come from the same draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from invariance.core._errors import DataError
from invariance.core._rng import numpy_generator
from invariance.stats._ranks import FloatArray, centred_ranks

#: Ranks of one variable that are computed together: few, so that a block of resamples of all
#: variables stays near the processor.
BLOCK = 20_000

#: Bytes of permuted ranks held at once.
MEMORY = 1 << 26


def bootstrap_counts(n: int, resamples: int, seed: int, *, size: int | None = None) -> FloatArray:
    """Draw bootstrap resamples as counts (the draws of :func:`invariance.stats.spearman`).

    Shapes: returns ``(resamples, n)``.
    """
    drawn = numpy_generator(seed).integers(0, n, size=(resamples, size or n))
    flat = drawn + n * np.arange(resamples)[:, None]
    counts = np.bincount(flat.ravel(), minlength=n * resamples).reshape(resamples, n)
    return counts.astype(np.float64)


class Order:
    """The order of one variable over the full sample, ties together.

    Shapes: ``values (n,)``.
    """

    def __init__(self, values: FloatArray) -> None:
        self.order = np.argsort(values, kind="stable")
        new = np.diff(values[self.order], prepend=np.nan) != 0  # NaN differs from everything
        self.group = np.empty(values.size, dtype=np.intp)
        self.group[self.order] = np.cumsum(new) - 1
        self.starts = None if new.all() else np.flatnonzero(new)

    def ranks(self, counts: FloatArray, middle: FloatArray) -> FloatArray:
        """Rank the variable within each resample: average ranks, centred.

        Shapes: ``counts (n, r)``, ``middle (r,)``; returns ``(n, r)``.
        """
        tied = counts[self.order]
        if self.starts is not None:
            tied = np.add.reduceat(tied, self.starts)
        rank = np.cumsum(tied, axis=0)
        tied -= 1
        tied *= 0.5
        rank -= tied
        rank -= middle
        centred: FloatArray = rank[self.group]
        return centred


def resampled_correlations(left: FloatArray, right: FloatArray, counts: FloatArray) -> FloatArray:
    """Correlate every left with every right variable in every resample, by ranks.

    Shapes: ``left (a, n)``, ``right (b, n)``, ``counts (r, n)``; returns ``(r, a, b)``.
    """
    if left.ndim != 2 or right.ndim != 2 or not left.shape[1] == right.shape[1] == counts.shape[1]:
        raise DataError(
            "Expected (a, n), (b, n) and (r, n). "
            f"Got {left.shape}, {right.shape} and {counts.shape}."
        )
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise DataError("Expected finite values. Got NaN or infinity; drop or repair those points.")
    variables, which = _distinct(np.concatenate([left, right]))
    a = len(left)
    rho = np.empty((len(counts), a, len(right)))
    orders = [Order(row) for row in variables]
    step = max(1, BLOCK // counts.shape[1])
    for start in range(0, len(counts), step):
        block = np.ascontiguousarray(counts[start : start + step].T)
        middle = (block.sum(axis=0) + 1) / 2
        ranks = np.stack([order.ranks(block, middle) for order in orders])
        ranks *= np.sqrt(block)
        norms = np.sqrt(np.einsum("vnr,vnr->rv", ranks, ranks))
        by_resample = np.ascontiguousarray(ranks.transpose(2, 0, 1))
        both = by_resample[:, which[:a]] @ by_resample[:, which[a:]].transpose(0, 2, 1)
        scale = norms[:, which[:a], None] * norms[:, None, which[a:]]
        with np.errstate(invalid="ignore", divide="ignore"):
            rho[start : start + step] = np.clip(both / scale, -1, 1)
    return rho


def resampled_taus(left: FloatArray, right: FloatArray, counts: FloatArray) -> FloatArray:
    """Kendall's tau-b of every left with every right variable in every resample.

    Shapes: ``left (a, n)``, ``right (b, n)``, ``counts (r, n)``; returns ``(r, a, b)``.
    """
    # Sums of n^2 signs: exact in float32 as long as n^2 < 2^24.
    kind = np.float32 if counts.shape[1] < 4_096 else np.float64
    weight: npt.NDArray[Any] = counts.astype(kind)

    def quadratic(matrix: npt.NDArray[Any]) -> FloatArray:
        sums: FloatArray = ((weight @ matrix) * weight).sum(axis=1).astype(np.float64)
        return sums

    def signs(row: FloatArray) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = np.sign(row[:, None] - row[None]).astype(kind)
        return found

    right_signs = [signs(row) for row in right]
    right_own = [quadratic(matrix * matrix) for matrix in right_signs]
    taus = np.empty((len(counts), len(left), len(right)))
    for i, row in enumerate(left):
        matrix = signs(row)
        own = quadratic(matrix * matrix)
        for j, other in enumerate(right_signs):
            with np.errstate(invalid="ignore", divide="ignore"):
                taus[:, i, j] = quadratic(matrix * other) / np.sqrt(own * right_own[j])
    return taus


def partial_from_correlations(
    xy: FloatArray, xz: FloatArray, yz: FloatArray, zz: FloatArray
) -> FloatArray:
    """Turn correlations into partial ones: ``z`` regressed out of ``x`` and ``y``.

    Shapes: ``xy (..., a, b)``, ``xz (..., a, k)``, ``yz (..., b, k)``, ``zz (..., k, k)``; returns
    ``(..., a, b)``.
    """
    xz, yz = np.nan_to_num(xz), np.nan_to_num(yz)
    inverse = np.linalg.pinv(np.nan_to_num(zz), rcond=1e-10, hermitian=True)
    left = xz @ inverse
    covariance = xy - left @ yz.swapaxes(-1, -2)
    rest_x = 1 - (left * xz).sum(-1)
    rest_y = 1 - ((yz @ inverse) * yz).sum(-1)
    scale = rest_x[..., :, None] * rest_y[..., None, :]
    # What is left of a fully explained variable is round-off, not a residual.
    gone = (rest_x < 1e-10)[..., :, None] | (rest_y < 1e-10)[..., None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        partial: FloatArray = np.where(gone, np.nan, covariance / np.sqrt(np.abs(scale)))
    return np.clip(partial, -1, 1)


def permutation_p_values(
    left: FloatArray, target: FloatArray, *, draws: int, rng: np.random.Generator
) -> FloatArray:
    """Two-sided permutation p-values of Spearman's rho for many variables at once.

    Shapes: ``left (a, n)``, ``target (n,)``; returns ``(a,)``.
    """
    ranks, ranks_y = centred_ranks(left), centred_ranks(target[None])[0]
    observed = np.abs(ranks @ ranks_y)
    extreme = np.zeros(len(left))
    step = max(1, MEMORY // (8 * max(target.size, len(left))))
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        shuffled = rng.permuted(np.broadcast_to(ranks_y, (rows, target.size)), axis=1)
        # Ranks are half-integers: slack below 1/4 absorbs round-off and no real difference.
        extreme += (np.abs(shuffled @ ranks.T) >= observed - 1e-6).sum(axis=0)
    p_values: FloatArray = (1 + extreme) / (1 + draws)
    return p_values


def _distinct(variables: FloatArray) -> tuple[FloatArray, npt.NDArray[np.intp]]:
    """Keep one of several variables that order the points alike: their ranks are equal."""
    known: dict[bytes, int] = {}
    kept: list[FloatArray] = []
    which = np.empty(len(variables), dtype=np.intp)
    for i, row in enumerate(variables):
        key = np.unique(row, return_inverse=True)[1].astype(np.int64).tobytes()
        if key not in known:
            known[key] = len(kept)
            kept.append(row)
        which[i] = known[key]
    return np.stack(kept), which
