"""Whether parallel chains have mixed, and how many independent draws they are worth."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def split_r_hat(draws: Array) -> float:
    """Potential scale reduction of split chains.

    Source: Gelman et al., "Bayesian Data Analysis", third edition, section 11.4.

    Shapes: ``draws (chains, length)``.
    """
    half = draws.shape[1] // 2
    if half < 2:
        return float("nan")
    parts = np.concatenate([draws[:, :half], draws[:, -half:]])
    within = parts.var(axis=1, ddof=1).mean()
    between = half * parts.mean(axis=1).var(ddof=1)
    if within == 0.0:
        return 1.0 if between == 0.0 else float("inf")
    return float(np.sqrt(((half - 1) / half * within + between / half) / within))


def effective_sample_size(draws: Array) -> float:
    """Effective sample size over all chains, by Geyer's initial monotone sequence.

    Source: Vehtari et al., "Rank-normalization, folding, and localization", Bayesian
    Analysis 16, 2021, equations 10 to 13.

    Shapes: ``draws (chains, length)``.
    """
    chains, length = draws.shape
    centred = draws - draws.mean(axis=1, keepdims=True)
    padded = np.fft.rfft(centred, n=2 * length, axis=1)
    covariance = np.fft.irfft(np.abs(padded) ** 2, axis=1)[:, :length] / length
    within = covariance[:, 0].mean() * length / max(1, length - 1)
    total = within * (length - 1) / length
    if chains > 1:
        total += draws.mean(axis=1).var(ddof=1)
    if total == 0.0:
        return float(draws.size)
    correlation = 1.0 - (within - covariance.mean(axis=0) * length / max(1, length - 1)) / total
    correlation[0] = 1.0
    pairs = correlation[: length // 2 * 2].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs <= 0.0)
    pairs = np.minimum.accumulate(pairs[: negative[0]] if negative.size else pairs)
    time = max(2.0 * pairs.sum() - 1.0, 0.5)
    return float(draws.size / time)
