"""Every measure's value against its definition: closed forms, and dense float64 matrices."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev
from torch.nn import functional as F

from invariance import measures as M
from invariance.core._errors import DataError, MeasureError, ModelError
from invariance.models import mlp

RTOL = 1e-9


def data(rows=12, classes=3):
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, generator=draws, dtype=torch.float64)
    return x, torch.randint(0, classes, (rows,), generator=draws)


def network(**options):
    return mlp((4, 5, 6, 3), seed=2, dtype=torch.float64, **options).eval()


def flat_system(model, x, y, loss=F.cross_entropy):
    """The parameter vector, the dense Hessian, and the dense Fisher matrix (by definition)."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]

    def outputs(flat):
        parts = {
            name: part.view_as(parameters[name])
            for name, part in zip(parameters, flat.split(sizes), strict=True)
        }
        return functional_call(model, parts, (x,))

    theta = torch.cat([p.flatten() for p in parameters.values()])
    hessian = jacrev(grad(lambda t: loss(outputs(t), y)))(theta)
    jacobian = jacrev(outputs)(theta)
    p = outputs(theta).softmax(1)
    fisher = torch.zeros_like(hessian)
    for n, c in itertools.product(range(len(x)), range(p.shape[1])):
        # E over the model's own labels of the outer product of the log-likelihood's gradient
        score = jacobian[n, c] - p[n] @ jacobian[n]
        fisher += p[n, c] * torch.outer(score, score) / len(x)
    return theta, hessian, fisher


@pytest.mark.parametrize(
    "options", [{}, {"batch_norm": True}, {"bias": False}, {"activation": "tanh"}]
)
def test_quadratic_measures(options):
    model = network(**options)
    x, y = data()
    theta, hessian, fisher = flat_system(model, x, y)
    expected = {
        "hessian_trace": hessian.trace(),
        "adaptive_trace": theta.square() @ hessian.diagonal(),
        "hessian_quadratic_form": theta @ hessian @ theta,
        "fisher_rao_norm": theta @ fisher @ theta,
        "adaptive_eigenvalue": torch.linalg.eigvalsh(theta[:, None] * hessian * theta).max(),
    }
    for name, value in expected.items():
        assert float(getattr(M, name)(model, x, y)) == pytest.approx(float(value), rel=RTOL), name
    norms = torch.cat([p.detach().norm().expand(p.numel()) for p in model.parameters()])
    value = torch.linalg.eigvalsh(norms[:, None] * hessian * norms).max()
    assert float(M.normalized_eigenvalue(model, x, y)) == pytest.approx(float(value), rel=RTOL)


def test_traces_per_layer():
    model = network()
    x, y = data()
    _, hessian, _ = flat_system(model, x, y)
    start, total, rows_total = 0, 0.0, 0.0
    for name, p in model.named_parameters():
        block = hessian[start : start + p.numel(), start : start + p.numel()]
        start += p.numel()
        if name.endswith("weight"):
            total += float(p.detach().square().sum() * block.trace())
        if name == "linear3.weight":
            per_row = block.diagonal().view_as(p).sum(1)
            rows_total = float(p.detach().square().sum(1) @ per_row)
    assert float(M.frobenius_trace(model, x, y)) == pytest.approx(total, rel=RTOL)
    found = M.diagonal_relative_flatness(model, x, y)
    assert float(found) == pytest.approx(rows_total, rel=RTOL)


def test_relative_flatness_picks_layers():
    model = network()
    x, y = data()
    everything = M.relative_flatness(model, x, y, layer=None)
    assert len(everything) == 3
    assert float(M.relative_flatness(model, x, y)) == pytest.approx(everything[2], rel=1e-12)
    assert float(M.relative_flatness(model, x, y, layer=1)) == pytest.approx(everything[1])
    named = M.relative_flatness(model, x, y, layer="linear2")
    assert float(named) == pytest.approx(everything[1], rel=1e-12)
    with pytest.raises(MeasureError, match=r"no weight layer 7.*linear3"):
        M.relative_flatness(model, x, y, layer=7)


