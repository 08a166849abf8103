"""Extreme eigenvalues against dense decompositions, with certificates that can fail.

Bug classes: a solver that stops early and says converged; magnitude taken for algebraic
order; duplicated or missed copies of multiple eigenvalues; a result that moves with the
global seed.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from invariance.core._errors import MeasureError, UsageError
from invariance.curvature import HessianOperator, eigenpairs, hessian_eigenvalues


def small_problem(dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 10), nn.Tanh(), nn.Linear(10, 4)
        ).to(dtype)
        x, y = torch.randn(50, 12, dtype=dtype), torch.randint(0, 4, (50,))
    return model, x, y


@pytest.fixture(scope="module")
def spectrum():
    model, x, y = small_problem()
    return torch.linalg.eigvalsh(HessianOperator(model, x, y).to_dense()).flip(0)


@pytest.mark.parametrize("solver", ["dense", "lanczos", "arpack", "lobpcg"])
@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
@pytest.mark.parametrize("k", [1, 4])
def test_every_solver_finds_both_algebraic_ends(spectrum, solver, which, k):
    model, x, y = small_problem()
    found = hessian_eigenvalues(model, x, y, k=k, which=which, solver=solver)
    top, bottom = spectrum[:k], spectrum[-k:]
    expected = {"largest": top, "smallest": bottom, "both": torch.cat([top, bottom])}[which]
    assert found.converged
    assert found.residual <= 1e-6 * float(spectrum.abs().max())
    torch.testing.assert_close(
        torch.tensor(found.values), expected, rtol=0, atol=max(found.residual, 1e-12)
    )
    assert spectrum[-1] < -0.1  # the problem has negative curvature worth finding


def test_the_residual_is_that_of_the_returned_vectors():
    model, x, y = small_problem()
    operator = HessianOperator(model, x, y)
    pairs = eigenpairs(operator, k=2, which="both", solver="lanczos")
    for value, vector, residual in zip(pairs.values, pairs.vectors, pairs.residuals, strict=True):
        assert float(vector.norm()) == pytest.approx(1.0, abs=1e-12)
        again = float((operator.matvec(vector) - value * vector).norm())
        assert float(residual) == pytest.approx(again, rel=1e-6, abs=1e-14)


def test_an_exhausted_budget_is_reported_and_not_hidden(spectrum):
    model, x, y = small_problem()
    found = hessian_eigenvalues(model, x, y, solver="lanczos", tolerance=1e-10, max_products=4)
    assert not found.converged
    assert "NOT converged" in found.method
    assert found.residual > 1e-10 * float(spectrum[0])
    assert min(abs(spectrum - float(found))) <= found.residual


def test_equal_seeds_give_bitwise_equal_results_whatever_the_global_seed():
    model, x, y = small_problem()
    values = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        values.append(float(hessian_eigenvalues(model, x, y, solver="lanczos", seed=7)))
    assert values[0] == values[1]


def test_bad_requests_are_refused():
    model, x, y = small_problem()
    with pytest.raises(MeasureError, match="k must lie between"):
        hessian_eigenvalues(model, x, y, k=0)
    with pytest.raises(UsageError, match="largest"):
        hessian_eigenvalues(model, x, y, which="top")
    with pytest.raises(MeasureError, match="tolerance"):
        hessian_eigenvalues(model, x, y, tolerance=0.0)
