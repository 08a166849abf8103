"""Differences that claims rest on: of two correlations, of two means, of paired values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from invariance.core._errors import DataError
from invariance.core._rng import numpy_generator
from invariance.stats._interval_estimate import IntervalEstimate
from invariance.stats._ranks import FloatArray, interval, require_pairs
from invariance.stats._resampled import bootstrap_counts, resampled_correlations

Sample = Sequence[float] | FloatArray


def spearman_difference(
    x: Sample,
    other: Sample,
    target: Sample,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> IntervalEstimate:
    """Say how much better ``x`` ranks ``target`` than ``other`` does, on the same networks.

    Both correlations come from the same resamples, so what they share cancels. The p-value
    is the share of resamples on the far side of zero, doubled, and never zero.

    Args:
        x: ``(n,)`` values of one measure.
        other: ``(n,)`` values of the other.
        target: ``(n,)`` values that both are correlated with.
        resamples: Number of bootstrap resamples.
        level: Confidence level.
        seed: Seed of the resampling.

    Returns:
        ``rho(x, target) - rho(other, target)``; undefined where a variable is constant.

    Raises:
        DataError: If the samples are not paired, not finite or too short.

    Example:
        >>> target = [1, 2, 3, 4, 5, 6]
        >>> found = spearman_difference(target, target[::-1], target, resamples=200)
        >>> round(found.value, 12)  # 1 - (-1)
        2.0
    """
    a, b, y = (np.asarray(v, dtype=np.float64) for v in (x, other, target))
    require_pairs(a, y)
    require_pairs(b, y)
    pair, n = np.stack([a, b]), y.size
    method = "percentile bootstrap over networks, both correlations in each resample; null: equal"
    rho = resampled_correlations(pair, y[None], np.ones((1, n)))[0, :, 0]
    if not np.isfinite(rho).all():
        return IntervalEstimate(None, None, None, None, n, method, level)
    drawn = resampled_correlations(pair, y[None], bootstrap_counts(n, resamples, seed))[:, :, 0]
    gain = drawn[:, 0] - drawn[:, 1]
    gain = gain[np.isfinite(gain)]
    low, high = interval(gain, level)
    tail = min((gain <= 0).sum(), (gain >= 0).sum())
    p_value = min(1.0, 2 * (1 + float(tail)) / (1 + gain.size))
    return IntervalEstimate(float(rho[0] - rho[1]), low, high, p_value, n, method, level)


def mean_difference(a: Sample, b: Sample, *, level: float = 0.95) -> IntervalEstimate:
    """Difference of the means of two independent groups, by Welch's t.

    Args:
        a: Values of one group, at least two.
        b: Values of the other, at least two.
        level: Confidence level.

    Returns:
        ``mean(a) - mean(b)``; the groups may differ in variance.

    Raises:
        DataError: If a group has fewer than two values or one is not finite.

    Example:
        >>> mean_difference([1.0, 2.0, 3.0], [0.0, 1.0, 2.0]).value
        1.0
    """
    first, second = _sample(a), _sample(b)
    value = float(first.mean() - second.mean())
    parts = [float(group.var(ddof=1)) / group.size for group in (first, second)]
    n, method = first.size + second.size, "Welch's t; null: equal means"
    if sum(parts) == 0:
        return IntervalEstimate(value, value, value, None, n, "no spread in either group", level)
    # Welch and Satterthwaite's degrees of freedom.
    freedom = sum(parts) ** 2 / sum(
        part**2 / (group.size - 1) for part, group in zip(parts, (first, second), strict=True)
    )
    return _by_t(value, math.sqrt(sum(parts)), freedom, n, method, level)


def paired_mean_difference(a: Sample, b: Sample, *, level: float = 0.95) -> IntervalEstimate:
    """Mean of the differences of paired values, by Student's t.

    Args:
        a: ``(n,)`` values, at least two.
        b: ``(n,)`` values, paired with ``a``.
        level: Confidence level.

    Returns:
        ``mean(a - b)``.

    Raises:
        DataError: If the samples are not paired, not finite or shorter than two.

    Example:
        >>> found = paired_mean_difference([1.0, 2.0, 4.0], [0.0, 1.0, 2.0])  # 1, 1 and 2
        >>> round(found.value, 12)
        1.333333333333
    """
    first, second = _sample(a), _sample(b)
    if first.size != second.size:
        raise DataError(f"Expected pairs. Got {first.size} and {second.size} values.")
    difference = first - second
    value, error = float(difference.mean()), float(stats.sem(difference))
    n, method = first.size, "paired t; null: mean difference 0"
    if error == 0:
        return IntervalEstimate(value, value, value, None, n, "all differences are equal", level)
    return _by_t(value, error, n - 1, n, method, level)


def mean_ratio(
    a: Sample, b: Sample, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> IntervalEstimate:
    """Ratio of the means of two independent groups of positive values, by the BCa bootstrap.

    Args:
        a: Positive values of one group, at least two.
        b: Positive values of the other, at least two.
        resamples: Number of bootstrap resamples, each group resampled by itself.
        level: Confidence level.
        seed: Seed of the resampling.

    Returns:
        ``mean(a) / mean(b)`` with Efron's (1987) bias-corrected and accelerated interval. The
        p-value of equal means is that of :func:`mean_difference`.

    Raises:
        DataError: If a group has fewer than two values or one is not positive.

    Example:
        >>> mean_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], resamples=200).value
        2.0
    """
    first, second = _sample(a), _sample(b)
    if min(first.min(), second.min()) <= 0:
        raise DataError(
            "A ratio of means needs positive values, or its interval may hold a pole. "
            f"Got a least value of {min(first.min(), second.min()):g}; use mean_difference."
        )
    value = float(first.mean() / second.mean())
    rng = numpy_generator(seed)
    means = [
        group[rng.integers(0, group.size, size=(resamples, group.size))].mean(axis=1)
        for group in (first, second)
    ]
    left_out = [(group.sum() - group) / (group.size - 1) for group in (first, second)]
    jackknife = [left_out[0] / second.mean(), first.mean() / left_out[1]]
    low, high = bca_interval(value, means[0] / means[1], jackknife, level)
    return IntervalEstimate(
        value,
        low,
        high,
        mean_difference(first, second, level=level).p_value,
        first.size + second.size,
        "BCa bootstrap, groups resampled apart; p-value of Welch's t; null: equal means",
        level,
    )


def bca_interval(
    value: float, drawn: FloatArray, jackknife: Sequence[FloatArray], level: float
) -> tuple[float, float]:
    """Bias-corrected and accelerated interval of a statistic (Efron 1987).

    Shapes: ``drawn (r,)``.
    """
    if np.ptp(drawn) == 0:
        return value, value
    below = ((drawn < value).mean() + (drawn <= value).mean()) / 2
    edge = 1 / (2 * drawn.size)  # all draws on one side: as far out as the draws can tell
    bias = float(stats.norm.ppf(min(max(below, edge), 1 - edge)))
    # Each sample's jackknife influences, scaled as for a statistic of several samples.
    influence = [(group.size - 1) * (group.mean() - group) for group in jackknife]
    cubes = sum(float((u**3).sum()) / u.size**3 for u in influence)
    squares = sum(float((u**2).sum()) / u.size**2 for u in influence)
    acceleration = cubes / (6 * squares**1.5) if squares > 0 else 0.0
    ends = []
    for share in ((1 - level) / 2, (1 + level) / 2):
        z = bias + float(stats.norm.ppf(share))
        ends.append(float(stats.norm.cdf(bias + z / (1 - acceleration * z))))
    low, high = (float(end) for end in np.quantile(drawn, ends))
    return low, high


def _by_t(
    value: float, error: float, freedom: float, n: int, method: str, level: float
) -> IntervalEstimate:
    half = error * float(stats.t.ppf((1 + level) / 2, freedom))
    p_value = float(2 * stats.t.sf(abs(value) / error, freedom))
    return IntervalEstimate(value, value - half, value + half, p_value, n, method, level)


def _sample(values: Sample) -> FloatArray:
    found: FloatArray = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or found.size < 2 or not np.isfinite(found).all():
        raise DataError(
            "Expected at least two finite values in each group. "
            f"Got shape {found.shape} with {int(np.isfinite(found).sum())} finite values."
        )
    return found
