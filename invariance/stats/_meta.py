"""Correlations of several samples summed up: Fisher's z, fixed and random effects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from invariance.core._errors import DataError
from invariance.stats._interval_estimate import IntervalEstimate


def fisher_z(rho: float) -> float:
    """Return Fisher's z of a correlation; one just inside the ends for -1 and 1."""
    return math.atanh(min(max(rho, -1 + 1e-12), 1 - 1e-12))


def fisher_z_variance(rho: float, n: int) -> float:
    """Return the variance of Fisher's z of Spearman's rho (Bonett and Wright 2000).

    Shapes: returns ``(1 + rho^2 / 2) / (n - 3)``.
    """
    if n < 4:
        raise DataError(f"Expected at least 4 points for the variance of Fisher's z. Got {n}.")
    return (1 + rho * rho / 2) / (n - 3)


def fixed_effect(
    rhos: Sequence[float], sizes: Sequence[int], *, level: float = 0.95
) -> IntervalEstimate:
    """Pool correlations that share one true value, weighted by ``n - 3`` on Fisher's scale.

    Args:
        rhos: Spearman's rho of each independent sample.
        sizes: Points in each, at least four.
        level: Level of the interval.

    Returns:
        The pooled correlation with a normal interval on Fisher's scale.

    Raises:
        DataError: If there is no sample or one is too small.

    Example:
        >>> pooled = fixed_effect([0.5, 0.5], [20, 20])
        >>> round(pooled.value, 12)
        0.5
    """
    _require(rhos, sizes)
    weight = np.array([n - 3.0 for n in sizes])
    z = np.array([fisher_z(rho) for rho in rhos])
    variance = np.array([fisher_z_variance(r, n) for r, n in zip(rhos, sizes, strict=True)])
    pooled = float((weight * z).sum() / weight.sum())
    error = math.sqrt((weight**2 * variance).sum()) / float(weight.sum())
    half = error * float(stats.norm.ppf((1 + level) / 2))
    return IntervalEstimate(
        math.tanh(pooled),
        math.tanh(pooled - half),
        math.tanh(pooled + half),
        float(2 * stats.norm.sf(abs(pooled) / error)),
        int(sum(sizes)),
        "Fisher's z, weights n - 3; normal interval; null: rho = 0",
        level,
    )


@dataclass(frozen=True)
class RandomEffects:
    """Correlations of several samples whose true values may differ.

    Attributes:
        mean: The mean correlation with its interval.
        between_sd: Standard deviation of the true values between samples, on Fisher's scale.
        i_squared: Share of the variance that is between samples, from 0 to 1.
        heterogeneity_p: P-value of Cochran's Q: all samples share one true value.
    """

    mean: IntervalEstimate
    between_sd: float
    i_squared: float
    heterogeneity_p: float


def random_effects(
    rhos: Sequence[float], sizes: Sequence[int], *, level: float = 0.95
) -> RandomEffects:
    """Pool correlations by DerSimonian and Laird (1986) with Hartung and Knapp's interval.

    Args:
        rhos: Spearman's rho of each independent sample; at least two.
        sizes: Points in each, at least four.
        level: Level of the interval.

    Returns:
        Mean, spread between samples, and the test of heterogeneity.

    Raises:
        DataError: If there are fewer than two samples or one is too small.

    Example:
        >>> pooled = random_effects([0.5, 0.5, 0.5], [20, 20, 20])
        >>> round(pooled.mean.value, 12), pooled.between_sd
        (0.5, 0.0)
    """
    _require(rhos, sizes)
    k = len(rhos)
    if k < 2:
        raise DataError(f"Expected at least two samples for random effects. Got {k}.")
    z = np.array([fisher_z(rho) for rho in rhos])
    variance = np.array([fisher_z_variance(r, n) for r, n in zip(rhos, sizes, strict=True)])
    w = 1 / variance
    centre = (w * z).sum() / w.sum()
    q = float((w * (z - centre) ** 2).sum())
    tau2 = max(0.0, (q - (k - 1)) / float(w.sum() - (w**2).sum() / w.sum()))
    w = 1 / (variance + tau2)
    mean = float((w * z).sum() / w.sum())
    # Hartung and Knapp's variance, never below the normal one: few samples can agree by luck.
    knapp = float((w * (z - mean) ** 2).sum() / (k - 1))
    error = math.sqrt(max(1.0, knapp) / float(w.sum()))
    half = error * float(stats.t.ppf((1 + level) / 2, k - 1))
    return RandomEffects(
        IntervalEstimate(
            math.tanh(mean),
            math.tanh(mean - half),
            math.tanh(mean + half),
            float(2 * stats.t.sf(abs(mean) / error, k - 1)),
            int(sum(sizes)),
            "random effects of Fisher's z (DerSimonian-Laird, Hartung-Knapp); null: mean = 0",
            level,
        ),
        math.sqrt(tau2),
        max(0.0, 1 - (k - 1) / q) if q > 0 else 0.0,
        float(stats.chi2.sf(q, k - 1)),
    )


def _require(rhos: Sequence[float], sizes: Sequence[int]) -> None:
    if len(rhos) != len(sizes) or not rhos:
        raise DataError(f"Expected as many sizes as correlations. Got {len(rhos)}, {len(sizes)}.")
    if not all(math.isfinite(r) and -1 <= r <= 1 for r in rhos):
        raise DataError(f"Expected correlations between -1 and 1. Got {list(rhos)}.")
