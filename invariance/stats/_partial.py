"""Rank correlation of two variables with others held fixed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from invariance.core._errors import DataError
from invariance.core._rng import numpy_generator
from invariance.stats._rank_correlation import RankCorrelation
from invariance.stats._ranks import (
    FloatArray,
    centred_ranks,
    interval,
    require_pairs,
    row_correlation,
)


def partial_spearman(
    x: Sequence[float] | FloatArray,
    y: Sequence[float] | FloatArray,
    given: Sequence[Sequence[float] | FloatArray],
    *,
    resamples: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> RankCorrelation:
    """Spearman's partial correlation: ranks, with the ranks of ``given`` regressed out.

    The p-value is that of the t distribution with ``n - 2 - k`` degrees of freedom; the
    interval is the percentile bootstrap, with ranks and regressions redone in each resample.

    Args:
        x: ``(n,)`` values.
        y: ``(n,)`` values, paired with ``x``.
        given: ``k`` further variables of ``n`` values each.
        resamples: Number of bootstrap resamples.
        level: Confidence level of the interval.
        seed: Seed of the resampling.

    Returns:
        The partial correlation; ``None`` where ``given`` explains a variable completely.

    Raises:
        DataError: If the samples are not paired, not finite or too short.

    Example:
        What is left of a correlation that a third variable explains. With 1.0, 0.8 and 0.8 it is
        ``(r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2))``; here ``x`` and ``y`` are one:

        >>> x, z = [1, 2, 3, 4, 5], [1, 3, 2, 5, 4]
        >>> round(partial_spearman(x, x, [z], resamples=100).rho, 12)
        1.0
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    others = [np.asarray(entry, dtype=np.float64) for entry in given]
    for other in (b, *others):
        require_pairs(a, other)
    n, k = a.size, len(others)
    if n < k + 4:
        raise DataError(f"Expected at least {k + 4} points with {k} variables fixed. Got {n}.")
    every = np.arange(n)[None]
    rho = float(_residual_correlation(a, b, others, every)[0])
    if not np.isfinite(rho):
        return RankCorrelation(n, None, None, None, None, level)
    rows = numpy_generator(seed).integers(0, n, size=(resamples, n))
    low, high = interval(_residual_correlation(a, b, others, rows), level)
    freedom = n - 2 - k
    statistic = rho * np.sqrt(freedom / max(1 - rho**2, np.finfo(float).tiny))
    return RankCorrelation(n, rho, low, high, float(2 * stats.t.sf(abs(statistic), freedom)), level)


def _residual_correlation(
    a: FloatArray, b: FloatArray, others: Sequence[FloatArray], rows: np.ndarray
) -> FloatArray:
    """Correlate the residuals of ranks for each row of indices, all rows at once."""
    ranks_a, ranks_b = centred_ranks(a[rows]), centred_ranks(b[rows])
    if others:
        design = np.stack([centred_ranks(other[rows]) for other in others], axis=-1)
        # Constant variables give a singular Gram matrix: the pseudo-inverse drops them.
        gram = np.linalg.pinv(design.transpose(0, 2, 1) @ design, hermitian=True)
        total_a, total_b = (ranks_a**2).sum(1), (ranks_b**2).sum(1)
        ranks_a, ranks_b = (
            r - (design @ (gram @ (design.transpose(0, 2, 1) @ r[..., None])))[..., 0]
            for r in (ranks_a, ranks_b)
        )
        # What is left of a fully explained variable is round-off, not a residual.
        explained = ((ranks_a**2).sum(1) < 1e-12 * total_a) | (
            (ranks_b**2).sum(1) < 1e-12 * total_b
        )
        return np.where(explained, np.nan, row_correlation(ranks_a, ranks_b))
    return row_correlation(ranks_a, ranks_b)
