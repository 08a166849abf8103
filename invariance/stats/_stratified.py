"""A correlation within strata beside the one that ignores them: Simpson's paradox, visible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from invariance.core._errors import DataError
from invariance.stats._interval_estimate import IntervalEstimate
from invariance.stats._meta import fisher_z, fisher_z_variance, fixed_effect
from invariance.stats._rank_correlation import RankCorrelation, spearman
from invariance.stats._ranks import (
    MINIMUM_POINTS,
    FloatArray,
    centred_ranks,
    require_pairs,
    row_correlation,
)


@dataclass(frozen=True)
class StratifiedCorrelation:
    """Rank correlations within strata, pooled over them, and ignoring them.

    Attributes:
        strata: Stratum to its correlation; strata with fewer than four points, or in which a
            variable is constant, hold ``rho = None``.
        within: Their common value by Fisher's z; undefined if no stratum has one.
        naive: The correlation over all points as if there were no strata.
        heterogeneity_p: P-value of equal correlations in all strata; ``None`` below two.
        reversed: Whether ``within`` and ``naive`` have opposite signs and neither interval
            holds zero: Simpson's paradox beyond doubt.
    """

    strata: Mapping[str, RankCorrelation]
    within: IntervalEstimate
    naive: RankCorrelation
    heterogeneity_p: float | None
    reversed: bool


def stratified_spearman(
    x: Sequence[float] | FloatArray,
    y: Sequence[float] | FloatArray,
    strata: Sequence[object],
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> StratifiedCorrelation:
    """Correlate by ranks within each stratum, pooled over strata, and ignoring strata.

    Args:
        x: ``(n,)`` values.
        y: ``(n,)`` values, paired with ``x``.
        strata: ``n`` labels.
        resamples: Resamples of the intervals within strata and of the naive one; 0 for none.
        level: Confidence level.
        seed: Seed of the resampling.

    Returns:
        All three correlations.

    Raises:
        DataError: If the samples are not paired, not finite or too short.

    Example:
        Falling within each of two groups, rising between them (Simpson's paradox):

        >>> x, y = [1, 2, 3, 4, 11, 12, 13, 14], [4, 3, 2, 1, 14, 13, 12, 11]
        >>> found = stratified_spearman(x, y, ["a"] * 4 + ["b"] * 4)
        >>> found.naive.rho > 0, round(found.strata["a"].rho, 12)
        (True, -1.0)
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    require_pairs(a, b)
    labels = [str(label) for label in strata]
    if len(labels) != a.size:
        raise DataError(f"Expected a stratum a pair. Got {len(labels)} for {a.size} pairs.")
    found: dict[str, RankCorrelation] = {}
    for label in dict.fromkeys(labels):
        mask = np.array([other == label for other in labels])
        found[label] = _correlate(a[mask], b[mask], resamples, level, seed)
    usable = [(c.rho, c.n) for c in found.values() if c.rho is not None]
    if usable:
        within = fixed_effect([rho for rho, _ in usable], [n for _, n in usable], level=level)
    else:
        within = IntervalEstimate(None, None, None, None, 0, "no stratum has a correlation", level)
    naive = _correlate(a, b, resamples, level, seed)
    return StratifiedCorrelation(
        found, within, naive, _heterogeneity(usable), _is_reversed(within, naive)
    )


def _correlate(
    a: FloatArray, b: FloatArray, resamples: int, level: float, seed: int
) -> RankCorrelation:
    if a.size < MINIMUM_POINTS:
        return RankCorrelation(a.size, None, None, None, None, level)
    if resamples:
        return spearman(a, b, resamples=resamples, level=level, seed=seed)
    rho = float(row_correlation(centred_ranks(a[None]), centred_ranks(b[None]))[0])
    return RankCorrelation(a.size, rho if np.isfinite(rho) else None, None, None, None, level)


def _heterogeneity(usable: Sequence[tuple[float, int]]) -> float | None:
    if len(usable) < 2:
        return None
    z = np.array([fisher_z(rho) for rho, _ in usable])
    w = 1 / np.array([fisher_z_variance(rho, n) for rho, n in usable])
    q = (w * (z - (w * z).sum() / w.sum()) ** 2).sum()
    return float(stats.chi2.sf(q, len(usable) - 1))


def _is_reversed(within: IntervalEstimate, naive: RankCorrelation) -> bool:
    ends = (within.ci_low, within.ci_high, naive.ci_low, naive.ci_high)
    if any(end is None for end in ends):
        return False
    low, high, naive_low, naive_high = (float(end) for end in ends if end is not None)
    return (low > 0 and naive_high < 0) or (high < 0 and naive_low > 0)
