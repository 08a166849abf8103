"""Algorithms that need only products, on matrices whose spectra are known by construction.

Would catch: an algorithm that reaches behind the products (for a model, a loss, its data), and
errors that every network's Hessian happens to hide.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from invariance.core._errors import DataError, MeasureError
from invariance.curvature import (
    MatrixOperator,
    SymmetricOperator,
    eigenpairs,
    hessian_eigenvalues,
    hessian_norm,
    hessian_trace_estimate,
    spectral_density,
)
from invariance.curvature.estimates._diagonal import basis_diagonal, estimate_diagonal
from invariance.curvature.products._parameter_space import ParameterSpace

DIM = 300


def spectrum():
    """Decaying, of both signs, with a double eigenvalue at the top."""
    values = 10.0 * 0.9 ** torch.arange(DIM, dtype=torch.float64)
    values[1] = values[0]
    values[-40:] *= -1
    values[-1] = -3.0
    return values


def matrix():
    draws = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(DIM, DIM, generator=draws, dtype=torch.float64))
    whole = basis @ torch.diag(spectrum()) @ basis.T
    return (whole + whole.T) / 2


class Counted(SymmetricOperator):
    """Known by its products alone, in two blocks."""

    device, dtype = torch.device("cpu"), torch.float64
    space = ParameterSpace(("first", "second"), (torch.Size([10, 20]), torch.Size([DIM - 200])))

    def _multiply(self, vectors):
        return vectors @ matrix()


@pytest.mark.parametrize("solver", ["dense", "lanczos", "arpack", "lobpcg"])
def test_extreme_eigenvalues(solver):
    operator = MatrixOperator(matrix())
    found = eigenpairs(operator, k=1, which="both", solver=solver, tolerance=1e-8)
    assert found.converged
    np.testing.assert_allclose(found.values, [10.0, -3.0], rtol=1e-8)


def test_a_double_eigenvalue_is_found_twice():
    found = hessian_eigenvalues(MatrixOperator(matrix()), k=3, solver="lanczos")
    np.testing.assert_allclose(found.values, [10.0, 10.0, 8.1], rtol=1e-6)


def test_a_float32_matrix_is_certified_in_double():
    operator = MatrixOperator(matrix().float())
    found = hessian_eigenvalues(operator, solver="lanczos", certify_in=torch.float64)
    assert float(found) == pytest.approx(10.0, rel=1e-5)
    assert found.converged


@pytest.mark.parametrize("estimator", ["hutchinson", "hutchpp", "xtrace"])
def test_traces_lie_within_their_errors(estimator):
    found = hessian_trace_estimate(MatrixOperator(matrix()), estimator=estimator, budget=150)
    assert abs(float(found) - float(spectrum().sum())) <= 5 * found.stderr
    assert found.iterations <= 150
    exact = hessian_trace_estimate(MatrixOperator(matrix()), estimator=estimator, budget=DIM)
    assert exact.exact
    assert float(exact) == pytest.approx(float(spectrum().sum()), rel=1e-12)


def test_norms_exact_and_estimated():
    truth = float(spectrum().norm())
    assert float(hessian_norm(MatrixOperator(matrix()))) == pytest.approx(truth, rel=1e-12)
    found = hessian_norm(MatrixOperator(matrix()), exact=False, budget=150)
    assert float(found) == pytest.approx(truth, abs=5 * found.stderr + 1e-9)


def test_the_density_has_the_moments_of_the_spectrum():
    found = spectral_density(MatrixOperator(matrix()), probes=20, steps=60)
    for order in (1, 2):
        moment, truth = found.moment(order), float((spectrum() ** order).mean())
        assert abs(float(moment) - truth) <= 5 * moment.stderr


def test_diagonals_exact_and_estimated():
    operator = MatrixOperator(matrix())
    truth = matrix().diagonal()
    torch.testing.assert_close(basis_diagonal(operator)["matrix"], truth)
    found, spread = estimate_diagonal(operator, budget=200)
    assert float(((found["matrix"] - truth).abs() / spread["matrix"]).max()) < 6


def test_an_operator_of_ones_own_in_blocks():
    with pytest.raises(DataError, match="Expected vectors with"):
        Counted().rows(torch.zeros(2, DIM + 1, dtype=torch.float64))
    with pytest.raises(MeasureError, match="not known in"):
        Counted().in_dtype(torch.float32)
    assert Counted().shape == (DIM, DIM)
    found = hessian_trace_estimate(Counted(), budget=DIM)
    diagonal = matrix().diagonal()
    assert found.parts["first"] == pytest.approx(float(diagonal[:200].sum()))
    assert math.fsum(found.parts.values()) == pytest.approx(float(diagonal.sum()))
    assert float(hessian_eigenvalues(Counted(), solver="lanczos")) == pytest.approx(10.0)


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(2, 3), torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.full((2, 2), math.nan)],
)
def test_what_is_no_symmetric_matrix_is_refused(wrong):
    with pytest.raises(DataError, match="symmetric"):
        MatrixOperator(wrong)
