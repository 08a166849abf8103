"""Paired comparison of two treatments: Wilcoxon's signed-rank test with its effect size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from invariance.stats._ranks import FloatArray, require_pairs


@dataclass(frozen=True)
class PairedTest:
    """A paired test with an effect size.

    Attributes:
        n: Number of pairs that differ.
        p_value: Of the test; 1.0 where no pair differs.
        rank_biserial: Matched-pairs rank-biserial correlation in [-1, 1] (Kerby 2014);
            positive when ``x`` tends to exceed ``y``.
        median_difference: Median of ``x - y`` over all pairs.
    """

    n: int
    p_value: float
    rank_biserial: float
    median_difference: float


def paired_wilcoxon(
    x: Sequence[float] | FloatArray,
    y: Sequence[float] | FloatArray,
    *,
    alternative: Literal["two-sided", "greater", "less"] = "two-sided",
) -> PairedTest:
    """Test whether paired values differ.

    Args:
        x: ``(n,)`` values.
        y: ``(n,)`` values, paired with ``x``.
        alternative: ``"greater"`` tests whether ``x`` exceeds ``y``.

    Returns:
        The test; pairs that are equal are left out (Wilcoxon's rule).

    Raises:
        DataError: If the samples are not paired, not finite or shorter than four.

    Example:
        >>> found = paired_wilcoxon([2, 3, 4, 5, 6], [1, 1, 1, 1, 1])  # all five differ one way
        >>> found.p_value, found.rank_biserial  # 2 of the 2^5 sign patterns
        (0.0625, 1.0)
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    require_pairs(a, b)
    difference = a - b
    moved = difference[difference != 0]
    median = float(np.median(difference))
    if moved.size == 0:
        return PairedTest(0, 1.0, 0.0, median)
    found = stats.wilcoxon(moved, alternative=alternative)
    ranks = stats.rankdata(np.abs(moved))
    effect = float((ranks * np.sign(moved)).sum() / ranks.sum())
    return PairedTest(int(moved.size), float(found.pvalue), effect, median)
