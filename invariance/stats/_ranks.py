"""Ranks, and what every resampled statistic of them shares."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from invariance.core._errors import DataError

FloatArray = npt.NDArray[np.float64]

#: With fewer points than this an interval by resampling means nothing.
MINIMUM_POINTS = 4


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
