"""Catches: pooling that hides Simpson's paradox, pooled intervals that are too narrow."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from invariance.core._errors import DataError
from invariance.stats import fixed_effect, random_effects, spearman, stratified_spearman


def paradox(seed=0, n=30):
    """Within each regime y falls with x; between regimes both rise."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(size=n), rng.normal(size=n) + 8])
    y = np.concatenate([-x[:n], -x[n:] + 16]) + 0.5 * rng.normal(size=2 * n)
    return x, y, ["small"] * n + ["large"] * n


def test_simpsons_paradox_is_seen():
    x, y, regime = paradox()
    found = stratified_spearman(x, y, regime)
    assert found.reversed
    assert found.within.value < -0.7 < 0.3 < found.naive.rho
    assert list(found.strata) == ["small", "large"]
    assert found.strata["large"].rho == spearman(x[30:], y[30:]).rho
    assert found.naive == spearman(x, y)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_pooled_correlation_near_zero_is_no_reversal(sign):
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(size=30), rng.normal(size=30) + 1.6])
    y = sign * (x - np.repeat([0, 3.2], 30)) + 0.3 * rng.normal(size=60)
    found = stratified_spearman(x, y, [0] * 30 + [1] * 30)
    assert sign * found.within.value > 0.8
    assert found.naive.ci_low < 0 < found.naive.ci_high
    assert not found.reversed


@pytest.mark.parametrize("sign", [1, -1])
def test_the_paradox_has_two_directions(sign):
    x, y, regime = paradox()
    assert stratified_spearman(x, sign * y, regime).reversed


def test_one_relation_in_all_strata_is_no_paradox():
    rng = np.random.default_rng(0)
    x = rng.normal(size=80)
    found = stratified_spearman(x, x + rng.normal(size=80), [i % 4 for i in range(80)])
    assert not found.reversed
    assert found.heterogeneity_p > 0.05


def test_the_pooled_value_by_hand():
    rhos, sizes = [0.5, -0.2], [23, 13]
    z = [math.atanh(r) for r in rhos]
    pooled = (20 * z[0] + 10 * z[1]) / 30
    error = math.sqrt((20 * (1 + 0.125) + 10 * (1 + 0.02)) / 30**2)
    found = fixed_effect(rhos, sizes)
    assert found.value == pytest.approx(math.tanh(pooled))
    assert found.ci_low == pytest.approx(math.tanh(pooled - 1.959963984540054 * error))
    assert found.p_value == pytest.approx(2 * scipy_stats.norm.sf(pooled / error))


def test_strata_that_are_too_small_or_constant_are_kept_but_not_pooled():
    x = [1.0, 2, 3, 4, 5, 6, 1, 1, 1, 1, 9, 8]
    y = [1.0, 3, 2, 4, 6, 5, 1, 2, 3, 4, 1, 2]
    found = stratified_spearman(x, y, ["a"] * 6 + ["b"] * 4 + ["c"] * 2)
    assert found.strata["b"].rho is None
    assert found.strata["c"].rho is None
    assert found.within.n == 6
    assert found.heterogeneity_p is None


def test_no_stratum_with_a_correlation():
    found = stratified_spearman([1.0] * 6, range(6), ["a"] * 6)
    assert found.within.value is None
    assert not found.reversed


def test_no_resamples_no_intervals():
    found = stratified_spearman(*paradox(), resamples=0)
    assert found.naive.ci_low is None
    assert found.within.ci_low is not None
    assert found.naive.rho == pytest.approx(stratified_spearman(*paradox()).naive.rho)


def dersimonian_laird(z, v):
    """The textbook, written as a loop."""
    w = [1 / vi for vi in v]
    centre = sum(a * b for a, b in zip(w, z, strict=True)) / sum(w)
    q = sum(a * (b - centre) ** 2 for a, b in zip(w, z, strict=True))
    c = sum(w) - sum(a * a for a in w) / sum(w)
    return max(0, (q - (len(z) - 1)) / c), q


def test_random_effects_by_the_textbook():
    rhos, sizes = [0.7, 0.1, 0.5, -0.1], [40, 50, 60, 45]
    z = [math.atanh(r) for r in rhos]
    v = [(1 + r * r / 2) / (n - 3) for r, n in zip(rhos, sizes, strict=True)]
    tau2, q = dersimonian_laird(z, v)
    found = random_effects(rhos, sizes)
    assert found.between_sd == pytest.approx(math.sqrt(tau2))
    assert found.i_squared == pytest.approx(1 - 3 / q)
    assert found.heterogeneity_p == pytest.approx(scipy_stats.chi2.sf(q, 3))
    w = [1 / (vi + tau2) for vi in v]
    mean = sum(a * b for a, b in zip(w, z, strict=True)) / sum(w)
    assert found.mean.value == pytest.approx(math.tanh(mean))
    assert found.mean.ci_low < math.tanh(mean) < found.mean.ci_high


def test_equal_correlations_have_no_spread_between():
    found = random_effects([0.4, 0.4, 0.4], [30, 40, 50])
    assert found.between_sd == 0
    assert found.i_squared == 0
    assert found.mean.value == pytest.approx(0.4)


def test_perfect_correlations_stay_finite():
    assert random_effects([1.0, 1.0], [10, 10]).mean.value == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fixed_effect([], []), "as many sizes"),
        (lambda: fixed_effect([0.5], [3]), "at least 4"),
        (lambda: fixed_effect([1.5], [30]), "between -1 and 1"),
        (lambda: random_effects([0.5], [30]), "at least two samples"),
        (lambda: stratified_spearman(range(6), range(6), ["a"] * 5), "a stratum a pair"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(DataError, match=words):
        call()


@pytest.mark.slow
@pytest.mark.parametrize("between", [0.0, 0.3])
def test_pooled_intervals_cover_the_truth(between):
    """Fixed effects cover where there is one truth; random effects cover in both cases."""
    rng = np.random.default_rng(4)
    hits, trials = np.zeros(2), 400
    for _ in range(trials):
        rhos = []
        for _ in range(8):
            rho = math.tanh(math.atanh(0.4) + between * rng.normal())
            pearson = 2 * math.sin(math.pi / 6 * rho)
            a, b = rng.normal(size=(2, 40))
            rhos.append(scipy_stats.spearmanr(a, pearson * a + math.sqrt(1 - pearson**2) * b)[0])
        for k, found in enumerate(
            (fixed_effect(rhos, [40] * 8), random_effects(rhos, [40] * 8).mean)
        ):
            hits[k] += found.ci_low <= 0.4 <= found.ci_high
    fixed, mixed = hits / trials
    assert 0.9 <= mixed <= 0.995
    assert (0.91 <= fixed <= 0.985) if between == 0 else fixed < 0.85
