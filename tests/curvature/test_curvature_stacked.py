"""Many networks in one call give, network by network, what one call each gives.

Would catch: labels or rows paired with the wrong network, sums over the stack, a BatchNorm or
bias stacked in another order, and groups of networks lost at a chunk's edge.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from invariance.core._errors import DataError, MeasureError, ModelError
from invariance.curvature import exact_curvature, hessian_trace_ensemble


def network(seed, *, norm=True, hidden=5):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        middle = [nn.BatchNorm1d(hidden)] if norm else []
        model = nn.Sequential(
            nn.Linear(6, hidden), *middle, nn.LeakyReLU(0.2), nn.Linear(hidden, 3)
        ).double()
        if norm:
            model[1].running_mean.normal_()
            model[1].running_var.uniform_(0.5, 2)
    return model.eval()


def data(count=None):
    draws = torch.Generator().manual_seed(0)
    shape = (11,) if count is None else (count, 11)
    x = torch.randn(*shape, 6, generator=draws, dtype=torch.float64)
    return x, torch.randint(0, 3, shape, generator=draws)


@pytest.mark.parametrize("budget", [1, 6000, 2**28])
@pytest.mark.parametrize("own_rows", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_stack_equals_loop(norm, own_rows, budget):
    models = [network(seed, norm=norm) for seed in range(7)]
    x, y = data(7 if own_rows else None)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    loss = nn.CrossEntropyLoss(weight=weight)
    stack = hessian_trace_ensemble(
        models, x, y, loss=loss, relative_flatness=True, diagonal=True, memory_budget=budget
    )
    for i, model in enumerate(models):
        rows, labels = (x[i], y[i]) if own_rows else (x, y)
        one = exact_curvature(model, rows, labels, loss=loss, relative_flatness=True, diagonal=True)
        assert list(stack.traces) == list(one.traces)
        assert stack.trace[i] == pytest.approx(one.trace, rel=1e-12)
        for name, value in one.traces.items():
            assert stack.traces[name][i] == pytest.approx(value, rel=1e-12)
            torch.testing.assert_close(stack.diagonal[name][i], one.diagonal[name])
        assert list(stack.relative_flatness) == list(one.relative_flatness)
        for name, value in one.relative_flatness.items():
            assert stack.relative_flatness[name][i] == pytest.approx(value, rel=1e-12)


def test_networks_that_do_not_stack_are_swept_one_by_one():
    models = [network(0), network(1, hidden=4)]
    x, y = data()
    result = hessian_trace_ensemble(models, x, y, relative_flatness=True)
    expected = [exact_curvature(model, x, y).trace for model in models]
    np.testing.assert_allclose(result.trace, expected, rtol=1e-13)
    assert "one by one" in result.method


def test_smooth_networks_stack():
    models = []
    for seed in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3)]
            models.append(nn.Sequential(*layers).double())
    x, y = data()
    stack = hessian_trace_ensemble(models, x, y, relative_flatness=True)
    for i, model in enumerate(models):
        one = exact_curvature(model, x, y, relative_flatness=True)
        assert stack.trace[i] == pytest.approx(one.trace, rel=1e-12)
        for name, value in one.relative_flatness.items():
            assert stack.relative_flatness[name][i] == pytest.approx(value, rel=1e-12)


def test_frozen_parameters_count():
    model = network(0).requires_grad_(False)
    x, y = data()
    free = hessian_trace_ensemble([network(0)], x, y).trace
    np.testing.assert_array_equal(hessian_trace_ensemble([model], x, y).trace, free)


def test_bad_input_is_refused():
    x, y = data()
    with pytest.raises(MeasureError, match="empty"):
        hessian_trace_ensemble([], x, y)
    with pytest.raises(DataError, match="features"):
        hessian_trace_ensemble([network(0)], x[:, :4], y)
    wrong, labels = data(3)
    with pytest.raises(DataError, match="M = 2"):
        hessian_trace_ensemble([network(0), network(1)], wrong, labels)
    with pytest.raises(ModelError, match="train mode"):
        hessian_trace_ensemble([network(0), network(1).train()], x, y)
