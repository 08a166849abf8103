"""Catches: networks dropped in silence, families of the wrong size, rows that depend on others."""

import json
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from invariance.core._errors import DataError, UsageError
from invariance.stats import (
    benjamini_yekutieli,
    holm,
    kendall,
    partial_spearman,
    spearman,
    stratified_spearman,
)
from invariance.studies import Config, Record
from invariance.studies.claims._correlations import column, correlation_rows


def record(seed, *, cell=500, facts=None, **measured):
    return Record(Config("made up/1", {"n_train": cell}, seed), facts or {}, measured)


def ensemble(n=30, cell=500, seed=0):
    rng = np.random.default_rng([seed, cell])
    records = []
    for i in range(n):
        skill, loss = rng.normal(size=2)
        trace = float(np.exp(-skill + rng.normal()))
        records.append(
            record(
                i,
                cell=cell,
                facts={"train_loss": float(loss), "epochs": int(rng.integers(1, 9)), "name": "x"},
                targets={"test_accuracy": float(skill), "generalization_gap": float(loss - skill)},
                measures={"trace": trace, "pairs": int(3 * skill), "weight_norm": float(loss**2)},
                rescaled={"trace": trace * float(np.exp(rng.normal())), "pairs": int(3 * skill),
                          "weight_norm": float(rng.normal())},
            )
        )  # fmt: skip
    return records


def n_of(entry):
    return f"n={entry.config.settings['n_train']}"


def find(rows, measure, target="test_accuracy", group="all"):
    (row,) = (
        r for r in rows if (r["measure"], r["target"], r["group"]) == (measure, target, group)
    )
    return row


def read(records, part, name):
    return [r.measured[part][name] for r in records]


def test_a_row_equals_one_pair_at_a_time():
    records = ensemble()
    row = find(correlation_rows(records, seed=3, resamples=2_000), "pairs")
    x, y = read(records, "measures", "pairs"), read(records, "targets", "test_accuracy")
    alone = spearman(x, y, seed=3, resamples=2_000)
    assert row["n"] == 30
    assert row["left_out"] == 0
    assert row["rho"] == pytest.approx(scipy_stats.spearmanr(x, y).statistic)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((alone.ci_low, alone.ci_high))
    assert row["p_value"] == pytest.approx(alone.p_value, abs=2e-3)
    tau = kendall(x, y, seed=3)
    assert row["kendall"] == pytest.approx(tau.rho)
    assert row["kendall_ci_low"] == pytest.approx(tau.ci_low, abs=0.05)
    assert row["kendall_ci_high"] == pytest.approx(tau.ci_high, abs=0.05)


def test_partial_correlations_equal_regression_of_ranks():
    records = ensemble()
    partial = find(correlation_rows(records, seed=3, resamples=500), "trace")["partial"]
    x, y = read(records, "measures", "trace"), read(records, "targets", "test_accuracy")
    given = {
        "train_loss": [r.facts["train_loss"] for r in records],
        "epochs": [r.facts["epochs"] for r in records],
        "weight_norm": read(records, "measures", "weight_norm"),
    }
    sets = {name: [values] for name, values in given.items()} | {"all": list(given.values())}
    assert partial.keys() == sets.keys()
    for name, others in sets.items():
        alone = partial_spearman(x, y, others, seed=3, resamples=500)
        got = partial[name]
        assert got["rho"] == pytest.approx(alone.rho)
        assert (got["ci_low"], got["ci_high"]) == pytest.approx((alone.ci_low, alone.ci_high))
        assert got["p_value"] == pytest.approx(alone.p_value)
    assert partial["all"]["given"] == list(given)


def test_rescaling_is_a_column_of_its_own():
    records = ensemble()
    rows = correlation_rows(records, resamples=500)
    trace, pairs = find(rows, "trace"), find(rows, "pairs")
    before, after = read(records, "measures", "trace"), read(records, "rescaled", "trace")
    y = read(records, "targets", "test_accuracy")
    alone = spearman(after, y, resamples=500)
    assert trace["rho_after_rescaling"] == pytest.approx(alone.rho)
    assert (trace["ci_low_after"], trace["ci_high_after"]) == pytest.approx(
        (alone.ci_low, alone.ci_high)
    )
    assert trace["max_relative_change"] == pytest.approx(
        max(abs(b - a) / a for a, b in zip(before, after, strict=True))
    )
    assert trace["stays_fixed"] is False
    assert pairs["stays_fixed"] is True
    assert pairs["rho_after_rescaling"] == pairs["rho"]


