"""Spearman's rank correlation with a bootstrap interval and a permutation test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from invariance.core._rng import numpy_generator
from invariance.stats._ranks import (
    FloatArray,
    centred_ranks,
    interval,
    require_pairs,
    row_correlation,
)
from invariance.stats._resampled import resampled_taus


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho with its uncertainty.

    Attributes:
        n: Number of points.
        rho: The coefficient; ``None`` where it is undefined (a constant variable).
        ci_low: Lower end of the bootstrap percentile interval; ``None`` if undefined.
        ci_high: Upper end.
        p_value: Two-sided permutation p-value of ``rho = 0``; ``None`` if undefined.
        level: Confidence level of the interval.
    """

    n: int
    rho: float | None
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    level: float = 0.95


def spearman(
    x: Sequence[float] | FloatArray,
    y: Sequence[float] | FloatArray,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> RankCorrelation:
    """Spearman's rho of paired values, with an interval and a p-value.

    The interval is the percentile bootstrap over pairs; the p-value is a two-sided
    permutation test that counts the observed order itself, so it is never zero
    (Phipson and Smyth 2010). Ties get average ranks.

    Args:
        x: ``(n,)`` values.
        y: ``(n,)`` values, paired with ``x``.
        resamples: Number of bootstrap resamples and of permutations.
        level: Confidence level of the interval.
        seed: Seed of the resampling; equal inputs and seeds give equal results.

    Returns:
        The correlation. ``rho`` is ``None`` where a variable is constant.

    Raises:
        DataError: If lengths differ, values are not finite, or there are fewer than
            four pairs.

    Example:
        >>> found = spearman([1, 2, 3, 4, 5], [1, 4, 9, 16, 25])  # any increasing function
        >>> round(found.rho, 12), found.n
        (1.0, 5)
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    require_pairs(a, b)
    n = a.size
    rho = float(row_correlation(centred_ranks(a[None]), centred_ranks(b[None]))[0])
    if not np.isfinite(rho):
        return RankCorrelation(n, None, None, None, None, level)
    rng = numpy_generator(seed)
    rows = rng.integers(0, n, size=(resamples, n))
    drawn = row_correlation(centred_ranks(a[rows]), centred_ranks(b[rows]))
    low, high = interval(drawn, level)
    return RankCorrelation(n, rho, low, high, _permutation_p(a, b, resamples, rng), level)


def kendall(
    x: Sequence[float] | FloatArray,
    y: Sequence[float] | FloatArray,
    *,
    resamples: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> RankCorrelation:
    """Kendall's tau-b of paired values, with a bootstrap interval and SciPy's p-value.

    Args:
        x: ``(n,)`` values.
        y: ``(n,)`` values, paired with ``x``.
        resamples: Number of bootstrap resamples.
        level: Confidence level of the interval.
        seed: Seed of the resampling.

    Returns:
        The correlation; ``rho`` holds tau-b, and is ``None`` where a variable is constant.

    Raises:
        DataError: As for :func:`spearman`.

    Example:
        >>> found = kendall([1, 2, 3, 4], [1, 2, 4, 3])  # one of six pairs is the wrong way round
        >>> round(found.rho, 12)  # (5 - 1) / 6
        0.666666666667
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    require_pairs(a, b)
    n = a.size
    found = stats.kendalltau(a, b)
    if not np.isfinite(found.statistic):
        return RankCorrelation(n, None, None, None, None, level)
    counts = numpy_generator(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    drawn = resampled_taus(a[None], b[None], counts.astype(np.float64))[:, 0, 0]
    low, high = interval(drawn, level)
    return RankCorrelation(n, float(found.statistic), low, high, float(found.pvalue), level)


def _permutation_p(a: FloatArray, b: FloatArray, draws: int, rng: np.random.Generator) -> float:
    ranks_a, ranks_b = centred_ranks(a[None])[0], centred_ranks(b[None])[0]
    observed = abs(float(ranks_a @ ranks_b))
    shuffled = rng.permuted(np.broadcast_to(ranks_b, (draws, b.size)), axis=1) @ ranks_a
    # Ranks are half-integers: any slack below 1/4 absorbs round-off and no real difference.
    extreme = int((np.abs(shuffled) >= observed - 1e-6).sum())
    return (1 + extreme) / (1 + draws)
