"""Rank correlations with intervals, and corrections for many tests, on SciPy."""

from invariance.stats.multiple import benjamini_yekutieli, holm
from invariance.stats.partial import partial_spearman
from invariance.stats.rank import RankCorrelation, kendall, spearman
from invariance.stats.wilcoxon import PairedTest, paired_wilcoxon

__all__ = [
    "PairedTest",
    "RankCorrelation",
    "benjamini_yekutieli",
    "holm",
    "kendall",
    "paired_wilcoxon",
    "partial_spearman",
    "spearman",
]
