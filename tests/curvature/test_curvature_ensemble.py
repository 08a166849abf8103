"""Eigenvalues of stacked ensembles against each network on its own.

Bug classes: one network's data, start or convergence leaking into another's; a network that
stands still while others go on; networks that look alike and are not.
"""

from __future__ import annotations

import pytest
import torch
from curvature_cases import ConvSkip
from torch import nn

from invariance.core._errors import MeasureError, UsageError
from invariance.curvature import (
    HessianOperator,
    hessian_eigenvalues,
    hessian_eigenvalues_ensemble,
)


def networks(build, count, shape, rows=12):
    draws = torch.Generator().manual_seed(3)
    models = []
    with torch.random.fork_rng(devices=[]):
        for seed in range(count):
            torch.manual_seed(seed)
            models.append(build().double().eval())
    x = torch.randn(rows, *shape, generator=draws, dtype=torch.float64)
    return models, x, torch.randint(0, 3, (rows,), generator=draws)


BUILDERS = {
    "relu": (
        lambda: nn.Sequential(
            nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
        ),
        (5,),
    ),
    "tanh-no-bias": (
        lambda: nn.Sequential(nn.Linear(5, 8, bias=False), nn.Tanh(), nn.Linear(8, 3)),
        (5,),
    ),
    "wide-input": (  # more inputs than rows: most of the first layer is flat
        lambda: nn.Sequential(nn.Linear(30, 5), nn.ReLU(), nn.Linear(5, 3)),
        (30,),
    ),
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "conv": (ConvSkip, (1, 6, 6)),
}


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("name", BUILDERS)
def test_each_network_gets_its_own_eigenvalue(name, which):
    build, shape = BUILDERS[name]
    models, x, y = networks(build, 7, shape)
    found = hessian_eigenvalues_ensemble(models, x, y, which=which)
    assert len(found) == 7
    words = "vmap" if name == "conv" else "batched R-operator"
    for model, estimate in zip(models, found, strict=True):
        spectrum = torch.linalg.eigvalsh(HessianOperator(model, x, y).to_dense())
        truth = float(spectrum[-1] if which == "largest" else spectrum[0])
        assert estimate.converged
        # A wrong stack would fail its certificates and be solved one by one instead.
        assert "stacked" in estimate.method
        assert words in estimate.method
        assert estimate.residual <= 1e-6 * float(spectrum.abs().max())
        assert float(estimate) == pytest.approx(truth, abs=estimate.residual + 1e-12)


def test_a_networks_result_does_not_depend_on_its_company():
    models, x, y = networks(*[BUILDERS["relu"][0], 5, BUILDERS["relu"][1]])
    together = hessian_eigenvalues_ensemble(models, x, y)
    grouped = hessian_eigenvalues_ensemble(models, x, y, memory_budget=1)
    for one, other in zip(together, grouped, strict=True):
        assert float(one) == pytest.approx(float(other), rel=1e-10)


def test_losses_weights_and_mixed_difficulty():
    models, x, y = networks(BUILDERS["relu"][0], 4, (5,))
    with torch.no_grad():
        models[2][0].weight.mul_(30)  # a spectrum unlike the others'
        for parameter in models[3].parameters():
            parameter.zero_()  # a Hessian of rank two at most: its process stands still
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64))
    found = hessian_eigenvalues_ensemble(models, x, y, loss=loss, which="smallest")
    for model, estimate in zip(models, found, strict=True):
        spectrum = torch.linalg.eigvalsh(HessianOperator(model, x, y, loss=loss).to_dense())
        tolerance = 2e-6 * float(spectrum.abs().max())
        assert float(estimate) == pytest.approx(float(spectrum[0]), abs=tolerance)


def test_unlike_networks_are_solved_one_by_one():
    models, x, y = networks(BUILDERS["relu"][0], 1, (5,))
    models += networks(BUILDERS["tanh-no-bias"][0], 1, (5,))[0]
    found = hessian_eigenvalues_ensemble(models, x, y)
    for model, estimate in zip(models, found, strict=True):
        assert float(estimate) == float(hessian_eigenvalues(model, x, y))


def test_equal_shapes_with_different_code_are_not_stacked():
    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.layer = nn.Linear(5, 3)
            self.factor = factor

        def forward(self, x):
            return self.factor * torch.tanh(self.layer(x))

    models = [Scaled(1.0).double(), Scaled(3.0).double()]
    _, x, y = networks(BUILDERS["linear"][0], 1, (5,))
    found = hessian_eigenvalues_ensemble(models, x, y)
    for model, estimate in zip(models, found, strict=True):
        spectrum = torch.linalg.eigvalsh(HessianOperator(model, x, y).to_dense())
        assert float(estimate) == pytest.approx(float(spectrum[-1]), rel=1e-9)


def test_bad_requests_are_refused():
    models, x, y = networks(BUILDERS["linear"][0], 2, (5,))
    with pytest.raises(MeasureError, match="empty"):
        hessian_eigenvalues_ensemble([], x, y)
    with pytest.raises(UsageError, match="largest"):
        hessian_eigenvalues_ensemble(models, x, y, which="both")
