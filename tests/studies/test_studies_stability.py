"""Catches: subsets of the same networks taken for independent ones, widths that do not shrink."""

import json
import math

import numpy as np
import pytest
from grid_rows import granulated_rows
from scipy import stats as scipy_stats

from invariance.core._errors import DataError, UsageError
from invariance.stats import granulated_kendall, random_effects, sign_error
from invariance.studies import Config, Record
from invariance.studies.claims._stability import interval_width, stability_rows


def networks(n, *, rho, seed, label, same=False):
    """Networks whose measure and target have the population correlation ``rho``."""
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(2, n))
    y = rho * x + math.sqrt(1 - rho**2) * noise
    return [
        Record(
            Config("made up/1", {"train_seed": 0 if same else label}, i),
            {"subset": label},
            {"measures": {"m": float(a)}, "targets": {"test_accuracy": float(b)}},
        )
        for i, (a, b) in enumerate(zip(x, y, strict=True))
    ]


def subset_of(record):
    return str(record.facts["subset"])


def one(rows):
    (row,) = rows
    return row


def test_other_training_points_are_independent_samples():
    rhos = (0.9, -0.4, 0.5)
    records = [r for k, rho in enumerate(rhos) for r in networks(40, rho=rho, seed=k, label=k)]
    row = one(stability_rows(records, subset=subset_of, targets=["test_accuracy"]))
    found = [entry["rho"] for entry in row["subsets"].values()]
    expected = random_effects(found, [40] * 3)
    assert (row["rho_min"], row["rho_max"]) == (min(found), max(found))
    assert row["rho_sd"] == pytest.approx(np.std(found, ddof=1))
    assert row["rho_mean"] == expected.mean.value
    assert row["between_sd"] == expected.between_sd > 0
    assert row["heterogeneity_p"] < 0.01
    assert "random effects" in row["method"]
    json.dumps(row, allow_nan=False)


def test_other_unseen_points_are_the_same_networks():
    first = networks(60, rho=0.6, seed=0, label=0, same=True)
    rng = np.random.default_rng(1)
    second = [
        Record(r.config, {"subset": 1}, {
            "measures": {"m": r.measured["measures"]["m"] + 0.1 * float(rng.normal())},
            "targets": r.measured["targets"],
        })
        for r in first
    ]  # fmt: skip
    shuffled = [second[i] for i in rng.permutation(60)]
    row = one(stability_rows(first + shuffled, subset=subset_of, targets=["test_accuracy"]))
    assert "same networks" in row["method"]
    assert row["heterogeneity_p"] is None
    assert row["rho_mean"] == pytest.approx((row["rho_min"] + row["rho_max"]) / 2)
    # Two looks at the same networks are no more evidence than one.
    alone = one(stability_rows(first + [Record(r.config, {"subset": 2}, r.measured) for r in first],
                               subset=subset_of, targets=["test_accuracy"]))  # fmt: skip
    width = row["ci_high"] - row["ci_low"]
    assert width == pytest.approx(alone["ci_high"] - alone["ci_low"], rel=0.1)
    assert alone["rho_sd"] == 0


def test_lost_numbers_leave_a_subset_but_not_the_row():
    records = networks(20, rho=0.5, seed=0, label=0) + networks(20, rho=0.5, seed=1, label=1)
    records += networks(20, rho=0.5, seed=2, label=2)
    for r in records[:18]:
        r.measured["measures"]["m"] = math.nan
    row = one(stability_rows(records, subset=subset_of, targets=["test_accuracy"]))
    assert row["subsets"]["0"] == {"rho": None, "n": 2}
    assert row["rho_mean"] is not None


def test_overlapping_subsets_are_refused():
    a = networks(6, rho=0.5, seed=0, label=0, same=True)
    b = networks(9, rho=0.5, seed=0, label=1, same=True)[3:]
    with pytest.raises(DataError, match="share no network, or"):
        stability_rows(a + b, subset=subset_of, targets=["test_accuracy"])
    with pytest.raises(DataError, match="at least two subsets"):
        stability_rows(a, subset=subset_of, targets=["test_accuracy"])
    with pytest.raises(DataError, match="once in a subset"):
        stability_rows(a + a + b, subset=subset_of, targets=["test_accuracy"])


