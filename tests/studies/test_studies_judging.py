"""How verdicts on correlations, differences and ratios come about.

Would catch: intervals of the wrong kind, a difference of dependent correlations taken as
independent, a test of zero that supports an absence, and verdicts that cannot fail.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from invariance.core._errors import UsageError
from invariance.papers.recipes import _claim_shapes as judging
from invariance.studies import Claim, Config, Record, Region
from invariance.studies.claims._claims import judged, p_from_interval


def simulated(n, slope, seed=0):
    """Records whose measure ``up`` follows the target, and ``noise`` does not."""
    rng = np.random.default_rng(seed)
    goal = rng.normal(size=n)
    up, noise = slope * goal + rng.normal(size=n), rng.normal(size=n)
    return [
        Record(
            Config("r/1", {}, i),
            {},
            {
                "targets": {"test_accuracy": float(goal[i])},
                "measures": {"up": float(up[i]), "noise": float(noise[i])},
                "rescaled": {},
            },
        )
        for i in range(n)
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"measure": "upp"}, r"measure of correlations 'upp'.*Did you mean 'up'.*up, noise"),
        ({"target": "gap"}, r"target of correlations 'gap'.*: test_accuracy"),
        ({"group": "n=2"}, r"group of correlations 'n=2'.*: n=1"),
    ],
)
def test_a_misspelt_name_is_an_error_not_an_open_question(changes, expected):
    rows = [
        {"measure": name, "target": "test_accuracy", "group": "n=1", "n": 9}
        for name in ("up", "noise")
    ]
    names = {"measure": "up", "target": "test_accuracy", "group": "n=1"} | changes
    assert judging.find_row(rows, *names.values()) is None
    group = {"group": names["group"]}
    for judge in (judging.rho_claim, judging.rescaled_claim, judging.partial_claim):
        paper = {"paper": None} if judge is judging.rho_claim else {}
        with pytest.raises(UsageError, match=expected):
            judge(rows, "a", "b", region=Region(low=0.0), **names, **paper)
    if "target" not in changes:
        with pytest.raises(UsageError, match=expected):
            judging.fixed_claim(rows, "a", "b", measures=[names["measure"]], **group)


def made(name="a", **changes):
    base = Claim(name, "s", "q", None, Region(low=0.0), 0.5, 0.1, 0.9, 40)
    return replace(base, **changes)


def test_one_rule_for_all_claims_of_a_study():
    """Would catch: a family that leaves claims out, or verdicts that ignore it."""
    claims = [made(str(i), p_value=p) for i, p in enumerate((0.01, 0.02, 0.04))]
    claims += [made("t", exact=True, ci_low=0.5, ci_high=0.5, basis="theorem"),
               made("n", p_value=1e-9, basis="not tested")]  # fmt: skip
    found = judged(claims)
    assert [c.p_adjusted for c in found] == [pytest.approx(0.03)] + [pytest.approx(0.04)] * 2 + [
        None, None,
    ]  # fmt: skip
    assert [c.verdict for c in found] == ["supported"] * 3 + ["theorem", "not tested"]
    assert {c.adjusted for c in found[:3]} == {"Holm over 3 claims"}
    assert [c.verdict for c in judged([*claims, *(made(p_value=0.5) for _ in range(3))])][:3] == [
        "open"
    ] * 3
    assert judged(found) == found  # judging twice changes nothing


def test_words_for_what_was_found():
    assert made(ci_low=-0.9, ci_high=-0.1, value=-0.5).verdict == "contradicted"
    assert made(ci_low=-0.1).verdict == "open"
    assert made(ci_low=0.5, ci_high=0.5).verdict == "open"  # a bootstrap without width
    assert made(ci_low=0.5, ci_high=0.5, exact=True).verdict == "supported"
    broken = made(value=-1.0, ci_low=-1.0, ci_high=-1.0, exact=True, basis="theorem")
    assert broken.verdict == "contradicted"
    old = made().to_dict() | {"verdict": "inconclusive"}
    for field in ("basis", "ours", "clusters", "p_adjusted"):
        del old[field]
    assert Claim.from_dict(old) == made()
    assert Claim.from_dict(made(region=Region(-0.2, 0.2)).to_dict()).region == Region(-0.2, 0.2)


@pytest.mark.parametrize("n", [5, 40])
def test_p_values_are_those_of_the_interval(n):
    """A t interval that excludes the end of the region by so much has this p-value."""
    sample = np.random.default_rng(n).normal(0.6, 1.0, n)
    value, low, high = judging.mean_interval(sample)
    claim = made(value=value, ci_low=low, ci_high=high, n=n)
    assert p_from_interval(claim) == pytest.approx(stats.ttest_1samp(sample, 0.0).pvalue)
    between = replace(claim, region=Region(-1.0, 1.0))
    nearest = min(stats.ttest_1samp(sample, end).pvalue for end in (-1.0, 1.0))
    assert p_from_interval(between) >= nearest
    assert p_from_interval(replace(claim, value=None)) is None
    bound = made(value=1.0, ci_low=0.7, ci_high=1.0, region=Region(0.5, 1.5), n=n)
    assert p_from_interval(bound) == pytest.approx(
        p_from_interval(replace(bound, region=Region(low=0.5)))
    )


def test_a_mean_on_its_bound_has_an_interval():
    assert judging.bounded_mean(np.ones(10), 0.0) == pytest.approx((1, 0.025**0.1, 1))
    assert judging.bounded_mean(-np.ones(5), 0.0) == pytest.approx((-1, -1, -(0.025**0.2)))
    flat = judging.bounded_mean(np.full(4, 0.5), 0.0)
    assert flat == (0.5, 0.5, 0.5)
    near = np.array([1.0, 1.0, 0.98])
    assert judging.bounded_mean(near, 0.0)[2] == 1.0


def test_dependent_differences_use_the_same_networks_twice():
    records = simulated(80, 1.5)
    (value, low, high), n = judging.dependent_difference(
        records, "up", "noise", signs=(1.0, -1.0), resamples=2_000
    )
    columns = {
        name: np.array([r.measured["measures"][name] for r in records]) for name in ("up", "noise")
    }
    goal = np.array([r.measured["targets"]["test_accuracy"] for r in records])
    expected = sum(stats.spearmanr(c, goal).statistic for c in columns.values())
    assert n == 80
    assert value == pytest.approx(expected)
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(2_000):
        rows = rng.integers(0, 80, 80)
        drawn.append(sum(stats.spearmanr(c[rows], goal[rows]).statistic for c in columns.values()))
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.04)
    same, _ = judging.dependent_difference(records, "up", "up", signs=(1.0, 1.0), resamples=50)
    assert same == (0.0, 0.0, 0.0)


def test_mean_differences_and_ratios_are_welchs():
    rng = np.random.default_rng(1)
    a, b = rng.normal(1, 0.1, 12), rng.normal(2, 0.3, 9)
    ends = stats.ttest_ind(b, a, equal_var=False).confidence_interval()
    assert judging.mean_difference(a, b) == pytest.approx((b.mean() - a.mean(), *ends))
    ratio, low, high = judging.mean_ratio(np.exp(a), np.exp(b))
    assert (math.log(ratio), math.log(low), math.log(high)) == pytest.approx(
        judging.mean_difference(a, b)
    )
    assert judging.mean_ratio(-a, b) == judging.UNDEFINED
    interval = stats.t.interval(0.95, 11, a.mean(), stats.sem(a))
    assert judging.mean_interval(a) == pytest.approx((a.mean(), *interval))


@pytest.mark.parametrize(
    ("measure", "region", "slope", "verdict"),
    [
        ("up", judging.POSITIVE, 2.0, "supported"),
        ("up", judging.NEGATIVE, 2.0, "contradicted"),
        ("noise", judging.POSITIVE, 2.0, "open"),
        ("up", Region(-0.2, 0.2), 2.0, "contradicted"),
        ("noise", Region(-0.4, 0.4), 2.0, "supported"),
    ],
)
def test_correlations_are_judged_by_interval_and_corrected_test(measure, region, slope, verdict):
    from invariance.studies.claims._correlations import correlation_rows

    rows = correlation_rows(
        simulated(120, slope), targets=("test_accuracy",), given=(), resamples=1_000
    )
    claim = judging.rho_claim(
        rows, "c", "s", measure=measure, group="all", region=region, paper=None
    )
    assert claim.verdict == verdict
    # A test of zero can support a sign and never an absence.
    assert (claim.p_value is not None) == (not region.low < 0 < region.high)


def test_an_undefined_correlation_is_open():
    row = {"measure": "m", "target": "test_accuracy", "group": "g", "n": 2, "family_size": 1}
    rows = [row | {"rho": None, "max_relative_change": None}]
    claim = judging.rho_claim(
        rows, "c", "s", measure="m", group="g", region=judging.POSITIVE, paper=0.1
    )
    assert (claim.value, claim.n, claim.verdict) == (None, 2, "open")
    fixed = judging.fixed_claim(rows, "c", "s", measures=("m",), group="g")
    assert fixed.verdict == "open"


def test_widths_shrink_with_the_root_of_the_number_of_networks():
    row = {"rho": 0.3}
    wide, narrow = judging.width_at(row, 103), judging.width_at(row, 403)
    assert wide == pytest.approx(2 * narrow, rel=0.02)
    assert judging.width_at({"rho": None}, 100) is None
    errors = [
        stats.spearmanr(*np.random.default_rng(s).multivariate_normal(
            [0, 0], [[1, 0.31], [0.31, 1]], 103).T).statistic for s in range(400)
    ]  # fmt: skip
    assert wide == pytest.approx(2 * 1.96 * np.std(errors), rel=0.15)


@pytest.mark.parametrize(
    ("rho", "networks", "wide"),
    [
        # Bonett and Wright by hand: z +- 1.96 sqrt((1 + rho^2 / 2) / (n - 3)).
        (0.0, 103, 2 * np.tanh(0.196)),
        (0.6, 21, np.tanh(np.log(2) + 1.96 * np.sqrt(1.18 / 18))
         - np.tanh(np.log(2) - 1.96 * np.sqrt(1.18 / 18))),
        (-0.6, 21, np.tanh(np.log(2) + 1.96 * np.sqrt(1.18 / 18))
         - np.tanh(np.log(2) - 1.96 * np.sqrt(1.18 / 18))),
    ],
)  # fmt: skip
def test_the_width_of_an_interval_by_hand(rho, networks, wide):
    assert judging.width_at({"rho": rho}, networks) == pytest.approx(wide, rel=1e-12)
    assert judging.width_at({"rho": rho}, 4) is not None
    assert judging.width_at({"rho": rho}, 3) is None
