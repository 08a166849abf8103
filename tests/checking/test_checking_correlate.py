"""Catches: rescalings that do not rescale, invariant measures that lose a digit of rho."""

import sys

import pytest

import invariance as inv
from invariance.checking._correlate import correlate
from invariance.core._errors import DataError

MEASURES = ["hessian_trace", "adaptive_trace", "relative_flatness", "minimum_sharpness"]


@pytest.fixture(scope="module")
def task():
    return inv.load_task("digits", n_train=100, n_unseen=10, seed=0)


@pytest.fixture(scope="module")
def members(task):
    return inv.fit_ensemble([64, 12, 8, 10], task, seeds=range(12), lr=0.2, max_epochs=40)


@pytest.fixture(scope="module")
def study(task, members):
    gaps = [member.train_accuracy - member.test_accuracy for member in members]
    return correlate([member.model for member in members], gaps, task, measures=MEASURES)


def test_invariant_measures_keep_rho_to_the_last_digit(study):
    rows = {row.measure: row for row in study.rows}
    for name in ("adaptive_trace", "relative_flatness", "minimum_sharpness"):
        assert rows[name].rho == rows[name].rho_after_rescaling
        assert rows[name].max_relative_change < 1e-9
    assert rows["adaptive_trace"].rho == rows["adaptive_trace"].rho_after_neuron_rescaling


def test_raw_sharpness_moves(study):
    row = next(row for row in study.rows if row.measure == "hessian_trace")
    assert row.max_relative_change > 1
    assert row.rho_after_rescaling != row.rho


def test_every_network_gets_its_own_rescaling(task, members):
    def first_layer(model):
        return float(next(model.parameters()).detach().norm())

    study = correlate([m.model for m in members], range(12), task, measures=[first_layer])
    found = study.values["first_layer"]
    factors = {
        round(new / old, 9) for new, old in zip(found["layer"], found["as trained"], strict=True)
    }
    assert len(factors) == len(members)


def test_the_distribution_is_part_of_the_result(study):
    assert "log-uniform in [1/30, 30]" in study.rescaling


def test_holm_is_never_smaller_than_the_raw_p(study):
    for row in study.rows:
        assert row.p_holm >= row.p_value


def test_lengths_must_match(task, members):
    with pytest.raises(DataError, match="one target value a network"):
        correlate([member.model for member in members], [0.1], task)


@pytest.mark.parametrize(
    ("trained", "rescaled", "largest"),
    [
        # |change| over |value|; of a value that was zero, the change itself.
        ((2.0, -4.0, 1.0, 8.0), (3.0, -1.0, 1.0, 8.0), 0.75),
        ((-2.0, 4.0, 1.0, 8.0), (-8.0, 4.5, 0.5, 4.0), 3.0),
        ((0.0, 4.0, 1.0, 8.0), (-0.25, 4.0, 1.0, 9.0), 0.25),
        ((0.0, 4.0, 1.0, 8.0), (0.0, 4.0, 1.0, 8.0), 0.0),
    ],
)
def test_the_largest_change_is_relative(monkeypatch, task, members, trained, rescaled, largest):
    answers = iter([trained, rescaled, trained])
    module = sys.modules["invariance.checking._correlate"]  # the function has the same name
    monkeypatch.setattr(module, "_values", lambda *_: next(answers))
    models = [member.model for member in members[:4]]
    (row,) = correlate(models, [1.0, 2.0, 3.0, 4.0], task, measures=["parameter_norm"]).rows
    assert row.max_relative_change == largest
