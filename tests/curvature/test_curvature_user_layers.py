"""Layers and hooks of people's own: each value against a dense float64 Hessian, or refused.

Catches: a tap that sees another output than the layers below, a kernel whose second
derivative is wrong, a matrix that is not symmetric.
"""

from __future__ import annotations

import copy

import pytest
import torch
from dense_reference import dense_matrix
from torch import nn
from torch.nn import functional as F
from user_models import CLASSES, FEATURES, Skip, agree, built, data, flatness_agrees

import invariance as inv
from invariance.core._errors import MeasureError, ModelError
from invariance.core._modules import clone
from invariance.curvature import (
    GGNOperator,
    HessianOperator,
    hessian_diagonal,
    hessian_eigenvalues_ensemble,
)


class Covering(nn.Module):
    """Convolutions whose kernel is as large as their map (the C5 of LeNet-5)."""

    def __init__(self, groups=1):
        super().__init__()
        self.c1 = nn.Conv2d(2, 4, 3)
        self.c5 = nn.Conv2d(4, 6, 4, groups=groups)
        self.last = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.last(self.c5(self.c1(x).relu()).relu().flatten(1))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_that_covers_its_map(groups):
    model = built(Covering(groups))
    x, y = data(2, 6, 6)
    agree(model, model, x, y)
    flatness_agrees(model, model, x, y, "c5")
    weights = {name: p.detach().square() for name, p in model.named_parameters()}
    assert hessian_diagonal(model, x, y)["c5.weight"].shape == weights["c5.weight"].shape
    lowest = inv.measures.minimum_sharpness(model, x, y)
    assert 0 < float(lowest) < float(inv.measures.hessian_trace(model, x, y))
    scaled = inv.transforms.NeuronScaling(spread=3.0, seed=1)(model, x[:2])
    assert float(inv.measures.minimum_sharpness(scaled, x, y)) == pytest.approx(float(lowest))
    flat = nn.Sequential(nn.Unflatten(1, (2, 6, 6)), model)
    parts = ("train", "test", "unseen")
    task = inv.Task(
        "covering",
        CLASSES,
        **{f"x_{part}": x.flatten(1).float() for part in parts},
        **{f"y_{part}": y for part in parts},
    )
    scaling = inv.transforms.NeuronScaling(spread=3.0, seed=1)
    report = inv.check(flat, task, measures=["hessian_trace"], transforms=[scaling])
    assert [row.verdict for row in report.rows] == ["law"]


class Steered(Skip):
    """What the hooks below make of a :class:`Skip`."""

    def forward(self, x):
        h = self.first(x.tanh()).relu()
        return self.last(h + 3 * self.second(h).relu()) * 2 + self.last.bias


def test_a_tap_sees_what_the_layers_below_see():
    model, reference = built(Skip()), built(Steered())
    model.first.register_forward_pre_hook(lambda module, args: (args[0].tanh(),))
    model.second.register_forward_hook(lambda module, args, output: 3 * output)
    model.last.register_forward_hook(lambda module, args, output: output.mul_(2) + module.bias)
    x, y = data()
    agree(model, reference, x, y)
    for name in ("first", "second", "last"):
        flatness_agrees(model, reference, x, y, name)
    with pytest.raises(MeasureError, match="hooks of its own"):
        inv.measures.standardized_relative_flatness(model, x, y, layer="last")
    with pytest.raises(MeasureError, match="something acts after it"):
        inv.measures.pair_proxy(model, x, y, x + 1)


@pytest.mark.parametrize("chain", [False, True])
def test_a_hook_on_every_module_is_part_of_the_function(chain):
    model = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, CLASSES))
    model = built(model if chain else Skip())

    def steer(module, args, output):
        return 2 * output if isinstance(module, nn.Linear) else None

    x, y = data()
    reference = copy.deepcopy(model)
    for module in reference.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(steer)
    handle = nn.modules.module.register_module_forward_hook(steer)
    try:
        values = inv.measures.hessian_trace(model, x, y), hessian_diagonal(model, x, y).trace
    finally:
        handle.remove()
    expected = float(dense_matrix(reference, x, y, F.cross_entropy).trace())
    assert float(values[0]) == pytest.approx(expected, rel=1e-9)
    assert values[1] == pytest.approx(expected, rel=1e-9)


def test_a_layer_may_be_called_by_the_name_of_its_argument():
    class Named(Skip):
        def forward(self, x):
            h = self.first(input=x).relu()
            return self.last(input=h + self.second(input=h).relu())

    model, reference = built(Named()), built(Skip())
    x, y = data()
    agree(model, reference, x, y)
    flat = inv.measures.standardized_relative_flatness
    assert float(flat(model, x, y)) == pytest.approx(float(flat(reference, x, y)), rel=1e-12)
    features = inv.measures.pair_proxy(reference, x, y, x + 1)
    assert float(inv.measures.pair_proxy(model, x, y, x + 1)) == float(features)


