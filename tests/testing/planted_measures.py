"""Small measures written from their definitions, right and wrong, for the gate's own tests."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F


def loss(model, x, y):
    """A function of the outputs: nothing that keeps the softmax moves it."""
    return F.cross_entropy(model(x), y).detach()


def dense_hessian(model, x, y):
    """The full Hessian of the mean cross-entropy over all parameters, by reverse over reverse."""
    named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in named.values()]

    def value(flat):
        pieces = torch.split(flat, sizes)
        filled = {n: v.reshape(p.shape) for (n, p), v in zip(named.items(), pieces, strict=True)}
        return F.cross_entropy(functional_call(model, filled, (x,)), y)

    flat = torch.cat([p.reshape(-1) for p in named.values()])
    return torch.func.jacrev(torch.func.grad(value))(flat), named, sizes


def blocks(model, x, y):
    """Hessian diagonals by parameter name, read off the dense matrix."""
    hessian, named, sizes = dense_hessian(model, x, y)
    pieces = torch.split(hessian.diagonal(), sizes)
    return {n: d.reshape(p.shape) for (n, p), d in zip(named.items(), pieces, strict=True)}


def hessian_trace(model, x, y):
    return float(sum(d.sum() for d in blocks(model, x, y).values()))


def adaptive_trace(model, x, y):
    """Sum of theta_i^2 H_ii: invariant under every scaling."""
    named = dict(model.named_parameters())
    return float(
        sum((named[n].detach().square() * d).sum() for n, d in blocks(model, x, y).items())
    )


def adaptive_trace_without_biases_scaled(model, x, y):
    """Weights are normalised, biases are not: the published normaliser's mistake."""
    named = dict(model.named_parameters())
    return float(
        sum(
            (d * (named[n].detach().square() if named[n].dim() > 1 else 1.0)).sum()
            for n, d in blocks(model, x, y).items()
        )
    )


def weight_times_trace(layer, power):
    """``|W|^power`` times the trace of the layer's own block: right for power 2 only."""

    def measure(model, x, y):
        trace = float(blocks(model, x, y)[f"{layer}.weight"].sum())
        weight = model.get_submodule(layer).weight.detach()
        return trace * float(weight.norm()) ** power

    return measure


def squared_norm(model, x, y):
    return float(sum(p.detach().square().sum() for p in model.parameters()))


def norm_product(model, x, y):
    """Product of the layers' Frobenius norms: invariant under layer scaling only."""
    product = 1.0
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            product *= float(module.weight.detach().norm())
    return product


def cancels_in_float32(model, x, y):
    """The product ``4 a b`` as a difference of squares: exact in float64, lost in float32."""
    a = 1e5 * model.linear1.weight.detach().norm()
    b = model.linear2.weight.detach().norm()
    return float((a + b) ** 2 - (a - b) ** 2)


def differs_by_ulps(model, x, y):
    """A millionth of a product of norms, as a difference: some eight ulps in float32."""
    a, b = model.linear1.weight.detach().norm(), model.linear2.weight.detach().norm()
    return float((a * (1 + 1e-6)) * b - a * b)
