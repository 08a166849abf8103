"""Rank correlations with intervals, what claims compare, and corrections for many tests."""

from invariance.stats.differences import (
    mean_difference,
    mean_ratio,
    paired_mean_difference,
    spearman_difference,
)
from invariance.stats.granulated import (
    GranulatedKendall,
    SignError,
    granulated_kendall,
    hoeffding_weight,
    sign_error,
)
from invariance.stats.interval_estimate import IntervalEstimate
from invariance.stats.meta import RandomEffects, fixed_effect, random_effects
from invariance.stats.multiple import benjamini_yekutieli, holm
from invariance.stats.partial import partial_spearman
from invariance.stats.rank import RankCorrelation, kendall, spearman
from invariance.stats.stratified import StratifiedCorrelation, stratified_spearman
from invariance.stats.wilcoxon import PairedTest, paired_wilcoxon

__all__ = [
    "GranulatedKendall",
    "IntervalEstimate",
    "PairedTest",
    "RandomEffects",
    "RankCorrelation",
    "SignError",
    "StratifiedCorrelation",
    "benjamini_yekutieli",
    "fixed_effect",
    "granulated_kendall",
    "hoeffding_weight",
    "holm",
    "kendall",
    "mean_difference",
    "mean_ratio",
    "paired_mean_difference",
    "paired_wilcoxon",
    "partial_spearman",
    "random_effects",
    "sign_error",
    "spearman",
    "spearman_difference",
    "stratified_spearman",
]