def test_fisher_rao_closed_form_is_the_definition_without_biases_only():
    x, y = data()
    plain = network(bias=False)
    definition = float(M.fisher_rao_norm(plain, x, y))
    assert float(M.fisher_rao_closed_form(plain, x, y)) == pytest.approx(definition, rel=RTOL)
    biased = network()
    assert float(M.fisher_rao_closed_form(biased, x, y)) != pytest.approx(
        float(M.fisher_rao_norm(biased, x, y)), rel=0.01
    )
    # The empirical variant, written out: L^2 mean <p - e_y, f>^2.
    f = biased(x).detach()
    inner = ((f.softmax(1) - F.one_hot(y, 3)) * f).sum(1)
    empirical = M.fisher_rao_closed_form(biased, x, y, kind="empirical")
    assert float(empirical) == pytest.approx(9 * float(inner.square().mean()), rel=RTOL)


def test_fisher_rao_norm_chunks_and_convolutions():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(2, 3),
        ).double().eval()  # fmt: skip
        x = torch.randn(9, 1, 3, 3, dtype=torch.float64)
    y = torch.arange(9) % 3
    theta, _, fisher = flat_system(model, x, y)
    for budget in (1, 2**28):
        found = M.fisher_rao_norm(model, x, y, memory_budget=budget)
        assert float(found) == pytest.approx(float(theta @ fisher @ theta), rel=RTOL)


def test_custom_losses_have_no_fisher():
    x, y = data()
    with pytest.raises(MeasureError, match="Fisher"):
        M.fisher_rao_norm(network(), x, y, loss=lambda f, t: f.square().mean())


def test_minimum_sharpness_two_layers_closed_form():
    # 2 sum_j sqrt(Tr_in,j Tr_out,j) plus the last bias, which no scaling touches.
    model = mlp((4, 6, 3), seed=0, dtype=torch.float64)
    x, y = data()
    _, hessian, _ = flat_system(model, x, y)
    w1, b1, w2, b2 = hessian.diagonal().split([24, 6, 18, 3])
    into, out = w1.view(6, 4).sum(1) + b1, w2.view(3, 6).sum(0)
    expected = float(2 * (into * out).sqrt().sum() + b2.sum())
    found = M.minimum_sharpness(model, x, y)
    assert float(found) == pytest.approx(expected, rel=RTOL)
    assert float(found) < float(M.hessian_trace(model, x, y))
    layer = 2 * float((into.sum() * out.sum()).sqrt()) + float(b2.sum())
    assert float(M.layer_minimum_sharpness(model, x, y)) == pytest.approx(layer, rel=RTOL)


def test_minimum_sharpness_over_layers_without_biases():
    # L (prod_l Tr H_l)^(1/L).
    model = network(bias=False)
    x, y = data()
    traces = list(M.hessian_trace(model, x, y).parts.values())
    expected = 3 * math.prod(traces) ** (1 / 3)
    found = M.minimum_sharpness(model, x, y, group="layer")
    assert float(found) == pytest.approx(expected, rel=RTOL)


def test_minimum_sharpness_is_attained_by_the_scales_that_it_returns():
    model = network()
    x, y = data()
    found = M.minimum_sharpness(model, x, y)
    u = found.detail["log_scales"]
    assert len(u) == 11
    with torch.no_grad():
        for (a, b), scale in zip(
            ((model.linear1, model.linear2), (model.linear2, model.linear3)),
            u.exp().split([5, 6]),
            strict=True,
        ):
            a.weight.mul_(scale[:, None])
            a.bias.mul_(scale)
            b.weight.div_(scale)
    assert float(M.hessian_trace(model, x, y)) == pytest.approx(float(found), rel=1e-8)


