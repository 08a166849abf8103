"""Paired comparisons with a baseline, against the formulas written out.

Catches: a treated network beside the wrong partner, effects with the wrong sign, resamples
that tear a seed's pairs apart, an effect at equal loss that is the loss's own.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from invariance.stats import benjamini_yekutieli, paired_wilcoxon
from invariance.studies import Config, Record
from invariance.studies.claims._paired_treatments import (
    Effect,
    adjusted,
    clustered_p,
    effect,
    pairs_of,
    rank_biserials,
    ratio_at_equal,
    seed_counts,
    share_of,
)


def record(treatment, seed, value, *, loss=1.0, batch=1):
    config = Config("t/1", {"treatment": treatment, "batch": batch}, seed)
    return Record(config, {"train_loss": loss}, {"measures": {"m": value}})


def treatment(r):
    return str(r.config.settings["treatment"])


def match(r):
    return r.config.settings["batch"], r.config.seed


def value(r):
    return float(r.measured["measures"]["m"])


def loss(r):
    return float(r.facts["train_loss"])


def paired(pairs):
    """Pairs of (treated, untreated) values, one a seed."""
    records = [record("none", s, b) for s, (_, b) in enumerate(pairs)]
    records += [record("some", s, a) for s, (a, _) in enumerate(pairs)]
    return pairs_of(records, treatment, match, "none")["some"]


def test_pairs_share_everything_but_the_treatment():
    records = [
        record(name, seed, 0.0, batch=batch)
        for name in ("some", "none", "more")
        for batch in (1, 2)
        for seed in (3, 1)
    ]
    del records[4]  # the untreated one of batch 1, seed 3
    found = pairs_of(records, treatment, match, "none")
    assert list(found) == ["some", "more"]
    for name, pairs in found.items():
        assert len(pairs) == 3
        for a, b in pairs:
            assert (treatment(a), treatment(b)) == (name, "none")
            assert match(a) == match(b)


@pytest.mark.parametrize("sign", [1, -1])
def test_effects_are_those_of_the_signed_rank_test(sign):
    draw = np.random.default_rng(0)
    a, b = draw.normal(0.4, 1, 12), draw.normal(0, 1, 12)
    found = effect("some", "m", paired(list(zip(a, b, strict=True))), value, sign=sign)
    expected = paired_wilcoxon(sign * a, sign * b)
    assert (found.n, found.seeds) == (12, 12)
    assert found.rank_biserial == pytest.approx(expected.rank_biserial)
    assert 0.5 < found.p_value / expected.p_value < 2  # a pair a seed: near Wilcoxon's own
    assert found.median == pytest.approx(np.median(a - b))
    assert found.ci_low <= found.rank_biserial <= found.ci_high


def test_resampled_effects_are_those_of_the_repeated_sample():
    draw = np.random.default_rng(1)
    difference = np.round(draw.normal(0.3, 1, 15), 1)  # ties, and zeros
    difference[3] = 0.0
    counts = draw.multinomial(15, np.full(15, 1 / 15), size=40).astype(float)
    found = rank_biserials(difference, counts)
    for row, got in zip(counts.astype(int), found, strict=True):
        sample = np.repeat(difference, row)
        expected = paired_wilcoxon(sample, np.zeros_like(sample)).rank_biserial
        assert got == pytest.approx(expected, abs=1e-12)
    assert rank_biserials(np.zeros(5), np.ones((2, 5))).tolist() == [0.0, 0.0]


def test_seeds_stay_together():
    seeds = np.array([4.0, 9.0, 4.0, 7.0, 9.0, 9.0])
    counts = seed_counts(seeds, 50, 0)
    assert (counts[:, 0] == counts[:, 2]).all()
    assert (counts[:, 1] == counts[:, 4]).all()
    assert (counts[:, 1] == counts[:, 5]).all()
    assert ((counts[:, 0] + counts[:, 1] + counts[:, 3]) == 3).all()
    assert len(np.unique(counts[:, 0])) > 1


def test_pairs_of_one_seed_are_one_witness():
    """Ten seeds with two equal pairs each say no more than ten seeds with one."""
    draw = np.random.default_rng(3)
    once = draw.normal(0.3, 1, 10)
    seeds = np.arange(10.0)
    alone = clustered_p(once, seeds)
    assert clustered_p(np.tile(once, 2), np.tile(seeds, 2)) == pytest.approx(alone, rel=0.01)
    assert clustered_p(np.tile(once, 2), np.arange(20.0)) < alone
    ranks = scipy.stats.rankdata(np.abs(once)) * np.sign(once)
    assert alone == pytest.approx(scipy.stats.ttest_1samp(ranks, 0).pvalue)
    assert clustered_p(np.ones(6), np.repeat([0.0, 1.0], 3)) == 0.5
    assert clustered_p(once, np.zeros(10)) is None


def test_a_test_of_no_effect_errs_as_often_as_it_says():
    draw = np.random.default_rng(4)
    seeds = np.repeat(np.arange(10.0), 2)
    wrong = 0
    for _ in range(400):
        difference = draw.normal(size=10)[seeds.astype(int)] + 0.3 * draw.normal(size=20)
        wrong += clustered_p(difference, seeds) <= 0.05
    assert 8 <= wrong <= 34  # 20 expected, sd 4.4; taking pairs for units would give 60 and more


def test_the_family_is_adjusted_together():
    effects = [
        Effect("t", str(i), 9, 0.5, p_value=p) for i, p in enumerate((0.01, None, 0.001, 0.6))
    ]
    found = [entry.p_by for entry in adjusted(effects)]
    assert found == benjamini_yekutieli([0.01, None, 0.001, 0.6])
    assert [entry.found() for entry in adjusted(effects)] == [1, 0, 1, 0]


def test_too_few_pairs_or_seeds_give_no_interval():
    assert effect("some", "m", paired([(1, 0)] * 3), value) == Effect("some", "m", 3)
    few = effect("some", "m", paired([(1, 0), (2, 1), (3, 1), (4, 2), (0, 1)]), value)
    assert few.rank_biserial is not None
    assert few.ci_low is None
    assert share_of(paired([(1, 0)] * 5), lambda a, b: True).ci_low is None
    missing = effect("some", "m", paired([(math.nan, 0)] + [(i, 0) for i in range(1, 8)]), value)
    assert missing.n == 7


def rows_at(factor, slope, treated_losses, untreated_losses):
    """Networks whose measure is factor * loss^slope if treated, loss^slope if not."""
    records = []
    for seed, (a, b) in enumerate(zip(treated_losses, untreated_losses, strict=True)):
        records.append(record("none", seed, b**slope, loss=b))
        records.append(record("some", seed, factor * a**slope, loss=a))
    return pairs_of(records, treatment, match, "none")["some"]


def test_at_equal_loss_only_the_treatment_is_left():
    draw = np.random.default_rng(2)
    untreated = draw.uniform(0.5, 1, 10)
    mixed = untreated * np.exp(draw.normal(0.5, 0.6, 10))
    for factor in (1.0, 3.0):
        found = ratio_at_equal(rows_at(factor, 1.7, mixed, untreated), value, loss)
        assert found.value == pytest.approx(factor)
        assert found.ci_low == pytest.approx(factor)
        assert not found.extrapolated
    higher = ratio_at_equal(rows_at(2.0, 1.7, untreated + mixed, untreated), value, loss)
    assert higher.extrapolated
    same = ratio_at_equal(rows_at(2.0, 1.0, 2 * untreated, untreated), value, loss)
    assert same.value is None  # one loss ratio: slope and intercept cannot be told apart
    assert ratio_at_equal(paired([(-1, 1)] * 8), value, loss).n == 0


def test_shares_leave_out_what_is_not_known():
    pairs = paired([(i, 3) for i in range(10)])
    found = share_of(pairs, lambda a, b: None if value(a) == 9 else value(a) > value(b))
    assert (found.value, found.n) == (5 / 9, 9)
    assert found.ci_low < 5 / 9 < found.ci_high


def test_a_share_of_all_or_none_has_the_exact_interval_of_its_seeds():
    pairs = paired([(i + 1, i) for i in range(8)])
    exact = scipy.stats.binomtest(8, 8).proportion_ci(0.95)
    every = share_of(pairs, lambda a, b: value(a) > value(b))
    assert (every.value, every.ci_high) == (1.0, 1.0)
    assert every.ci_low == pytest.approx(exact.low)
    none = share_of(pairs, lambda a, b: value(a) < value(b))
    assert (none.value, none.ci_low) == (0.0, 0.0)
    assert none.ci_high == pytest.approx(1 - exact.low)
    # Two pairs a seed are no more seeds.
    twice = share_of([*pairs, *pairs], lambda a, b: value(a) > value(b))
    assert twice.ci_low == pytest.approx(exact.low)
