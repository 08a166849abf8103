"""Catches: resampled ranks that forget ties or counts, partials from the wrong matrix blocks."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from invariance.core._errors import DataError
from invariance.stats import kendall, partial_spearman, spearman
from invariance.stats._ranks import interval
from invariance.stats._resampled import (
    bootstrap_counts,
    partial_from_correlations,
    permutation_p_values,
    resampled_correlations,
    resampled_taus,
)


def sample(seed, variables=4, n=23, *, ties):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(variables, n)) + rng.normal(size=n)
    return np.round(values) if ties else values


@pytest.mark.parametrize("ties", [False, True])
def test_every_resample_equals_scipy_on_the_repeated_points(ties):
    values = sample(1, ties=ties)
    counts = bootstrap_counts(23, 40, seed=3)
    rho = resampled_correlations(values[:2], values[2:], counts)
    tau = resampled_taus(values[:2], values[2:], counts)
    for r, count in enumerate(counts.astype(int)):
        drawn = np.repeat(values, count, axis=1)
        for i in range(2):
            for j in range(2):
                pair = drawn[i], drawn[2 + j]
                assert rho[r, i, j] == pytest.approx(scipy_stats.spearmanr(*pair).statistic)
                assert tau[r, i, j] == pytest.approx(scipy_stats.kendalltau(*pair).statistic)


def test_blocks_of_resamples_are_joined_without_a_seam(monkeypatch):
    values, counts = sample(1, ties=True), bootstrap_counts(23, 50, seed=3)
    whole = resampled_correlations(values[:2], values[2:], counts)
    monkeypatch.setattr("invariance.stats._resampled.BLOCK", 23 * 7)
    assert np.allclose(resampled_correlations(values[:2], values[2:], counts), whole, atol=1e-14)
    monkeypatch.setattr("invariance.stats._resampled.MEMORY", 8 * 23 * 7)
    rng = np.random.default_rng
    small = permutation_p_values(values[:2], values[2], draws=50, rng=rng(0))
    monkeypatch.undo()
    assert (small == permutation_p_values(values[:2], values[2], draws=50, rng=rng(0))).all()


@pytest.mark.parametrize("ties", [False, True])
def test_intervals_equal_those_of_one_pair_at_a_time(ties):
    values = sample(2, ties=ties)
    drawn = resampled_correlations(values[:3], values[3:], bootstrap_counts(23, 2_000, seed=5))
    for i in range(3):
        alone = spearman(values[i], values[3], resamples=2_000, seed=5)
        assert interval(drawn[:, i, 0], 0.95) == pytest.approx((alone.ci_low, alone.ci_high))


def test_partial_intervals_equal_regression_in_each_resample():
    values = sample(3, variables=5, ties=True)
    counts = bootstrap_counts(23, 500, seed=7)
    rho = resampled_correlations(values, values[1:], counts)
    drawn = partial_from_correlations(
        rho[:, :1, :1], rho[:, :1, 1:], rho[:, 1:2, 1:], rho[:, 2:, 1:]
    )[:, 0, 0]
    slow = partial_spearman(values[0], values[1], list(values[2:]), resamples=500, seed=7)
    assert interval(drawn, 0.95) == pytest.approx((slow.ci_low, slow.ci_high))


def test_a_variable_that_the_fixed_ones_explain_has_no_partial_correlation():
    values = sample(3, variables=3, ties=False)
    rho = resampled_correlations(values, values, np.ones((1, 23)))
    same = partial_from_correlations(
        rho[:, :1, 1:2], rho[:, :1, [0]], rho[:, 1:2, [0]], rho[:, [0]][:, :, [0]]
    )
    assert np.isnan(same).all()


def test_a_constant_has_no_correlation_and_explains_nothing():
    values = sample(3, variables=2, ties=False)
    constant = np.ones((1, 23))
    rho = resampled_correlations(np.vstack([values, constant]), np.vstack([values, constant]),
                                 np.ones((1, 23)))  # fmt: skip
    assert np.isnan(rho[0, 2]).all()
    given_constant = partial_from_correlations(
        rho[:, :1, 1:2], rho[:, :1, 2:], rho[:, 1:2, 2:], rho[:, 2:, 2:]
    )
    assert given_constant[0, 0, 0] == pytest.approx(rho[0, 0, 1])


def test_counts_are_a_bootstrap_of_the_asked_size():
    counts = bootstrap_counts(10, 4_000, seed=0, size=30)
    assert (counts.sum(axis=1) == 30).all()
    # Binomial(30, 1/10): variance 2.7.
    assert counts.var(axis=0) == pytest.approx(np.full(10, 2.7), rel=0.1)


def test_permutation_p_values_equal_full_enumeration():
    values = sample(4, variables=3, n=6, ties=True)
    mine = permutation_p_values(values[:2], values[2], draws=40_000, rng=np.random.default_rng(0))
    for i in range(2):
        observed = abs(scipy_stats.spearmanr(values[i], values[2]).statistic)
        orders = np.array(list(itertools.permutations(scipy_stats.rankdata(values[2]))))
        ranks = scipy_stats.rankdata(values[i])
        every = [abs(np.corrcoef(ranks, order)[0, 1]) >= observed - 1e-12 for order in orders]
        assert mine[i] == pytest.approx(np.mean(every), abs=0.01)


def test_permutation_p_values_are_never_zero():
    rising = np.arange(30.0)
    p = permutation_p_values(rising[None], rising, draws=500, rng=np.random.default_rng(0))
    assert p[0] == 1 / 501


def test_shapes_and_nan_are_named():
    with pytest.raises(DataError, match=r"\(a, n\), \(b, n\)"):
        resampled_correlations(np.zeros((1, 4)), np.zeros((1, 5)), np.ones((1, 4)))
    with pytest.raises(DataError, match="finite"):
        resampled_correlations(np.full((1, 4), np.nan), np.zeros((1, 4)), np.ones((1, 4)))


@pytest.mark.slow
@pytest.mark.parametrize(("tau", "n"), [(0.0, 30), (0.4, 30), (0.4, 100)])
def test_taus_interval_covers_the_truth_about_as_often_as_it_says(tau, n):
    rng = np.random.default_rng(2)
    pearson = np.sin(np.pi * tau / 2)  # of a bivariate normal with that tau
    hits = 0
    for trial in range(300):
        z = rng.multivariate_normal([0, 0], [[1, pearson], [pearson, 1]], size=n)
        found = kendall(z[:, 0], z[:, 1], resamples=400, seed=trial)
        hits += found.ci_low <= tau <= found.ci_high
    assert 0.88 <= hits / 300 <= 0.99