def test_width_shrinks_with_networks_as_the_formula_says():
    records = networks(300, rho=0.4, seed=0, label=0)
    rows = interval_width(records, "m", "test_accuracy", sizes=(25, 100, 300, 1_200))
    widths = [row["width"] for row in rows]
    assert widths == sorted(widths, reverse=True)
    for row in rows:
        assert row["width"] == pytest.approx(row["width_by_formula"], rel=0.15)
        assert row["rho_low"] < row["rho"] < row["rho_high"]
    assert rows[0]["power"] < 0.75 < 0.99 < rows[-1]["power"]
    assert rows == interval_width(records, "m", "test_accuracy", sizes=(25, 100, 300, 1_200))


def test_width_equals_that_of_fresh_samples():
    """The truth that the bootstrap stands for: many studies of 25 networks each."""
    records = networks(300, rho=0.4, seed=0, label=0)
    row = one(interval_width(records, "m", "test_accuracy", sizes=(25,)))
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 1_000, 25))
    fresh = [scipy_stats.spearmanr(a, 0.4 * a + math.sqrt(0.84) * b).statistic
             for a, b in zip(x, noise, strict=True)]  # fmt: skip
    low, high = np.quantile(fresh, [0.025, 0.975])
    assert row["width"] == pytest.approx(high - low, rel=0.1)


def test_width_needs_networks_and_a_relation():
    records = networks(10, rho=0.5, seed=0, label=0)
    with pytest.raises(DataError, match="at least 4 networks"):
        interval_width(records, "m", "test_accuracy", sizes=(3,))
    for r in records:
        r.measured["measures"]["m"] = 1.0
    with pytest.raises(UsageError, match="constant"):
        interval_width(records, "m", "test_accuracy")


def grid_records():
    rng = np.random.default_rng(0)
    return [
        Record(
            Config("made up/1", {"width": w, "lr": lr, "task": "t"}, seed),
            {},
            {"measures": {"m": float(w + rng.normal())},
             "targets": {"generalization_gap": float(w + lr)}},
        )
        for w in (1, 2, 3) for lr in (0.1, 0.2) for seed in range(4)
    ]  # fmt: skip


@pytest.mark.parametrize("seed_matched", [True, False])
def test_grid_rows_equal_the_statistics(seed_matched):
    records = grid_records()
    records[5].measured["measures"]["m"] = None
    row = one(granulated_rows(records, settings=["width", "lr"], seed_matched=seed_matched,
                              test_points=1_000))  # fmt: skip
    kept = [r for i, r in enumerate(records) if i != 5]
    grid = {name: [r.config.settings[name] for r in kept] for name in ("width", "lr")}
    if seed_matched:
        grid["seed"] = [r.config.seed for r in kept]
    x = [r.measured["measures"]["m"] for r in kept]
    y = [r.measured["targets"]["generalization_gap"] for r in kept]
    tau = granulated_kendall(x, y, grid, along=["width", "lr"])
    wrong = sign_error(x, y, grid, along=["width", "lr"], test_points=1_000)
    assert (row["n"], row["left_out"]) == (23, 1)
    assert row["granulated_kendall"] == tau.mean
    assert row["tau_along"]["width"]["tau"] == tau.axes[0].tau > 0.3
    assert row["sign_error_robust"] == wrong.robust
    assert len(row["environments"]) == 4
    json.dumps(row, allow_nan=False)


def test_grid_rows_need_the_setting():
    with pytest.raises(UsageError, match="setting 'depth' in every"):
        granulated_rows(grid_records(), settings=["depth"])
    few = granulated_rows(grid_records()[:3], settings=["width"])
    assert one(few)["granulated_kendall"] is None
