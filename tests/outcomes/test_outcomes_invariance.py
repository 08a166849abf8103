"""Outcomes are functions of the function: no function-preserving map may move one."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from invariance import outcomes as O
from invariance import transforms as T
from invariance.models import mlp

NETWORKS = {
    "relu": (
        {},
        [
            T.LayerScaling([3.0, 0.5, 1 / 1.5]),
            T.NeuronScaling(seed=1),
            T.Permutation(seed=1),
            T.LogitShift(seed=1),
            T.SplitUnits(2, seed=1),
            T.DormantUnits(2, seed=1),
            T.Reparametrize("weight_norm", only=["linear1.weight"]),
        ],
    ),
    "batch_norm": (
        {"batch_norm": True},
        [T.FoldBatchNorm(), T.BatchNormScaling(3.0), T.NeuronScaling(seed=1)],
    ),
    "tanh": ({"activation": "tanh"}, [T.SignFlip(seed=1), T.Permutation(seed=1)]),
    "linear": ({"activation": "identity"}, [T.LinearMixing(seed=1)]),
}
CASES = [
    pytest.param(name, transform, id=f"{name}-{transform.name}")
    for name, (_, transforms) in NETWORKS.items()
    for transform in transforms
]
OUTCOMES = {
    "calibration": O.expected_calibration_error,
    "corruption": lambda m, x, y: O.corruption_accuracy(m, x, y, strengths=(2, 4)),
    "fgsm": lambda m, x, y: O.adversarial_accuracy(m, x, y, epsilon=0.1),
    "pgd": lambda m, x, y: O.adversarial_accuracy(m, x, y, epsilon=0.1, attack="pgd", steps=3),
    "disagreement": lambda m, x, y: O.prediction_disagreement([m, partner()], x),
    "divergence": lambda m, x, y: O.jensen_shannon_divergence([m, partner()], x),
}


@cache
def partner():
    return mlp((25, 7, 3), seed=9, dtype=torch.float64).eval()


@cache
def trained(name):
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(150, 25, generator=draws, dtype=torch.float64)
    y = (x[:, :8].sum(1) > x[:, 8:16].sum(1)).long() + (x[:, 20] > 0.8).long()
    model = mlp((25, 9, 8, 3), seed=3, dtype=torch.float64, **NETWORKS[name][0])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    model.eval()
    before = {key: outcome(model, x, y) for key, outcome in OUTCOMES.items()}
    return model, x, y, before


@pytest.mark.parametrize(("network", "transform"), CASES)
def test_no_transform_moves_an_outcome(network, transform):
    model, x, y, before = trained(network)
    moved = transform(model, x)
    old, new = model.state_dict(), moved.state_dict()
    assert any(
        name not in new or new[name].shape != value.shape or not torch.equal(new[name], value)
        for name, value in old.items()
    )
    for key, outcome in OUTCOMES.items():
        found = outcome(moved, x, y)
        assert float(found) == pytest.approx(float(before[key]), rel=1e-9, abs=1e-12), key


@pytest.mark.parametrize("network", NETWORKS)
def test_outcomes_say_something(network):
    # Constants would be invariant too.
    _, x, y, before = trained(network)
    other = mlp((25, 9, 8, 3), seed=4, dtype=torch.float64).eval()
    for key, outcome in OUTCOMES.items():
        assert 0 < float(before[key]) < 1, key
        assert abs(float(outcome(other, x, y)) - float(before[key])) > 1e-3, key


def test_nothing_of_the_model_is_touched():
    model, x, y, _ = trained("batch_norm")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    rng = torch.get_rng_state()
    for outcome in OUTCOMES.values():
        outcome(model, x, y)
    assert torch.equal(rng, torch.get_rng_state())
    assert flags == [module.training for module in model.modules()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(bool((p.grad == 1).all()) and p.requires_grad for p in model.parameters())
