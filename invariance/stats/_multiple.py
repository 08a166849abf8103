"""Corrections for looking at many tests at once."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment of a family of p-values.

    Args:
        p_values: Raw p-values; ``None`` entries are not part of the family.

    Returns:
        Adjusted p-values in the same order (Holm 1979), ``None`` where the input is.

    Example:
        >>> [round(p, 6) for p in holm([0.01, 0.04, 0.03])]  # x3, then x2 for the next, and so on
        [0.03, 0.06, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, i) in enumerate(known):
        running = max(running, min(1.0, (len(known) - rank) * p))
        adjusted[i] = running
    return adjusted


def benjamini_yekutieli(p_values: Sequence[float | None]) -> list[float | None]:
    """Benjamini and Yekutieli's adjustment: false discovery rate under any dependence.

    Args:
        p_values: Raw p-values; ``None`` entries are not part of the family.

    Returns:
        Adjusted p-values in the same order (Benjamini and Yekutieli 2001), ``None`` where
        the input is.

    Example:
        >>> [round(p, 6) for p in benjamini_yekutieli([0.01, 0.02])]  # 1 + 1/2 times p n / rank
        [0.03, 0.03]
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    m = len(known)
    harmonic = sum(1 / k for k in range(1, m + 1))
    smallest = 1.0
    for rank in range(m, 0, -1):
        p, i = known[rank - 1]
        smallest = min(smallest, p * m * harmonic / rank)
        adjusted[i] = smallest
    return adjusted
