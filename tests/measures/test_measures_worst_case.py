"""Projected ascent against the exact maximum of a quadratic, and its first step against SAM."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn
from torch.nn import functional as F

from invariance import measures as M
from invariance.core._errors import MeasureError
from invariance.models import mlp


def data(rows=12):
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, generator=draws, dtype=torch.float64)
    return x, torch.randint(0, 3, (rows,), generator=draws)


def network(seed=2):
    return mlp((4, 5, 6, 3), seed=seed, dtype=torch.float64).eval()


def largest_rise(gradient, hessian, rho):
    """max g.e + e.H.e/2 over |e| <= rho, from the secular equation (H convex)."""
    values, vectors = np.linalg.eigh(hessian)
    g = vectors.T @ gradient

    def excess(shift):
        return np.sum((g / (shift - values)) ** 2) - rho**2

    top = values.max()
    shift = brentq(excess, top + 1e-12 + np.abs(g[-1]) / (10 * rho), top + 1e3, xtol=1e-14)
    e = g / (shift - values)
    return float(g @ e + 0.5 * (values * e**2).sum())


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_quadratic_loss_is_climbed_to_its_maximum(adaptive):
    # A linear model with squared error: the rise is exactly quadratic.
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=draws, dtype=torch.float64)
    y = torch.randn(20, 2, generator=draws, dtype=torch.float64)
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, 3, generator=draws, dtype=torch.float64))
        model.bias.copy_(torch.tensor([0.5, -1.0]))
    inputs = np.c_[x.numpy(), np.ones(20)]
    theta = np.c_[model.weight.detach().numpy(), model.bias.detach().numpy()]
    residual = inputs @ theta.T - y.numpy()
    gradient = np.concatenate([residual[:, k] @ inputs / 20 for k in range(2)])
    hessian = np.kron(np.eye(2), inputs.T @ inputs / 20)
    scale = theta.ravel() if adaptive else np.ones(8)
    exact = largest_rise(scale * gradient, scale[:, None] * hessian * scale, 0.3)
    measure = M.adaptive_worst_case_sharpness if adaptive else M.worst_case_sharpness
    found = measure(model, x, y, rho=0.3, steps=60, restarts=3, loss="mse")
    assert not found.exact
    assert "lower bound" in found.method
    assert float(found) <= exact * (1 + 1e-9)
    assert float(found) == pytest.approx(exact, rel=1e-6)


def test_a_maximum_inside_the_ball_is_found_by_ever_shorter_steps():
    def hill(outputs, y):
        return -(outputs - y).square().mean()

    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(0.0)
    one = torch.ones(2, 1, dtype=torch.float64)
    found = M.worst_case_sharpness(model, one, one, rho=3.0, steps=60, loss=hill)
    assert float(found) == pytest.approx(1.0, rel=1e-6)
    assert found.detail["first_step"] == pytest.approx(-3.0)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_first_step_is_sams_and_more_effort_never_finds_less(adaptive):
    model, (x, y) = network(), data()
    measure = M.adaptive_worst_case_sharpness if adaptive else M.worst_case_sharpness
    one_step = M.adaptive_sharpness if adaptive else M.sam_sharpness
    single = measure(model, x, y, rho=0.5, steps=1, restarts=0)
    assert float(single) == pytest.approx(float(one_step(model, x, y, rho=0.5)), rel=1e-12)
    values = [float(measure(model, x, y, rho=0.5, steps=s, restarts=0)) for s in (1, 5, 40)]
    assert values[0] < values[1] <= values[2]
    more = measure(model, x, y, rho=0.5, steps=40, restarts=3)
    assert float(more) >= values[2]
    assert more.detail["first_step"] == pytest.approx(values[0])
    assert more.detail["rises"][0] == values[2]
    assert len(set(more.detail["rises"])) > 1  # restarts do go elsewhere
    assert float(more) == float(measure(model, x, y, rho=0.5, steps=40, restarts=3))


def test_no_point_outside_the_ball_is_ever_looked_at(monkeypatch):
    from invariance.measures.shared import _perturbed_loss as perturbed_loss

    model, (x, y) = network(), data()
    theta = {name: p.detach().clone() for name, p in model.named_parameters()}
    distances = []
    original = perturbed_loss.PerturbedLoss.gradient

    def watch(self, at=None):
        if at is not None:
            distances.append(
                sum(float(((at[k] - theta[k]) / theta[k]).square().sum()) for k in theta) ** 0.5
            )
        return original(self, at)

    monkeypatch.setattr(perturbed_loss.PerturbedLoss, "gradient", watch)
    found = M.adaptive_worst_case_sharpness(model, x, y, rho=0.3, steps=10)
    assert max(distances) == pytest.approx(0.3, rel=1e-9)
    assert float(found) > 0


def test_buffers_stay_and_nothing_is_touched():
    model = mlp((4, 5, 3), seed=0, batch_norm=True, dtype=torch.float64).eval()
    x, y = data()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    rng = torch.random.get_rng_state()
    M.worst_case_sharpness(model, x, y, steps=3)
    M.standardized_relative_flatness(model, x, y)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(rng, torch.random.get_rng_state())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_flat_network_has_no_rise():
    x, y = data()
    model = network()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert float(M.adaptive_worst_case_sharpness(model, x, y)) == 0.0


def test_refusals():
    model, (x, y) = network(), data()
    with pytest.raises(MeasureError, match="rho"):
        M.worst_case_sharpness(model, x, y, rho=-1.0)
    with pytest.raises(MeasureError, match="steps"):
        M.worst_case_sharpness(model, x, y, steps=0)
    with pytest.raises(MeasureError, match="restarts"):
        M.adaptive_worst_case_sharpness(model, x, y, restarts=-1)
    for count in (True, 1.0, "1", None):
        for name in ("steps", "restarts"):
            with pytest.raises(MeasureError, match=f"{name} must be an integer"):
                M.worst_case_sharpness(model, x, y, **{name: count})
    assert float(M.worst_case_sharpness(model, x, y, steps=1, restarts=0)) > 0  # the least


def dense_flatness(model, name, x, y, kept):
    """The definition: ``sum <w_s, w_s'> Tr H_ss'`` for standardized features, all autograd."""
    layer = model.get_submodule(name)
    place = list(model).index(layer)
    features = model[:place](x).detach()
    deviation = features.numpy().std(0)
    w = layer.weight.detach()[:, kept] * torch.from_numpy(deviation[kept])
    scaled = features[:, kept] / torch.from_numpy(deviation[kept])
    dropped = [j for j in range(features.shape[1]) if j not in kept]
    shift = features[:, dropped] @ layer.weight.detach()[:, dropped].T
    shift = shift + (layer.bias.detach() if layer.bias is not None else 0.0)

    def loss(flat):
        return F.cross_entropy(model[place + 1 :](scaled @ flat.view_as(w).T + shift), y)

    hessian = torch.func.jacrev(torch.func.grad(loss))(w.flatten())
    out, depth = w.shape
    blocks = hessian.view(out, depth, out, depth).diagonal(dim1=1, dim2=3).sum(-1)
    return float(((w @ w.T) * blocks).detach().sum())


@pytest.mark.parametrize("layer", ["linear1", "linear2", "linear3"])
def test_standardized_flatness_by_definition(layer):
    model, (x, y) = network(seed=5), data(30)
    kept = [*range(model.get_submodule(layer).in_features)]
    found = M.standardized_relative_flatness(model, x, y, layer=layer)
    assert float(found) == pytest.approx(dense_flatness(model, layer, x, y, kept), rel=1e-9)
    assert found.detail["dead_features"] == 0
    assert found.exact
    default = M.standardized_relative_flatness(model, x, y)
    assert default.detail["layer"] == "linear3"  # the last, for which it is declared
    assert (float(default) == float(found)) == (layer == "linear3")


@pytest.mark.parametrize("bias", [True, False])
def test_constant_features_are_dropped_as_the_biases_that_they_are(bias):
    model, (x, y) = mlp((4, 5, 6, 3), seed=2, bias=bias, dtype=torch.float64), data(30)
    with torch.no_grad():
        model.linear2.weight[1] = 0.0  # a silent unit ...
        if bias:
            model.linear2.bias[1] = -1.0
            model.linear2.weight[4] = 0.0
            model.linear2.bias[4] = 3.0  # ... and one that always says 3
    features = model[:4](x).detach().numpy()
    kept = np.flatnonzero(features.std(0) > 1e-12).tolist()
    assert 1 not in kept and (4 in kept) == (not bias)
    found = M.standardized_relative_flatness(model, x, y)
    assert found.detail["dead_features"] == 6 - len(kept)
    assert float(found) == pytest.approx(dense_flatness(model, "linear3", x, y, kept), rel=1e-9)
    # A feature that is constant up to round-off is constant in every parametrisation.
    from invariance.transforms import NeuronScaling

    moved = M.standardized_relative_flatness(NeuronScaling(1e3, seed=3)(model), x, y)
    assert float(moved) == pytest.approx(float(found), rel=1e-9)


def test_standardizing_keeps_the_function():
    from invariance.curvature._batches import collect_batches

    model, (x, y) = network(), data(30)
    with torch.no_grad():
        model.linear2.weight[4] = 0.0
        model.linear2.bias[4] = 3.0
    module = sys.modules["invariance.measures._standardized_relative_flatness"]
    for layer in ("linear1", "linear3"):
        moments = module._moments(model, layer, collect_batches(x, y))
        changed, _ = module.standardized_model(model, layer, moments)
        assert torch.allclose(changed(x), model(x), rtol=1e-12, atol=1e-12)
    # The whole training set at once: batches of rows give the same moments.
    parts = collect_batches([(x[:7], y[:7]), (x[7:], y[7:])])
    split = module._moments(model, "linear3", parts)
    assert torch.allclose(split.deviation, moments.deviation, rtol=1e-12)


def test_standardized_flatness_refuses_convolutions():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(18, 3)).double()
    x = torch.rand(6, 1, 4, 4, dtype=torch.float64)
    y = torch.arange(6) % 3
    assert float(M.standardized_relative_flatness(model, x, y)) > 0
    with pytest.raises(MeasureError, match="'0' is a Conv2d"):
        M.standardized_relative_flatness(model, x, y, layer=0)
    with pytest.raises(MeasureError, match="no weight layer 5"):
        M.standardized_relative_flatness(model, x, y, layer=5)
