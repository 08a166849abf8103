"""Rank correlations with intervals, what claims compare, and corrections for many tests."""

from invariance.stats._differences import (
    mean_difference,
    mean_ratio,
    paired_mean_difference,
    spearman_difference,
)
from invariance.stats._granulated import (
    GranulatedKendall,
    SignError,
    granulated_kendall,
    hoeffding_weight,
    sign_error,
)
from invariance.stats._interval_estimate import IntervalEstimate
from invariance.stats._meta import RandomEffects, fixed_effect, random_effects
from invariance.stats._multiple import benjamini_yekutieli, holm
from invariance.stats._partial import partial_spearman
from invariance.stats._rank_correlation import RankCorrelation, kendall, spearman
from invariance.stats._stratified import StratifiedCorrelation, stratified_spearman
from invariance.stats._wilcoxon import PairedTest, paired_wilcoxon

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
