"""Every declaration of every curvature and norm measure, against trained networks in float64.

For each network, transform and measure: declared invariant means equal, a law means that the
predicted value is the measured one, and what is declared to vary has to vary somewhere, so
that no declaration is weaker than the truth by accident.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from invariance import transforms as T
from invariance.core._errors import MeasureError
from invariance.core._groups import Group
from invariance.measures._registry import Setting, get_measure
from invariance.models import mlp

MEASURES = (
    "adaptive_eigenvalue",
    "adaptive_gaussian_sharpness",
    "adaptive_sharpness",
    "adaptive_trace",
    "adaptive_worst_case_sharpness",
    "diagonal_relative_flatness",
    "fisher_rao_closed_form",
    "fisher_rao_norm",
    "frobenius_norm_product",
    "frobenius_trace",
    "gaussian_sharpness",
    "hessian_quadratic_form",
    "hessian_trace",
    "information_geometric_sharpness",
    "layer_minimum_sharpness",
    "minimum_sharpness",
    "normalized_eigenvalue",
    "parameter_norm",
    "path_norm",
    "path_norm_margin",
    "relative_flatness",
    "sam_sharpness",
    "spectral_norm_product",
    "standardized_relative_flatness",
    "worst_case_sharpness",
)

#: Options that keep the sampling measures quick; their seeds are fixed.
OPTIONS = {
    "adaptive_gaussian_sharpness": {"samples": 4, "sigma": 0.1},
    "gaussian_sharpness": {"samples": 4, "sigma": 0.1},
    "worst_case_sharpness": {"steps": 6, "rho": 0.1},
    "adaptive_worst_case_sharpness": {"steps": 6, "rho": 0.1},
}

#: Measures that exist for positively homogeneous activations only.
HOMOGENEOUS_ONLY = {"minimum_sharpness", "layer_minimum_sharpness"}

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
        ],
    ),
    "batch_norm": (
        {"batch_norm": True},
        [
            T.FoldBatchNorm(),
            T.BatchNormScaling(3.0),
            T.NeuronScaling(seed=1),
            T.SignFlip(seed=1),
            T.Permutation(seed=1),
            T.LogitShift(seed=1),
        ],
    ),
    "tanh": (
        {"activation": "tanh"},
        [
            T.SignFlip(seed=1),
            T.Permutation(seed=1),
            T.LogitShift(seed=1),
            T.SplitUnits(2, seed=1),
            T.DormantUnits(2, seed=1),
        ],
    ),
    "linear": ({"activation": "identity"}, [T.LinearMixing(seed=1), T.SignFlip(seed=1)]),
}
CASES = [
    pytest.param(name, i, id=f"{name}-{transform.name}")
    for name, (_, transforms) in NETWORKS.items()
    for i, transform in enumerate(transforms)
]
RTOL = 1e-9


@cache
def trained(name):
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(30, 5, generator=draws, dtype=torch.float64)
    y = torch.randint(0, 4, (30,), generator=draws)
    model = mlp((5, 7, 6, 4), seed=3, dtype=torch.float64, **NETWORKS[name][0])
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    optimiser.zero_grad()
    return model.eval(), x, y


def evaluate(name, model, x, y):
    measure = get_measure(name)
    inputs = {key: {"x": x, "y": y}[key] for key in measure.fields}
    return measure(model, **inputs, **OPTIONS.get(name, {}))


@cache
def before(network, name):
    return evaluate(name, *trained(network))


@cache
def outcome(network, place, name):
    """Return (declared, relative change, relative error of the law)."""
    model, x, y = trained(network)
    transform = NETWORKS[network][1][place]
    applied = transform.apply(model, x)
    measure = get_measure(name)
    old, new = float(before(network, name)), float(evaluate(name, applied.model, x, y))
    declared = measure.declared(transform.groups)
    error = None
    if declared == "law":
        (group,) = transform.groups
        predicted = measure.laws[group](
            Setting(model, applied, {"x": x, "y": y}, before(network, name))
        )
        error = None if predicted is None else abs(predicted / new - 1)
    return declared, abs(new / old - 1), error


def applies(network, name):
    return not (network == "tanh" and name in HOMOGENEOUS_ONLY)


@pytest.mark.parametrize(("network", "place"), CASES)
@pytest.mark.parametrize("name", MEASURES)
def test_declared_is_measured(name, network, place):
    if not applies(network, name):
        model, x, y = trained(network)
        with pytest.raises(MeasureError, match="not positively homogeneous"):
            evaluate(name, model, x, y)
        return
    declared, change, error = outcome(network, place, name)
    if declared == "invariant":
        assert change < RTOL
    elif declared == "law":
        split = NETWORKS[network][1][place].group is Group.UNIT_SPLIT
        if network == "tanh" and split:  # the law is for piecewise-linear networks
            assert error is None
        else:
            assert error < RTOL


@pytest.mark.parametrize("name", MEASURES)
def test_nothing_is_declared_weaker_than_the_truth(name):
    changes = {}
    for network, (_, transforms) in NETWORKS.items():
        for place, transform in enumerate(transforms):
            if applies(network, name):
                declared, change, _ = outcome(network, place, name)
                if declared != "invariant":
                    changes.setdefault(transform.group, []).append(change)
    assert all(max(found) > 1e-4 for found in changes.values()), changes


def test_a_law_is_not_the_measure_itself():
    # The prediction must come from the old network: with the old diagonal swapped for that of
    # another network, it has to fail.
    model, x, y = trained("relu")
    applied = T.NeuronScaling(seed=1).apply(model, x)
    law = get_measure("hessian_trace").laws[Group.NEURON_SCALING]
    estimate = before("relu", "hessian_trace")
    right = law(Setting(model, applied, {"x": x, "y": y}, estimate))
    other = mlp((5, 7, 6, 4), seed=4, dtype=torch.float64)
    wrong = law(Setting(other, applied, {"x": x, "y": y}, estimate))
    assert right == pytest.approx(float(evaluate("hessian_trace", applied.model, x, y)), rel=RTOL)
    assert wrong != pytest.approx(right, rel=1e-3)


def test_the_old_diagonal_is_computed_once_for_all_laws():
    model, x, y = trained("relu")
    shared = {}
    for transform in (T.LayerScaling([2.0, 0.5, 1.0]), T.NeuronScaling(seed=2)):
        applied = transform.apply(model, x)
        for name in ("hessian_trace", "adaptive_trace"):
            laws = get_measure(name).laws
            if transform.group in laws:
                estimate = before("relu", name)
                laws[transform.group](Setting(model, applied, {"x": x, "y": y}, estimate, shared))
    assert len(shared) == 1


@pytest.mark.parametrize("coordinates", ["weight_norm", "exp"])
def test_other_coordinates(coordinates):
    # A change of coordinates keeps what is a function of the logits, or covariant.
    model, x, y = trained("relu")
    moved = T.Reparametrize(coordinates, only=["linear1.weight"])(model, x)
    for name in ("fisher_rao_closed_form", "information_geometric_sharpness"):
        assert float(evaluate(name, moved, x, y)) == pytest.approx(
            float(before("relu", name)), rel=1e-6
        )
    moving = ["hessian_trace", "adaptive_trace"]
    if coordinates != "weight_norm":  # which is homogeneous: the derivative along it stays
        moving.append("fisher_rao_norm")
    for name in moving:
        found = evaluate(name, moved, x, y)
        assert found.exact
        assert float(found) != pytest.approx(float(before("relu", name)), rel=1e-3)


def test_first_layer_relative_flatness_survives_neuron_scaling_and_others_do_not():
    from invariance.measures import relative_flatness

    model, x, y = trained("relu")
    moved = T.NeuronScaling(seed=1)(model, x)
    old, new = (relative_flatness(m, x, y, layer=None) for m in (model, moved))
    assert new[0] == pytest.approx(old[0], rel=1e-10)
    assert abs(new[1] / old[1] - 1) > 0.1
    assert abs(new[2] / old[2] - 1) > 0.1
