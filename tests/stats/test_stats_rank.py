"""Catches: wrong ties, p-values of exactly zero, intervals that do not cover, unseeded draws."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from invariance.core._errors import DataError
from invariance.stats import holm, spearman


@pytest.mark.parametrize("ties", [False, True])
def test_rho_equals_scipy(ties):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=40), rng.normal(size=40)
    if ties:
        x, y = np.round(x), np.round(y)
    assert spearman(x, y).rho == pytest.approx(scipy_stats.spearmanr(x, y).statistic, abs=1e-12)


def test_p_value_equals_full_enumeration():
    x, y = np.arange(6.0), np.array([2.0, 0, 1, 5, 3, 4])
    observed = abs(scipy_stats.spearmanr(x, y).statistic)
    draws = [
        abs(scipy_stats.spearmanr(x, p).statistic) >= observed - 1e-12
        for p in itertools.permutations(y)
    ]
    assert spearman(x, y, resamples=40_000).p_value == pytest.approx(np.mean(draws), abs=0.01)


def test_p_value_is_never_zero():
    assert spearman(range(30), range(30), resamples=1_000).p_value == 1 / 1_001


def test_monotone_transforms_change_nothing_to_the_last_digit():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=25), rng.normal(size=25)
    assert spearman(np.exp(x), y**3) == spearman(x, y)


def test_constant_variable_has_no_correlation():
    result = spearman([1.0] * 8, range(8))
    assert result.rho is None
    assert result.p_value is None


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([1, 2, 3], [1, 2, 3], "at least 4"),
        ([1, 2, 3, 4], [1, 2, 3], "equal length"),
        ([1, 2, 3, np.nan], [1, 2, 3, 4], "finite"),
    ],
)
def test_bad_input_is_named(x, y, words):
    with pytest.raises(DataError, match=words):
        spearman(x, y)


def test_holm_by_hand():
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])


@pytest.mark.slow
def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    cov = 2 * np.sin(np.pi / 6 * 0.5)  # Pearson correlation whose Spearman rho is 0.5
    hits = 0
    for trial in range(300):
        z = rng.multivariate_normal([0, 0], [[1, cov], [cov, 1]], size=40)
        result = spearman(z[:, 0], z[:, 1], resamples=500, seed=trial)
        hits += result.ci_low <= 0.5 <= result.ci_high
    assert 0.88 <= hits / 300 <= 0.99
