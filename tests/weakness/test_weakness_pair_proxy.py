"""The pair proxy against one naive linear program a pair, and its closed-form cases."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from separability_reference import feasible_pairs_by_linprog
from torch import nn

from invariance.core._errors import MeasureError
from invariance.core._groups import Group
from invariance.data import load_task
from invariance.measures._registry import get_measure
from invariance.training import fit_ensemble
from invariance.transforms import (
    Compose,
    DormantUnits,
    LayerScaling,
    LogitShift,
    NeuronScaling,
    Permutation,
    SplitUnits,
)
from invariance.weakness._features import frozen_features
from invariance.weakness.separability._pair_proxy import pair_proxy, pair_proxy_ensemble


def head(d, n_classes, *, bias=True):
    """A network whose features are its inputs."""
    return nn.Sequential(nn.Identity(), nn.Linear(d, n_classes, bias=bias)).double()


def tensors(*arrays):
    return tuple(torch.as_tensor(np.asarray(array)) for array in arrays)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("n", "d", "n_classes", "seed"),
    [
        (6, 2, 2, 0),
        (8, 3, 3, 1),
        (3, 5, 3, 2),
        (12, 2, 4, 3),
        (10, 4, 2, 4),
        (5, 1, 3, 5),
    ],
)
def test_agrees_with_one_linear_program_a_pair(n, d, n_classes, seed, bias):
    rng = np.random.default_rng(seed)
    train = rng.normal(size=(n, d))
    unseen = rng.normal(size=(8, d)) * 1.5
    rule = rng.normal(size=(n_classes, d))
    labels = (train @ rule.T).argmax(1)  # separable by construction
    estimate = pair_proxy(head(d, n_classes, bias=bias), *tensors(train, labels, unseen))
    expected = feasible_pairs_by_linprog(train, labels, unseen, n_classes, bias=bias)
    np.testing.assert_array_equal(estimate.detail["status"], np.where(expected, 1, -1))
    assert float(estimate) == expected.sum()
    assert estimate.exact and estimate.detail["undecided"] == 0


def test_an_inseparable_training_set_says_so():
    train = np.array([[0.0], [1.0], [2.0]])
    estimate = pair_proxy(head(1, 2), *tensors(train, [0, 1, 0], [[0.5], [9.0]]))
    assert float(estimate) == 0.0
    assert estimate.detail["policy_feasible"] is False
    assert "policy itself is infeasible" in estimate.method


def test_silent_features_without_a_bias_are_infeasible_and_no_division_by_zero():
    train = np.array([[0.0], [1.0], [2.0]])
    estimate = pair_proxy(head(1, 2, bias=False), *tensors(train, [1, 0, 0], [[1.5]]))
    assert float(estimate) == 0
    assert estimate.detail["policy_feasible"] is False


def test_a_probe_that_activates_a_dead_feature_is_free():
    train = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    unseen = np.array([[0.0, 2.0], [1e-6, 2.0]])
    estimate = pair_proxy(head(2, 3), *tensors(train, [0, 1, 2], unseen))
    assert estimate.detail["status"].tolist() == [[-1, 1, -1], [1, 1, 1]]
    assert estimate.detail["free_probes"] == 1


def test_refuses_features_that_are_not_finite():
    with pytest.raises(MeasureError, match="NaN or infinity"):
        pair_proxy(head(1, 2), *tensors([[0.0], [np.nan]], [0, 1], [[0.5]]))


@pytest.fixture(scope="module")
def trained():
    """A digits network with dead and correlated features, and its data."""
    task = load_task("digits", n_train=100, n_unseen=25, seed=0)
    fits = fit_ensemble([64, 24, 8, 10], task, seeds=range(3), max_epochs=400, check_every=10)
    return task, [fit.model for fit in fits]


def compare_with_linprog(model, task, n_probes):
    inputs = (task.x_train, task.y_train, task.x_unseen[:n_probes])
    estimate = pair_proxy(model, *inputs)
    train, unseen = frozen_features(model, task.x_train, task.x_unseen[:n_probes]).values
    expected = feasible_pairs_by_linprog(train, task.y_train.tolist(), unseen, 10)
    np.testing.assert_array_equal(estimate.detail["status"], np.where(expected, 1, -1))
    assert float(estimate) == expected.sum() and estimate.exact
    return estimate


def test_agrees_with_one_linear_program_a_pair_on_a_trained_network(trained):
    task, models = trained
    estimate = compare_with_linprog(models[0], task, 5)
    assert 5 < float(estimate) < 50  # both verdicts occur


@pytest.mark.slow
def test_agrees_on_every_pair_of_ten_networks():
    task = load_task("digits", n_train=150, n_unseen=20, seed=1)
    fits = fit_ensemble([64, 32, 8, 10], task, seeds=range(10), max_epochs=400, check_every=10)
    counts = [float(compare_with_linprog(fit.model, task, 20)) for fit in fits]
    assert len(set(counts)) > 1


def test_an_ensemble_is_its_networks_one_by_one(trained):
    task, models = trained
    inputs = (task.x_train, task.y_train, task.x_unseen)
    together = pair_proxy_ensemble(models, *inputs, workers=2)
    for model, estimate in zip(models, together, strict=True):
        alone = pair_proxy(model, *inputs)
        assert float(alone) == float(estimate)
        np.testing.assert_array_equal(alone.detail["status"], estimate.detail["status"])
    with pytest.raises(MeasureError, match="Network 1: "):
        pair_proxy_ensemble([models[0], nn.Identity()], *inputs)
    with pytest.raises(MeasureError, match="workers must be at least 1"):
        pair_proxy_ensemble(models, *inputs, workers=0)


@pytest.mark.parametrize(
    "transform",
    [
        LayerScaling([8.0, 0.5, 0.25]),
        NeuronScaling(spread=10.0, seed=1),
        Permutation(seed=2),
        LogitShift(seed=3),
        SplitUnits(3, seed=4),
        Compose([SplitUnits(2, seed=5), NeuronScaling(spread=10.0, seed=6)]),
    ],
    ids=lambda transform: transform.name,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unchanged_under_function_preserving_maps(trained, transform, dtype):
    task, models = trained
    model = copy.deepcopy(models[1]).to(dtype)
    x_train, x_unseen = task.x_train.to(dtype), task.x_unseen.to(dtype)
    before = pair_proxy(model, x_train, task.y_train, x_unseen)
    after = pair_proxy(transform(model, x_train[:5]), x_train, task.y_train, x_unseen)
    np.testing.assert_array_equal(after.detail["status"], before.detail["status"])
    assert float(after) == float(before)


def test_dormant_units_raise_it_at_the_same_function(trained):
    task, models = trained
    inputs = (task.x_train, task.y_train, task.x_unseen)
    before = float(pair_proxy(models[0], *inputs))
    after = float(pair_proxy(DormantUnits(8, seed=0)(models[0], task.x_train[:5]), *inputs))
    assert after > before


def test_the_declared_groups():
    declared = get_measure("pair_proxy")
    assert declared.discrete and declared.cost == "solver"
    assert declared.declared([Group.NEURON_SCALING, Group.UNIT_SPLIT]) == "invariant"
    assert declared.declared([Group.DORMANT_UNITS]) == "varies"
    assert get_measure("extension_count").declared([Group.DORMANT_UNITS]) == "varies"


def test_certificates_come_on_request(trained):
    task, models = trained
    inputs = (task.x_train, task.y_train, task.x_unseen)
    assert "certificates" not in pair_proxy(models[0], *inputs).detail
    kept = pair_proxy(models[0], *inputs, keep_certificates=True).detail
    certificates = kept["certificates"]
    assert (certificates.witness_of[kept["status"] == 1] >= 0).all()
    assert len(certificates.combinations) == kept["infeasible"]
    assert kept["pairs"] == kept["feasible"] + kept["infeasible"] + kept["undecided"] == 250


def test_refuses_nonsense_tolerances(trained):
    task, models = trained
    with pytest.raises(MeasureError, match="strictly between 0 and 1"):
        pair_proxy(models[0], task.x_train, task.y_train, task.x_unseen, tolerance=0.0)