def test_minimum_sharpness_of_any_module():
    from invariance.transforms import NeuronScaling

    x, y = data()
    model = network(batch_norm=True)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x)

    for group in ("layer", "neuron"):  # two ways to the same design and diagonal
        one, two = (M.minimum_sharpness(m, x, y, group=group) for m in (model, Wrapped()))
        assert float(one) == pytest.approx(float(two), rel=RTOL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = nn.Sequential(
            nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(3, 4, 2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, 3),
        ).double().eval()  # fmt: skip
        images = torch.randn(12, 1, 5, 5, dtype=torch.float64)
    moved = NeuronScaling(seed=1)(conv, images[:2])
    value = float(M.minimum_sharpness(conv, images, y))
    assert float(M.minimum_sharpness(moved, images, y)) == pytest.approx(value, rel=RTOL)
    assert (
        value < float(M.hessian_trace(conv, images, y)) < float(M.hessian_trace(moved, images, y))
    )
    with pytest.raises(MeasureError, match="example_input"):
        M.spectral_norm_product(conv)
    folded = M.spectral_norm_product(conv, example_input=images[:2])
    assert len(folded.parts) == 3


def test_minimum_sharpness_refuses_what_has_no_scalings():
    x, y = data()
    with pytest.raises(MeasureError, match="homogeneous"):
        M.minimum_sharpness(network(activation="tanh"), x, y)
    with pytest.raises(MeasureError, match="'layer' or 'neuron'"):
        M.minimum_sharpness(network(), x, y, group="channel")


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_path_norm_is_the_sum_over_paths(p):
    model = mlp((2, 3, 2, 2), seed=0, dtype=torch.float64)
    w = [m.weight.detach().numpy() for m in model if isinstance(m, nn.Linear)]
    b = [m.bias.detach().numpy() for m in model if isinstance(m, nn.Linear)]
    total = 0.0
    for k, j, i in itertools.product(range(2), range(2), range(3)):
        for source in range(2):  # a path from an input
            total += abs(w[2][k, j] * w[1][j, i] * w[0][i, source]) ** p
        total += abs(w[2][k, j] * w[1][j, i] * b[0][i]) ** p  # from the first bias
    for k, j in itertools.product(range(2), range(2)):
        total += abs(w[2][k, j] * b[1][j]) ** p
    total += np.sum(np.abs(b[2]) ** p)
    assert float(M.path_norm(model, p=p)) == pytest.approx(total ** (1 / p), rel=1e-12)


def moved(model, step):
    """The loss at theta + step, from the definition."""
    x, y = data()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()]) + step
    parts = flat.split([p.numel() for p in model.parameters()])
    named = {
        name: part.view_as(p)
        for (name, p), part in zip(model.named_parameters(), parts, strict=True)
    }
    return float(F.cross_entropy(functional_call(model, named, (x,)), y).detach())


def test_one_step_sharpness():
    model = network()
    x, y = data()
    loss = F.cross_entropy(model(x), y)
    g = torch.cat([t.flatten() for t in torch.autograd.grad(loss, list(model.parameters()))])
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    plain = moved(model, 0.1 * g / g.norm()) - float(loss.detach())
    assert float(M.sam_sharpness(model, x, y, rho=0.1)) == pytest.approx(plain, rel=1e-9)
    scaled = theta.abs() * g
    relative = moved(model, 0.1 * theta.abs() * scaled / scaled.norm()) - float(loss.detach())
    assert float(M.adaptive_sharpness(model, x, y, rho=0.1)) == pytest.approx(relative, rel=1e-9)
    with pytest.raises(MeasureError, match="rho"):
        M.sam_sharpness(model, x, y, rho=0.0)


def test_average_sharpness_approaches_half_the_traces():
    # E L(theta + sigma e) - L = sigma^2 Tr H / 2 + O(sigma^4) for a smooth network.
    model = network(activation="tanh")
    x, y = data()
    sigma = 1e-3
    for measure, trace in (
        (M.gaussian_sharpness, M.hessian_trace),
        (M.adaptive_gaussian_sharpness, M.adaptive_trace),
    ):
        found = measure(model, x, y, sigma=sigma, samples=200)
        expected = sigma**2 * float(trace(model, x, y)) / 2
        assert not found.exact
        assert abs(float(found) - expected) < 4 * found.stderr
        assert found.stderr < 0.2 * expected
        assert float(measure(model, x, y, samples=2)) == float(measure(model, x, y, samples=2))


def test_norms():
    model = network()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    for p in (1.0, 2.0, 3.5, math.inf):
        assert float(M.parameter_norm(model, p=p)) == pytest.approx(float(flat.norm(p)), rel=1e-12)
    weights = [m.weight.detach() for m in model if isinstance(m, nn.Linear)]
    spectral = math.prod(float(torch.linalg.svdvals(w)[0]) for w in weights)
    frobenius = math.prod(float(w.square().sum().sqrt()) for w in weights)
    assert float(M.spectral_norm_product(model)) == pytest.approx(spectral, rel=1e-12)
    assert float(M.frobenius_norm_product(model)) == pytest.approx(frobenius, rel=1e-12)


