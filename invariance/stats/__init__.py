"""Rank correlations with intervals, and corrections for many tests, on SciPy."""

from invariance.stats.rank import RankCorrelation, holm, spearman

__all__ = ["RankCorrelation", "holm", "spearman"]
