"""The profile's one sweep against the separate measures, network by network.

Catches: a layer that is left out or renamed, frozen parameters in a sum, a BatchNorm that is not
folded, a sharpness that is reported where there is none.
"""

import pytest
import torch
from torch import nn

import invariance as inv
from invariance.core._errors import MeasureError


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 3)
    )


def frozen():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    model[0].weight.requires_grad_(False)
    return model


NETWORKS = {
    "perceptron": (lambda: inv.models.mlp([4, 6, 5, 3]), (4,)),
    "batch-norm": (lambda: inv.models.mlp([4, 6, 3], batch_norm=True), (4,)),
    "tanh": (lambda: inv.models.mlp([4, 6, 3], activation="tanh"), (4,)),
    "convolutional": (convolutional, (1, 4, 4)),
    "layer-norm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)),
        (4,),
    ),
    "frozen": (frozen, (4,)),
}


def built(name):
    make, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().double().eval()
    draws = torch.Generator().manual_seed(1)
    x = torch.rand((9, *shape), generator=draws, dtype=torch.float64)
    return model, x, torch.randint(0, 3, (9,), generator=draws)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_separate_measures(name):
    model, x, y = built(name)
    found = inv.measures.curvature_profile(model, x, y)

    def same(one, other):
        assert float(one) == pytest.approx(float(other), rel=1e-9, abs=1e-12)
        assert dict(one.parts) == pytest.approx(dict(other.parts), rel=1e-9, abs=1e-12)
        assert one.exact

    same(found.trace, inv.measures.hessian_trace(model, x, y))
    same(found.adaptive_trace, inv.measures.adaptive_trace(model, x, y))
    diagonal = inv.curvature.hessian_diagonal(model, x, y)
    assert found.diagonal.values.keys() == diagonal.values.keys()
    for key, value in diagonal.values.items():
        torch.testing.assert_close(found.diagonal[key], value, rtol=1e-9, atol=1e-12)
    flatness = inv.measures.relative_flatness(model, x, y, layer=None)
    assert list(found.relative_flatness.parts) == list(flatness.parts)
    assert list(found.relative_flatness) == pytest.approx(list(flatness), rel=1e-9)
    for group, one in (
        ("layer", found.layer_minimum_sharpness),
        ("neuron", found.minimum_sharpness),
    ):
        if one is None:
            with pytest.raises(MeasureError) as error:
                inv.measures.minimum_sharpness(model, x, y, group=group)
            assert found.refused.split(".")[0] == str(error.value).split(".")[0]
        else:
            other = inv.measures.minimum_sharpness(model, x, y, group=group)
            assert float(one) == pytest.approx(float(other), rel=1e-6)
    # No rescaling passes tanh, and a diagonal with a negative entry has no least trace.
    assert (found.minimum_sharpness is None) == (name in ("tanh", "layer-norm"))
    assert 5 <= len(repr(found).splitlines()) <= 6


def test_what_is_not_exact_is_refused():
    model, x, y = built("layer-norm")
    with pytest.raises(MeasureError, match="max_products"):
        inv.measures.curvature_profile(model, x, y, max_products=3)