def test_margins():
    model = network()
    x, y = data()
    f = model(x).detach()
    margins = []
    for row, label in zip(f.tolist(), y.tolist(), strict=True):
        margins.append(row[label] - max(v for c, v in enumerate(row) if c != label))
    norm = float(M.path_norm(model))
    smallest = M.path_norm_margin(model, x, y, quantile=0.0)
    assert float(smallest) == pytest.approx(min(margins) / norm, rel=1e-12)
    tenth = M.path_norm_margin(model, x, y)
    assert float(tenth) == pytest.approx(np.quantile(margins, 0.1) / norm, rel=1e-12)


@pytest.mark.parametrize("rows", [4, 60])
def test_information_geometric_sharpness(rows):
    model = mlp((4, 5, 3), seed=0, dtype=torch.float64)  # 43 parameters
    x, y = data(rows)
    found = M.information_geometric_sharpness(model, x, y)
    _, _, fisher = flat_system(model, x, y)
    f = model(x)
    loss = F.cross_entropy(f, y, reduction="sum")
    g = torch.cat([t.flatten() for t in torch.autograd.grad(loss, list(model.parameters()))])
    f = f.detach()
    dense = g @ torch.linalg.pinv(rows * fisher, rtol=1e-12, hermitian=True) @ g
    assert float(found) == pytest.approx(float(dense), rel=1e-5)
    p = f.softmax(1)[torch.arange(rows), y]
    full = float(((1 - p) / p).sum())
    assert found.detail["full_rank_value"] == pytest.approx(full, rel=1e-12)
    if rows == 4:  # 8 rows of scores, 43 parameters: full rank
        assert found.detail["rank"] == 8
        assert float(found) == pytest.approx(full, rel=RTOL)
    else:
        assert found.detail["rank"] < 43
        assert float(found) < full
    with pytest.raises(MeasureError, match="memory_budget"):
        M.information_geometric_sharpness(model, x, y, memory_budget=100)


def test_bad_input():
    x, y = data()
    for name in ("hessian_trace", "adaptive_trace", "relative_flatness", "fisher_rao_norm"):
        measure = getattr(M, name)
        with pytest.raises(ModelError, match="train mode"):
            measure(network(batch_norm=True).train(), x, y)
        with pytest.raises(DataError, match="out of range"):
            measure(network(), x, y + 2)
        with pytest.raises(DataError, match="NaN"):
            measure(network(), x * float("nan"), y)
    with pytest.raises(MeasureError, match="at least 1"):
        M.parameter_norm(network(), p=0.5)
    with pytest.raises(MeasureError, match=">= 1"):
        M.path_norm(network(), p=0.5)
    with pytest.raises(MeasureError, match="quantile"):
        M.path_norm_margin(network(), x, y, quantile=1.5)


@pytest.mark.parametrize(
    "name",
    ["hessian_trace", "adaptive_trace", "relative_flatness", "fisher_rao_norm", "path_norm_margin",
     "minimum_sharpness", "hessian_quadratic_form", "information_geometric_sharpness"],
)  # fmt: skip
def test_nothing_is_touched(name):
    model = network(batch_norm=True)
    x, y = data()
    model.linear1.weight.grad = torch.ones_like(model.linear1.weight)
    model.act1.train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    rng = torch.random.get_rng_state()
    getattr(M, name)(model, x, y)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(rng, torch.random.get_rng_state())
    assert torch.equal(model.linear1.weight.grad, torch.ones_like(model.linear1.weight))
    assert model.linear2.weight.grad is None
    assert model.act1.training
    assert not model.norm1.training
    assert all(p.requires_grad for p in model.parameters())
    assert x.grad is None


@pytest.mark.parametrize("measure", [M.gaussian_sharpness, M.adaptive_gaussian_sharpness])
@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_average_sharpness_needs_a_finite_spread(measure, sigma):
    with pytest.raises(MeasureError, match="sigma must be positive and finite"):
        measure(network(), *data(), sigma=sigma, samples=2)
