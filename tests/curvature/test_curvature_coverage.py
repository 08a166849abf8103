"""Standard errors keep their word: value +- 1.96 stderr holds the truth 95 times in a hundred.

The matrices are Hessians of linear regressions, whose spectrum is whatever the inputs make it.
Catches: correlated samples that are taken for independent ones, normal quantiles for a handful
of samples, and chi-square skewness that is ignored.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from invariance.curvature import (
    HessianOperator,
    hessian_diagonal,
    hessian_norm,
    hessian_trace,
    hessian_trace_estimate,
)
from invariance.curvature.estimates._interval import standard_error

REPEATS = 200


def spectrum(name, dim):
    k = torch.arange(1, dim + 1, dtype=torch.float64)
    return {
        "one": torch.where(k == 1, 1.0, 1e-3),
        "outliers": torch.where(k < 10, 10.0, 0.1 / k.sqrt()),
        "fast": 0.7**k,
        "slow": 1 / k,
        "flat": 1 + 0.3 * k.sin(),
    }[name]


def regression(name, dim):
    """An operator whose matrix is ``Q diag(spectrum) Q^T``: that of 2/n X^T X."""
    draws = torch.Generator().manual_seed(dim)
    q = torch.linalg.qr(torch.randn(dim, dim, generator=draws, dtype=torch.float64)).Q
    values = spectrum(name, dim)
    x = (dim * values / 2).sqrt()[:, None] * q.T
    model = nn.Linear(dim, 1, bias=False).double()
    return HessianOperator(model, x, torch.zeros(dim, 1).double(), loss="mse"), values


ESTIMATORS = {
    "hutchinson": lambda operator, **o: hessian_trace_estimate(
        operator, estimator="hutchinson", **o
    ),
    "hutchpp": lambda operator, **o: hessian_trace_estimate(operator, estimator="hutchpp", **o),
    "xtrace": lambda operator, **o: hessian_trace_estimate(operator, estimator="xtrace", **o),
    "norm": lambda operator, **o: hessian_norm(operator, exact=False, **o),
}


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", ["one", "outliers", "fast", "slow", "flat"])
@pytest.mark.parametrize(("dim", "budget"), [(40, 24), (300, 96)])
def test_an_interval_holds_the_truth_as_often_as_it_says(estimator, name, dim, budget):
    operator, values = regression(name, dim)
    truth = float(values.norm() if estimator == "norm" else values.sum())
    found = [ESTIMATORS[estimator](operator, budget=budget, seed=s) for s in range(REPEATS)]
    errors = np.array([float(entry) - truth for entry in found])
    stderr = np.array([entry.stderr for entry in found])
    covered = float(np.mean(np.abs(errors) <= 1.96 * stderr + 1e-9 * abs(truth)))
    # Three standard errors of a proportion of 0.95, one sided.
    assert covered >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / REPEATS)
    # And not by being huge.
    assert np.median(stderr) <= 3.5 * math.sqrt(float(np.mean(errors**2))) + 1e-9 * truth


class Smooth(nn.Module):
    """No perceptron: its trace is estimated."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.second = nn.Linear(12, 12)
        self.last = nn.Linear(12, 3)

    def forward(self, x):
        h = self.first(x).tanh()
        return self.last(h + self.second(h).tanh())


@pytest.mark.slow
def test_the_automatic_fallback_and_the_diagonal_hold_the_truth_too():
    draws = torch.Generator().manual_seed(0)
    model = Smooth().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=draws).double())
    x = torch.randn(40, 6, generator=draws, dtype=torch.float64)
    y = torch.randint(0, 3, (40,), generator=draws)
    truth = hessian_trace(model, x, y)
    assert truth.exact
    diagonal = hessian_diagonal(model, x, y)
    inside, entries = [], []
    for seed in range(REPEATS):
        found = hessian_trace(model, x, y, max_products=0, budget=24, seed=seed)
        inside.append(abs(float(found) - float(truth)) <= 1.96 * found.stderr)
        if seed < 100:
            guess = hessian_diagonal(model, x, y, max_products=0, budget=24, seed=seed)
            name = "second.weight"
            gap = (guess[name] - diagonal[name]).abs()
            entries.append((gap <= 1.96 * guess.stderr[name] + 1e-12).double().mean())
    assert np.mean(inside) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / REPEATS)
    assert float(torch.stack(entries).mean()) >= 0.94


def test_shared_probes_widen_the_interval():
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = standard_error(values)
    shared = standard_error(values, torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64))
    assert alone[0] == shared[0]
    assert shared[1] > 1.0
    assert shared[2] == alone[2]
    assert torch.allclose(alone, values.std(0) / 50**0.5, rtol=0.2)


def test_samples_that_agree_are_certain():
    assert float(standard_error(torch.full((8,), 2.5))) == 0.0


def test_the_covariance_of_xtrace_is_what_the_definition_gives(monkeypatch):
    """Every sample again, from its own dense formula; and the pairs by leaving two probes out."""
    from invariance.curvature.estimates import _sketch

    operator, _ = regression("slow", 40)
    seen = {}
    original = _sketch._covariance

    def spy(operator, omega, images, basis, moved, left_out):
        seen.update(omega=omega, found=original(operator, omega, images, basis, moved, left_out))
        return seen["found"]

    monkeypatch.setattr(_sketch, "_covariance", spy)
    samples = _sketch.xtrace(operator, 24, 7)
    a, omega = operator.to_dense(), seen["omega"]
    m = len(omega)

    def sample(i, gone):
        q = torch.linalg.qr(a @ omega[[j for j in range(m) if j not in gone]].T).Q
        rest = omega[i] - q @ (q.T @ omega[i])
        scale = (len(a) - q.shape[1]) / rest.square().sum()
        return (q.T @ a @ q).trace() + scale * rest @ a @ rest

    alone = torch.stack([sample(i, {i}) for i in range(m)])
    total = samples.values.sum(1) + samples.fixed.sum()
    assert torch.allclose(total, alone, rtol=1e-8)
    pairs = [(i, k) for i in range(m) for k in range(m) if i != k]
    change = {(k, i): alone[i] - sample(i, {i, k}) for i, k in pairs}
    expected = sum(change[k, i] * change[i, k] for i, k in pairs) / len(pairs)
    assert float(seen["found"][-1]) == pytest.approx(float(expected), rel=1e-6)
