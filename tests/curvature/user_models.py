"""Networks as people bring them, and what a measure has to agree with."""

from __future__ import annotations

import functools

import pytest
import torch
from dense_reference import dense_matrix, dense_relative_flatness
from torch import nn
from torch.nn import functional as F

import invariance as inv
from invariance.curvature import (
    hessian_diagonal,
)

ROWS, FEATURES, CLASSES = 12, 5, 3


class Skip(nn.Module):
    """No plain chain: the branch and the stream meet again."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(FEATURES, 4)
        self.second = nn.Linear(4, 4)
        self.last = nn.Linear(4, CLASSES)

    def forward(self, x):
        h = self.first(x).relu()
        return self.last(h + self.second(h).relu())


def data(*shape):
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(ROWS, *(shape or (FEATURES,)), generator=draws, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (ROWS,), generator=draws)


def built(model):
    draws = torch.Generator().manual_seed(5)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=draws).double())
    return model


def agree(model, reference, x, y, truth=F.cross_entropy, **options):
    """Every measure that is made of the Hessian, against the dense one of ``reference``."""
    names = [name for name, _ in model.named_parameters()]
    dense = dense_matrix(reference, x, y, truth)
    theta = torch.cat([p.detach().flatten() for p in reference.parameters()])
    spectrum = torch.linalg.eigvalsh(dense)
    assert spectrum[-1] > 1e-3  # a test of zeros would show nothing
    measured = inv.measures
    close = functools.partial(pytest.approx, rel=1e-9)
    trace = measured.hessian_trace(model, x, y, **options)
    assert trace.exact
    assert float(trace) == close(float(dense.trace()))
    found = hessian_diagonal(model, x, y, **options)
    assert [found[name].shape for name in names] == [p.shape for p in reference.parameters()]
    flat = torch.cat([found[name].flatten() for name in names])
    assert torch.allclose(flat, dense.diagonal(), rtol=1e-9, atol=1e-12)
    adaptive = measured.adaptive_trace(model, x, y, **options)
    assert float(adaptive) == close(float((theta.square() * dense.diagonal()).sum()))
    top = measured.hessian_eigenvalues(model, x, y, **options)
    assert float(top) == pytest.approx(float(spectrum[-1]), rel=1e-5)
    size = measured.hessian_norm(model, x, y, **options)
    assert float(size) == close(float(dense.norm()))


def flatness_agrees(model, reference, x, y, name):
    start = 0
    for parameter, value in reference.named_parameters():
        stop = start + value.numel()
        if parameter == f"{name}.weight":
            block = dense_matrix(reference, x, y, F.cross_entropy)[start:stop, start:stop]
        start = stop
    expected = dense_relative_flatness(reference.get_submodule(name), block)
    found = inv.measures.relative_flatness(model, x, y, layer=name)
    assert float(found) == pytest.approx(expected, rel=1e-9)