def test_round_off_stays_fixed_and_a_part_in_a_million_does_not():
    for change, fixed in ((1e-12, True), (1e-6, False)):
        records = [
            record(i, targets={"test_accuracy": i}, measures={"m": 2.0 + i},
                   rescaled={"m": (2.0 + i) * (1 + change)})
            for i in range(6)
        ]  # fmt: skip
        (row,) = correlation_rows(records, targets=["test_accuracy"], resamples=100)
        assert row["stays_fixed"] is fixed


def test_a_measure_lost_by_rescaling_does_not_stay_fixed():
    records = [
        record(i, targets={"test_accuracy": i}, measures={"m": 2.0 + i},
               rescaled={"m": math.inf if i == 3 else 2.0 + i})
        for i in range(6)
    ]  # fmt: skip
    (row,) = correlation_rows(records, targets=["test_accuracy"], resamples=100)
    assert row["max_relative_change"] == 0
    assert row["stays_fixed"] is False
    assert row["n_after_rescaling"] == 5


def test_groups_pool_and_families():
    records = ensemble(12, 500) + ensemble(12, 2_000)
    rows = correlation_rows(records, group=n_of, resamples=300)
    keys = [(r["target"], r["group"], r["measure"]) for r in rows]
    groups, measures = ("n=500", "n=2000", "pooled"), ("trace", "pairs", "weight_norm")
    assert keys == [
        (t, g, m) for t in ("test_accuracy", "generalization_gap") for g in groups for m in measures
    ]
    family = [r["p_value"] for r in rows if r["target"] == "test_accuracy"]
    assert len(family) == 9
    assert [r["p_holm"] for r in rows[:9]] == holm(family)
    assert [r["p_by"] for r in rows[:9]] == benjamini_yekutieli(family)
    assert {r["family_size"] for r in rows} == {9}
    by_group = correlation_rows(records, group=n_of, resamples=300, family="group")
    assert [r["p_holm"] for r in by_group[:3]] == holm([r["p_value"] for r in by_group[:3]])
    everything = correlation_rows(records, group=n_of, resamples=300, family="everything")
    assert {r["family_size"] for r in everything} == {18}
    apart = correlation_rows(records, group=n_of, pooled=False, resamples=300)
    assert {r["group"] for r in apart} == {"n=500", "n=2000"}


def test_pooled_rows_show_the_correlation_within_groups():
    records = ensemble(12, 500) + ensemble(12, 2_000)
    rows = correlation_rows(records, group=n_of, resamples=300)
    row = find(rows, "trace", group="pooled")
    expected = stratified_spearman(
        read(records, "measures", "trace"),
        read(records, "targets", "test_accuracy"),
        [n_of(r) for r in records],
        resamples=0,
    ).within
    assert row["rho_within"] == pytest.approx(expected.value)
    assert row["rho_within_ci_high"] == pytest.approx(expected.ci_high)
    assert find(rows, "trace", group="n=500")["rho_within"] is None


def test_networks_without_a_number_are_left_out_and_counted():
    records = ensemble(20)
    for i, lost in ((2, math.nan), (5, None), (7, math.inf), (9, "diverged")):
        records[i].measured["measures"]["trace"] = lost
    assert np.flatnonzero(np.isnan(column(records, "measures", "trace"))).tolist() == [2, 5, 7, 9]
    del records[11].measured["measures"]["trace"]
    rows = correlation_rows(records, resamples=300)
    row = find(rows, "trace")
    assert (row["n"], row["left_out"]) == (15, 5)
    assert "5 networks" in row["note"]
    kept = [i for i in range(20) if i not in (2, 5, 7, 9, 11)]
    x = [records[i].measured["measures"]["trace"] for i in kept]
    y = [records[i].measured["targets"]["test_accuracy"] for i in kept]
    assert row["rho"] == pytest.approx(spearman(x, y).rho)
    # The gaps of one measure do not touch the others.
    assert find(rows, "pairs") | {"p_holm": 0, "p_by": 0} == find(
        correlation_rows(ensemble(20), resamples=300), "pairs"
    ) | {"p_holm": 0, "p_by": 0}


