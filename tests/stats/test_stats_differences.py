"""Catches: differences that treat the same networks as independent, ratios with a wrong BCa."""

import dataclasses

import numpy as np
import pytest
from scipy import stats as scipy_stats

from invariance.core._errors import DataError
from invariance.stats import (
    mean_difference,
    mean_ratio,
    paired_mean_difference,
    spearman,
    spearman_difference,
)
from invariance.stats._differences import bca_interval


def normals(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def test_welch_equals_scipy():
    a, b = normals(0, 12) + 1, 3 * normals(1, 25)
    found = mean_difference(a, b)
    reference = scipy_stats.ttest_ind(a, b, equal_var=False)
    low, high = reference.confidence_interval(0.95)
    assert (found.ci_low, found.ci_high) == pytest.approx((low, high))
    assert found.p_value == pytest.approx(reference.pvalue)
    assert found.value == pytest.approx(a.mean() - b.mean())


def test_paired_t_equals_scipy():
    a = normals(0, 15)
    b = a + 0.3 + 0.2 * normals(1, 15)
    found = paired_mean_difference(a, b, level=0.9)
    reference = scipy_stats.ttest_rel(a, b)
    low, high = reference.confidence_interval(0.9)
    assert (found.ci_low, found.ci_high) == pytest.approx((low, high))
    assert found.p_value == pytest.approx(reference.pvalue)


def test_ratio_equals_scipys_bca():
    a, b = np.exp(normals(0, 25)), np.exp(0.5 * normals(1, 18))
    found = mean_ratio(a, b, resamples=40_000)
    reference = scipy_stats.bootstrap(
        (a, b),
        lambda x, y, axis: x.mean(axis=axis) / y.mean(axis=axis),
        n_resamples=40_000,
        method="BCa",
        rng=3,
    ).confidence_interval
    assert found.value == pytest.approx(a.mean() / b.mean())
    assert (found.ci_low, found.ci_high) == pytest.approx((reference.low, reference.high), rel=0.02)


def test_bca_equals_scipys_on_the_same_resamples():
    a, b = np.exp(1.5 * normals(0, 20)), np.exp(normals(1, 14))

    def ratio(x, y, axis=-1):
        return x.mean(axis=axis) / y.mean(axis=axis)

    # An odd quantity of draws that is biased on purpose: the correction must move the ends.
    scipys = scipy_stats.bootstrap((a, b), ratio, n_resamples=999, method="BCa", rng=3)
    drawn = scipys.bootstrap_distribution * 1.1
    moved = scipy_stats.bootstrap(
        (a, b),
        ratio,
        n_resamples=0,
        method="BCa",
        bootstrap_result=dataclasses.replace(scipys, bootstrap_distribution=drawn),
        rng=3,
    ).confidence_interval
    left_out = [np.array([np.delete(g, i).mean() for i in range(g.size)]) for g in (a, b)]
    jackknife = [left_out[0] / b.mean(), a.mean() / left_out[1]]
    mine = bca_interval(ratio(a, b), drawn, jackknife, 0.95)
    assert mine == pytest.approx((moved.low, moved.high), rel=1e-9)
    assert mine[0] < 0.97 * np.quantile(drawn, 0.025)


def test_ratio_scales_with_its_numerator():
    a, b = np.exp(normals(0, 25)), np.exp(normals(1, 25))
    once, ten = mean_ratio(a, b), mean_ratio(10 * a, b)
    assert (ten.value, ten.ci_low, ten.ci_high) == pytest.approx(
        (10 * once.value, 10 * once.ci_low, 10 * once.ci_high)
    )


def test_difference_of_correlations_knows_that_the_networks_are_the_same():
    y = normals(0, 80)
    x = y + 0.5 * normals(1, 80)
    nearly = x + 0.01 * normals(2, 80)
    found = spearman_difference(x, nearly, y)
    alone = spearman(x, y)
    assert found.value == pytest.approx(alone.rho - spearman(nearly, y).rho)
    # What both share cancels: far narrower than either correlation's own interval.
    assert found.ci_high - found.ci_low < 0.2 * (alone.ci_high - alone.ci_low)


def test_difference_of_correlations_by_a_loop():
    y, x, other = normals(5, 3, 25)
    found = spearman_difference(x, other, y, resamples=300, seed=9)
    rows = np.random.default_rng(9).integers(0, 25, size=(300, 25))
    rho = [[scipy_stats.spearmanr(v[r], y[r]).statistic for r in rows] for v in (x, other)]
    loop = np.subtract(*rho)
    assert (found.ci_low, found.ci_high) == pytest.approx(np.quantile(loop, [0.025, 0.975]))


def test_a_measure_does_not_differ_from_itself_nor_from_its_monotone_image():
    y, x = normals(5, 2, 25)
    found = spearman_difference(x, np.exp(x), y)
    assert (found.value, found.ci_low, found.ci_high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_opposite_measures_differ_surely():
    y = normals(0, 40)
    assert spearman_difference(y, -y, y).p_value == pytest.approx(2 / 10_001)


def test_constants_and_no_spread():
    assert spearman_difference([1.0] * 6, range(6), range(6)).value is None
    equal = mean_difference([2.0, 2.0], [1.0, 1.0])
    assert (equal.value, equal.ci_low, equal.ci_high, equal.p_value) == (1.0, 1.0, 1.0, None)
    assert paired_mean_difference([2.0, 3.0], [1.0, 2.0]).ci_high == 1.0
    assert mean_ratio([2.0, 2.0], [1.0, 1.0]).ci_low == 2.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_difference([1.0], [1.0, 2.0]), "at least two"),
        (lambda: mean_difference([1.0, np.nan], [1.0, 2.0]), "finite"),
        (lambda: paired_mean_difference([1.0, 2.0], [1.0, 2.0, 3.0]), "pairs"),
        (lambda: mean_ratio([1.0, -2.0], [1.0, 2.0]), "positive"),
        (lambda: spearman_difference([1, 2, 3, 4], [1, 2, 3], [1, 2, 3, 4]), "equal length"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(DataError, match=words):
        call()


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = np.zeros(3)
    trials = 300
    for trial in range(trials):
        y = rng.normal(size=60)
        x, other = (y + rng.normal(size=60) for _ in range(2))  # equal true correlations
        found = [
            spearman_difference(x, other, y, resamples=400, seed=trial),
            mean_difference(rng.normal(1, 1, 12), rng.normal(0, 4, 30)),
            mean_ratio(rng.gamma(4, 2, 40), rng.gamma(4, 1, 30), resamples=400, seed=trial),
        ]
        truth = (0.0, 1.0, 2.0)
        hits += [f.ci_low <= t <= f.ci_high for f, t in zip(found, truth, strict=True)]
    assert ((hits / trials >= 0.9) & (hits / trials <= 0.985)).all(), hits / trials