class Normalised(nn.Module):
    """Weight normalisation by torch, as a parametrisation or (once) as a hook."""

    def __init__(self, wrap, activation):
        super().__init__()
        self.first = wrap(nn.Linear(FEATURES, 4))
        self.second = wrap(nn.Linear(4, 4), dim=1)
        self.last = wrap(nn.Linear(4, CLASSES), dim=None)
        self.activation = activation

    def forward(self, x):
        h = self.activation(self.first(x))
        return self.last(h + self.activation(self.second(h)))


class NormalisedByHand(nn.Module):
    """The same function of the same parameters, in plain operations."""

    def __init__(self, model):
        super().__init__()
        self.values = nn.ParameterList([p.detach().clone() for p in model.parameters()])
        self.order = [name for name, _ in model.named_parameters()]
        self.activation = model.activation

    def layer(self, name, h, over):
        own = dict(zip(self.order, self.values, strict=True))
        g = own[f"{name}.parametrizations.weight.original0"]
        v = own[f"{name}.parametrizations.weight.original1"]
        size = v.square().sum(over, keepdim=True).sqrt()
        return h @ (v * g / size).T + own[f"{name}.bias"]

    def forward(self, x):
        h = self.activation(self.layer("first", x, 1))
        h = h + self.activation(self.layer("second", h, 0))
        return self.layer("last", h, (0, 1))


@pytest.mark.parametrize("activation", [torch.relu, torch.tanh])
@pytest.mark.parametrize("mode", ["graph", "dual"])
def test_weight_norm_is_differentiated_by_its_formula(activation, mode):
    wrap = nn.utils.parametrizations.weight_norm
    model = built(Normalised(wrap, activation))
    reference = NormalisedByHand(model).double()
    x, y = data()
    assert torch.allclose(model(x), reference(x), rtol=1e-12)
    agree(model, reference, x, y)
    dense = dense_matrix(reference, x, y, F.cross_entropy)
    operator = HessianOperator(model, x, y, mode=mode)
    found = operator.rows(torch.eye(len(dense), dtype=torch.float64))
    assert torch.allclose(found, dense, rtol=1e-9, atol=1e-12)
    theta = torch.cat([p.detach().flatten() for p in reference.parameters()])
    fisher = GGNOperator(reference, x, y).to_dense()
    norm = inv.measures.fisher_rao_norm(model, x, y)
    assert float(norm) == pytest.approx(float(theta @ fisher @ theta), rel=1e-9)


class _Cubed(torch.autograd.Function):
    """x^3 whose second derivative mixes up entries."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 3 * (x**2 + 5 * (x - x.detach()).roll(1, -1))


class Cubed(Skip):
    def forward(self, x):
        return super().forward(x) + 0.1 * _Cubed.apply(self.first(x))[:, :CLASSES]


class Fused(Skip):
    """Torch's fused kernel, called where nobody replaces it."""

    def forward(self, x):
        size = self.second.weight.norm(dim=1, keepdim=True).detach()
        weight, _ = torch.ops.aten._weight_norm_interface(self.second.weight, size, 0)
        return super().forward(x) + F.linear(self.first(x).tanh(), weight)[:, :CLASSES]


@pytest.mark.parametrize(
    ("kind", "named"), [(Cubed, "_Cubed"), (Fused, r"aten\._weight_norm_interface\.default")]
)
def test_a_matrix_that_is_not_symmetric_is_refused_with_the_operation(kind, named):
    model = built(kind())
    x, y = data()
    measured = inv.measures
    for measure in (measured.hessian_trace, measured.hessian_eigenvalues, measured.hessian_norm):
        for dtype in (torch.float64, torch.float32):
            with pytest.raises(ModelError, match=f"{named} has a second derivative that is not"):
                measure(clone(model).to(dtype), x.to(dtype), y)
    with pytest.raises(ModelError, match="not symmetric"):
        hessian_eigenvalues_ensemble([model, clone(model)], x, y)


def test_round_off_is_no_asymmetry():
    # A softmax that is saturated leaves few digits of the products, and no operation to blame.
    x, y = data()
    for dtype in (torch.float32, torch.float64):
        for factor in (1.0, 10.0, 30.0):
            model = built(Skip()).to(dtype)
            with torch.no_grad():
                model.last.weight.mul_(factor)
            HessianOperator(model, x.to(dtype), y).matvec(torch.ones(59, dtype=dtype))
