"""Catches: lines of a grid mixed up, replicates compared, ties counted as right or wrong."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from invariance.core._errors import DataError, UsageError
from invariance.stats import granulated_kendall, hoeffding_weight, sign_error


def grid(*, seeds=1, widths=(1, 2, 3), rates=(0.1, 0.2), depths=(2, 4)):
    points = list(itertools.product(widths, rates, depths, range(seeds)))
    names = ("width", "rate", "depth", "seed")
    return {name: [p[k] for p in points] for k, name in enumerate(names)}


def values(settings, seed):
    rng = np.random.default_rng(seed)
    n = len(settings["width"])
    return np.round(rng.normal(size=n), 1), np.round(rng.normal(size=n), 1)


def sgn(v):
    return int(v > 0) - int(v < 0)


def brute_tau(x, y, settings, name):
    """Definition, point by point: average over all other settings of the mean sign product."""
    others = [k for k in settings if k != name]
    contexts = {tuple(settings[k][i] for k in others) for i in range(len(x))}
    taus = []
    for context in contexts:
        line = [i for i in range(len(x)) if tuple(settings[k][i] for k in others) == context]
        signs = [
            sgn(x[i] - x[j]) * sgn(y[i] - y[j])
            for i in line
            for j in line
            if settings[name][i] != settings[name][j]
        ]
        if signs:
            taus.append(sum(signs) / len(signs))
    return sum(taus) / len(taus)


def brute_errors(x, y, settings, names, weight):
    found = {}
    for name in names:
        for first, second in itertools.combinations(sorted(set(settings[name])), 2):
            top = bottom = 0.0
            for i, j in itertools.product(range(len(x)), repeat=2):
                if settings[name][i] != first or settings[name][j] != second:
                    continue
                if any(settings[k][i] != settings[k][j] for k in settings if k != name):
                    continue
                w = weight(y[i] - y[j])
                top += w * (1 - sgn(x[i] - x[j]) * sgn(y[i] - y[j])) / 2
                bottom += w
            found[name, first, second] = top / bottom if bottom else None
    return found


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("matched", [True, False])
def test_tau_along_each_axis_equals_enumeration(seeds, matched):
    settings = grid(seeds=seeds)
    if not matched:
        del settings["seed"]
    names = ["width", "rate", "depth"]
    x, y = values(settings, 3)
    found = granulated_kendall(x, y, settings, along=names)
    expected = [brute_tau(x, y, settings, name) for name in names]
    assert [axis.tau for axis in found.axes] == pytest.approx(expected)
    assert found.mean == pytest.approx(np.mean(expected))


def test_without_ties_and_with_one_setting_it_is_kendalls_tau():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 9))
    found = granulated_kendall(x, y, {"width": list(range(9))})
    assert found.mean == pytest.approx(scipy_stats.kendalltau(x, y).statistic)
    assert found.axes[0].lines == 1
    assert found.axes[0].ci_low is None


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("test_points", [None, 10])
def test_sign_errors_equal_enumeration(seeds, test_points):
    settings = grid(seeds=seeds)
    names = ["width", "rate", "depth"]
    x, y = values(settings, 8)

    def weight(delta):
        if test_points is None:
            return 1.0
        return max(0.0, 1 - 2 * np.exp(-2 * test_points * (delta / 2) ** 2)) ** 2

    expected = brute_errors(x, y, settings, names, weight)
    found = sign_error(x, y, settings, along=names, test_points=test_points)
    errors = {(e.setting, e.first, e.second): e.error for e in found.environments}
    assert errors.keys() == expected.keys()
    for key, error in errors.items():
        assert error == pytest.approx(expected[key])
    known = [e for e in expected.values() if e is not None]
    assert found.robust == pytest.approx(max(known))
    assert found.mean == pytest.approx(np.mean(known))


def test_a_measure_that_follows_one_setting_alone_fails_elsewhere():
    """The gap depends on width and depth; the measure knows width and has depth backwards."""
    settings = grid(widths=(1, 2, 3, 4))
    width, depth = np.array(settings["width"]), np.array(settings["depth"])
    gap = 10.0 * width + depth
    measure = 10.0 * width - depth
    tau = {a.setting: a.tau for a in granulated_kendall(measure, gap, settings).axes}
    assert tau == {"width": 1.0, "rate": 0.0, "depth": -1.0, "seed": None}
    found = sign_error(measure, gap, settings, along=["width", "depth"])
    assert found.robust == 1.0  # though the pooled correlation is high:
    assert scipy_stats.kendalltau(measure, gap).statistic > 0.7


@pytest.mark.parametrize(("measure", "error"), [(1.0, 0.0), (-1.0, 1.0), (0.0, 0.5)])
def test_perfect_opposite_and_constant_measures(measure, error):
    settings = {"width": list(range(6))}
    gap = np.arange(6.0)
    found = sign_error(measure * gap, gap, settings)
    assert (found.robust, found.mean) == (error, error)
    assert len(found.environments) == 15


def test_a_random_measure_errs_half_of_the_time():
    settings = grid(seeds=60)
    x, y = np.random.default_rng(0).normal(size=(2, len(settings["width"])))
    found = sign_error(x, y, settings, along=["width", "rate", "depth"])
    assert found.mean == pytest.approx(0.5, abs=0.04)
    tau = granulated_kendall(x, y, settings, along=["width", "rate", "depth"])
    assert tau.mean == pytest.approx(0, abs=0.08)
    assert all(axis.ci_low <= 0 <= axis.ci_high for axis in tau.axes)


def test_hoeffding_weights():
    assert hoeffding_weight(np.array([0.0, 0.01]), 10_000)[0] == 0
    # 2 exp(-2 * 10,000 * 0.01^2) = 2 exp(-2)
    assert hoeffding_weight(np.array([0.02, -0.02]), 10_000) == pytest.approx(
        (1 - 2 / np.e**2) ** 2
    )


def test_pairs_that_noise_could_explain_are_dropped():
    found = sign_error([1, 2, 3, 4], [0.5, 0.5001, 0.9, 0.9001], {"w": [0, 1, 2, 3]},
                       test_points=1_000)  # fmt: skip
    kept = {(e.first, e.second): (e.error, e.pairs, e.dropped) for e in found.environments}
    assert kept[0, 1] == (None, 0, 1)
    assert kept[0, 2] == (0.0, 1, 0)


def test_lines_with_a_single_value_are_counted():
    settings = {"width": [1, 2, 1, 1], "rate": [0.1, 0.1, 0.2, 0.3]}
    axis = granulated_kendall([1, 2, 3, 4], [1, 2, 3, 4], settings).axes[0]
    assert (axis.tau, axis.lines, axis.skipped) == (1.0, 1, 2)


@pytest.mark.parametrize(
    ("settings", "along", "error", "words"),
    [
        ({}, None, DataError, "at least one hyperparameter"),
        ({"width": [1, 2]}, None, DataError, "4 values of 'width'"),
        ({"width": [1, 2, 3, 4]}, ["depth"], UsageError, "Unknown setting 'depth'"),
    ],
)
def test_bad_input_is_named(settings, along, error, words):
    with pytest.raises(error, match=words):
        granulated_kendall([1, 2, 3, 4], [1, 2, 3, 4], settings, along=along)
    with pytest.raises(error, match=words):
        sign_error([1, 2, 3, 4], [1, 2, 3, 4], settings, along=along)
