"""Spearman's rank correlation with a bootstrap interval and a permutation test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from invariance.core._errors import DataError

FloatArray = npt.NDArray[np.float64]

#: With fewer points than this an interval by resampling means nothing.
MINIMUM_POINTS = 4


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
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    require_pairs(a, b)
    n = a.size
    rho = float(row_correlation(centred_ranks(a[None]), centred_ranks(b[None]))[0])
    if not np.isfinite(rho):
        return RankCorrelation(n, None, None, None, None, level)
    rng = np.random.default_rng(seed)
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
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    require_pairs(a, b)
    n = a.size
    found = stats.kendalltau(a, b)
    if not np.isfinite(found.statistic):
        return RankCorrelation(n, None, None, None, None, level)
    from invariance.stats._resampled import resampled_taus  # which builds on this module

    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    drawn = resampled_taus(a[None], b[None], counts.astype(np.float64))[:, 0, 0]
    low, high = interval(drawn, level)
    return RankCorrelation(n, float(found.statistic), low, high, float(found.pvalue), level)


def interval(draws: FloatArray, level: float) -> tuple[float, float]:
    """Return the percentile interval of bootstrap draws; undefined draws are left out."""
    kept = draws[np.isfinite(draws)]  # a resample of one repeated pair has no rho
    tail = (1 - level) / 2
    low, high = (float(end) for end in np.quantile(kept, [tail, 1 - tail]))
    return low, high


def require_pairs(a: FloatArray, b: FloatArray) -> None:
    """Refuse samples that are not paired, finite and long enough."""
    if a.ndim != 1 or a.shape != b.shape:
        raise DataError(
            f"Expected two one-dimensional samples of equal length. Got {a.shape} and {b.shape}."
        )
    if a.size < MINIMUM_POINTS:
        raise DataError(
            f"Expected at least {MINIMUM_POINTS} pairs for an interval. Got {a.size}. "
            "Train more networks."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError("Expected finite values. Got NaN or infinity; drop or repair those pairs.")


def centred_ranks(rows: FloatArray) -> FloatArray:
    """Rank each row with average ties, and centre it."""
    ranks: FloatArray = stats.rankdata(rows, axis=1)
    centred: FloatArray = ranks - ranks.mean(axis=1, keepdims=True)
    return centred


def row_correlation(a: FloatArray, b: FloatArray) -> FloatArray:
    """Correlate centred rows pairwise; NaN where a row is constant."""
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        rho: FloatArray = (a * b).sum(axis=1) / scale
    return rho


def _permutation_p(a: FloatArray, b: FloatArray, draws: int, rng: np.random.Generator) -> float:
    ranks_a, ranks_b = centred_ranks(a[None])[0], centred_ranks(b[None])[0]
    observed = abs(float(ranks_a @ ranks_b))
    shuffled = rng.permuted(np.broadcast_to(ranks_b, (draws, b.size)), axis=1) @ ranks_a
    # Ranks are half-integers: any slack below 1/4 absorbs round-off and no real difference.
    extreme = int((np.abs(shuffled) >= observed - 1e-6).sum())
    return (1 + extreme) / (1 + draws)
