"""Catches: wrong tie handling in tau, partial correlations that leak, adjusted p out of order."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from invariance.core._errors import DataError
from invariance.stats import (
    benjamini_yekutieli,
    kendall,
    paired_wilcoxon,
    partial_spearman,
    spearman,
    stratified_spearman,
)


def test_tau_equals_scipy_and_its_interval_a_loop():
    rng = np.random.default_rng(5)
    x, y = np.round(rng.normal(size=20), 1), np.round(rng.normal(size=20), 1)
    result = kendall(x, y, resamples=300, seed=4)
    assert result.rho == pytest.approx(scipy_stats.kendalltau(x, y).statistic, abs=1e-12)
    counts = np.random.default_rng(4).multinomial(20, np.full(20, 1 / 20), size=300)
    loop = [scipy_stats.kendalltau(np.repeat(x, c), np.repeat(y, c)).statistic for c in counts]
    assert (result.ci_low, result.ci_high) == pytest.approx(np.quantile(loop, [0.025, 0.975]))


def test_partial_correlation_by_the_textbook_formula():
    rng = np.random.default_rng(2)
    z = rng.normal(size=60)
    x, y = z + rng.normal(size=60), z + rng.normal(size=60)
    r = scipy_stats.spearmanr(np.stack([x, y, z]), axis=1).statistic
    expected = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    result = partial_spearman(x, y, [z])
    assert result.rho == pytest.approx(expected, abs=1e-12)
    assert abs(result.rho) < abs(r[0, 1])


def test_nothing_given_is_plain_spearman():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=30), rng.normal(size=30)
    assert partial_spearman(x, y, []).rho == pytest.approx(scipy_stats.spearmanr(x, y).statistic)


def test_a_variable_given_itself_has_no_partial_correlation():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=30), rng.normal(size=30)
    assert partial_spearman(x, y, [np.exp(x)]).rho is None


def test_partial_needs_enough_points():
    with pytest.raises(DataError, match="at least 6 points"):
        partial_spearman(range(5), range(5), [range(5), [1, 0, 2, 1, 5]])


def test_benjamini_yekutieli_equals_scipy():
    p = [0.001, 0.04, 0.03, 0.5, 0.02]
    expected = scipy_stats.false_discovery_control(p, method="by")
    assert benjamini_yekutieli([p[0], None, *p[1:]]) == pytest.approx(
        [expected[0], None, *expected[1:]]
    )


def test_wilcoxon_effect_has_the_sign_of_the_difference():
    rng = np.random.default_rng(0)
    y = rng.normal(size=12)
    better = paired_wilcoxon(y + 1, y, alternative="greater")
    assert better.rank_biserial == 1.0
    assert better.p_value < 0.01
    assert paired_wilcoxon(y, y) == paired_wilcoxon(y * 2, y * 2)
    assert paired_wilcoxon(y, y).p_value == 1.0


def test_rank_biserial_is_the_simple_difference_of_favourable_and_other_ranks():
    rng = np.random.default_rng(3)
    x, y = np.round(rng.normal(size=(2, 30)), 1) + np.array([[0.3], [0]])
    x, y = np.round(x, 1), np.round(y, 1)  # ties, and pairs that are equal
    found = paired_wilcoxon(x, y)
    moved = [d for d in x - y if d != 0]
    rank = {abs(d): np.mean([k + 1 for k, e in enumerate(sorted(map(abs, moved))) if e == abs(d)])
            for d in moved}  # fmt: skip
    up = sum(rank[abs(d)] for d in moved if d > 0)
    down = sum(rank[abs(d)] for d in moved if d < 0)
    assert found.rank_biserial == pytest.approx((up - down) / (up + down))
    # SciPy's one-sided statistic is the sum of the ranks of positive differences.
    above = scipy_stats.wilcoxon(moved, alternative="greater").statistic
    assert found.rank_biserial == pytest.approx(2 * above / (up + down) - 1)
    assert found.n == len(moved) < 30


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1, 2, 3, 4], [1, 2, 3]),
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2, 3, math.nan], [1, 2, 3, 4]),
        ([1, 2, 3, 4], [1, math.inf, 3, 4]),
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]]),
    ],
)
def test_kendall_and_strata_refuse_what_spearman_refuses(x, y):
    for correlate in (spearman, kendall):
        with pytest.raises(DataError, match="Expected"):
            correlate(x, y)
    with pytest.raises(DataError, match="Expected"):
        stratified_spearman(x, y, ["a"] * np.size(x))
