"""Quadratic forms by one forward pass, and the eigenvalue certificate that rests on them.

Bug classes: a second-order term of the outputs lost; a frozen layer that still moves; a
float32 certificate that claims less error than it has.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from curvature_cases import CASES, Case, dense_hessian
from torch import nn

from invariance.curvature import GGNOperator, HessianOperator, eigenpairs, hessian_eigenvalues
from invariance.curvature.products._chain import read_chain
from invariance.curvature.products._operators import OPERATORS
from invariance.curvature.spectrum._certificates import certify_again

CHAINS = [case for case in CASES if read_chain(case.build()[0]) is not None]


def direction(dim):
    return torch.linspace(-1, 1.5, dim, dtype=torch.float64).cos()


@pytest.mark.parametrize("case", CHAINS, ids=lambda case: case.id)
def test_the_form_is_that_of_the_dense_hessian(case):
    model, x, y = case.build()
    dense = dense_hessian(case)
    v = direction(len(dense))
    operator = HessianOperator(model, x, y, loss=case.loss)
    found = operator.quadratic(v, torch.float64)
    assert found == pytest.approx(float(v @ dense @ v), rel=1e-10, abs=1e-12)
    assert operator.products == 1


@pytest.mark.parametrize("matrix", ["ggn", "fisher", "empirical_fisher"])
def test_outer_matrices_leave_out_the_second_order_term(matrix):
    case = Case("tanh", "cross-entropy")
    model, x, y = case.build()
    operator = OPERATORS[matrix](model, x, y)
    v = direction(operator.shape[0])
    expected = float(v @ operator.to_dense() @ v)
    assert operator.quadratic(v, torch.float64) == pytest.approx(expected, rel=1e-10)
    hessian = float(v @ dense_hessian(case) @ v)
    assert abs(hessian - expected) > 1e-3 * abs(hessian)


@pytest.mark.parametrize("chosen", [["0.weight"], ["0.bias"], ["2.weight"], ["2.bias", "0.bias"]])
def test_parameters_left_out_do_not_move(chosen):
    model, x, y = Case("tanh", "weighted").build()
    operator = HessianOperator(
        model, x, y, loss=Case("tanh", "weighted").loss, parameters=chosen, memory_budget=1 << 10
    )
    v = direction(operator.shape[0])
    expected = float(v @ operator.to_dense() @ v)
    assert operator.quadratic(v, torch.float64) == pytest.approx(expected, rel=1e-10)


def test_other_networks_have_no_shortcut():
    model, x, y = Case("conv-max-pool", "cross-entropy").build()
    operator = GGNOperator(model, x, y)
    assert operator.quadratic(direction(operator.shape[0]), torch.float64) is None
    assert operator.products == 0


def float32_problem():
    draws = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 10), nn.Tanh())
        model = nn.Sequential(*model, nn.Linear(10, 4))
    x, y = torch.randn(60, 12, generator=draws), torch.randint(0, 4, (60,), generator=draws)
    exact = HessianOperator(model, x, y, dtype=torch.float64).to_dense()
    return model, x, y, exact


def test_a_float32_eigenvalue_is_certified_beyond_float32():
    model, x, y, exact = float32_problem()
    truth = torch.linalg.eigvalsh(exact)[-1].item()
    options = {"solver": "lanczos", "criterion": "value", "tolerance": 1e-5}
    operator = HessianOperator(model, x, y)
    found = eigenpairs(operator, certify_in=torch.float64, **options)
    assert found.certificate == "recomputed, value recomputed in torch.float64"
    v = found.vectors[0].double() / found.vectors[0].double().norm()
    assert float(found.values[0]) == pytest.approx(float(v @ exact @ v), rel=1e-12)
    true_residual = float((exact @ v - found.values[0] * v).norm())
    assert true_residual <= float(found.residuals[0]) <= true_residual + 1e-4 * found.scale
    assert abs(float(found.values[0]) - truth) <= float(found.error_bounds[0])
    assert found.products == operator.products
    estimate = hessian_eigenvalues(model, x, y, certify_in=torch.float64, **options)
    assert "value recomputed in torch.float64" in estimate.method
    assert float(estimate) == float(found.values[0])


def test_residuals_near_the_round_off_are_recomputed_in_float64():
    model, x, y, exact = float32_problem()
    found = eigenpairs(
        HessianOperator(model, x, y), solver="lanczos", tolerance=1e-5, certify_in=torch.float64
    )
    assert found.certificate == "recomputed in torch.float64"
    v = found.vectors[0].double() / found.vectors[0].double().norm()
    true_residual = float((exact @ v - found.values[0] * v).norm())
    assert float(found.residuals[0]) == pytest.approx(true_residual, rel=1e-6)


def test_a_wrong_vector_is_not_certified():
    model, x, y, _ = float32_problem()
    operator = HessianOperator(model, x, y)
    found = eigenpairs(operator, solver="lanczos", criterion="value", tolerance=1e-5)
    spoiled = found.vectors + 0.3 * operator.random_vectors(1, seed=3) / operator.shape[0] ** 0.5
    lie = dataclasses.replace(found, vectors=spoiled / spoiled.norm())
    again = certify_again(operator, lie, 1e-5, "value", torch.float64)
    assert found.converged
    assert not again.converged
