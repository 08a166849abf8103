"""The pair proxy against one naive linear program a pair, and its closed-form cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from separability_reference import feasible_pairs_by_linprog
from torch import nn

from invariance.core.errors import MeasureError
from invariance.weakness.pairs import pair_proxy


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


def test_a_probe_that_activates_a_dead_feature_is_free():
    train = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    unseen = np.array([[0.0, 2.0], [1e-6, 2.0]])
    estimate = pair_proxy(head(2, 3), *tensors(train, [0, 1, 2], unseen))
    assert estimate.detail["status"].tolist() == [[-1, 1, -1], [1, 1, 1]]
    assert estimate.detail["free_probes"] == 1


def test_refuses_features_that_are_not_finite():
    with pytest.raises(MeasureError, match="NaN or infinity"):
        pair_proxy(head(1, 2), *tensors([[0.0], [np.nan]], [0, 1], [[0.5]]))