def test_covariates_with_gaps_shrink_their_own_partial_alone():
    records = ensemble(20)
    records[4].facts["epochs"] = None
    row = find(correlation_rows(records, resamples=300), "trace")
    sizes = {name: entry["n"] for name, entry in row["partial"].items()}
    assert sizes == {"train_loss": 20, "epochs": 19, "weight_norm": 20, "all": 19}
    assert row["n"] == 20


def test_a_covariate_nobody_recorded_is_said_to_be_missing():
    row = correlation_rows(ensemble(8), given=("momentum", "epochs"), resamples=100)[0]
    assert row["partial"]["momentum"] == {
        "rho": None, "ci_low": None, "ci_high": None, "p_value": None, "n": 0, "given": [],
    }  # fmt: skip
    assert row["partial"]["epochs"]["rho"] is not None
    assert "all" not in row["partial"]


def test_a_measure_given_itself_has_no_partial_correlation():
    row = find(correlation_rows(ensemble(), resamples=100), "weight_norm")
    assert row["partial"]["weight_norm"]["rho"] is None
    assert row["partial"]["epochs"]["rho"] is not None


def test_constant_measures_and_too_few_networks_are_explained():
    records = [
        record(i, targets={"test_accuracy": i}, measures={"flat": 7, "rare": i if i < 3 else None})
        for i in range(10)
    ]
    flat, rare = correlation_rows(records, targets=["test_accuracy"], resamples=100)
    assert (flat["n"], flat["rho"], flat["p_value"], flat["p_holm"]) == (10, None, None, None)
    assert "flat constant" in flat["note"]
    assert (rare["n"], rare["left_out"], rare["rho"], rare["kendall"]) == (3, 7, None, None)
    assert "fewer than 4" in rare["note"]
    assert flat["family_size"] == 0
    assert flat["rho_after_rescaling"] is None
    assert flat["stays_fixed"] is None


def test_rows_are_plain_repeatable_and_do_not_depend_on_other_measures():
    records = ensemble(15)
    rows = correlation_rows(records, seed=4, resamples=300)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert rows == correlation_rows(records, seed=4, resamples=300)
    assert rows != correlation_rows(records, seed=5, resamples=300)
    (alone,) = correlation_rows(records, measures=["trace"], targets=["test_accuracy"], seed=4,
                                resamples=300)  # fmt: skip
    both = find(rows, "trace")
    corrected = {"p_holm", "p_by", "family_size"}
    for key in both.keys() - corrected:
        assert key == "partial" or alone[key] == pytest.approx(both[key])
    for name, entry in both["partial"].items():
        numbers = {key: value for key, value in entry.items() if key != "given"}
        assert {key: alone["partial"][name][key] for key in numbers} == pytest.approx(numbers)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"records": []}, DataError, "Got none"),
        ({"measures": ["tracee"]}, UsageError, "Did you mean 'trace'"),
        ({"targets": ["gap"]}, UsageError, "Unknown target 'gap'"),
        ({"family": "some"}, UsageError, "Unknown family"),
        ({"group": lambda r: "pooled" if r.config.seed else "x"}, UsageError, "must not be called"),
    ],
)
def test_bad_input_is_named(change, error, words):
    arguments = {"records": ensemble(6)} | change
    with pytest.raises(error, match=words):
        correlation_rows(arguments.pop("records"), resamples=50, **arguments)


@pytest.mark.slow
def test_in_a_world_without_relations_holm_rarely_cries_out():
    rng = np.random.default_rng(0)
    alarms = raw = 0
    for trial in range(60):
        records = [
            record(i, targets={"test_accuracy": float(rng.normal())},
                   measures={f"m{k}": float(v) for k, v in enumerate(rng.normal(size=20))})
            for i in range(25)
        ]  # fmt: skip
        rows = correlation_rows(records, targets=["test_accuracy"], resamples=400, seed=trial)
        alarms += any(row["p_holm"] <= 0.05 for row in rows)
        raw += sum(row["p_value"] <= 0.05 for row in rows)
    assert alarms / 60 <= 0.15
    assert 0.03 <= raw / (60 * 20) <= 0.07
