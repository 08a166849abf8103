"""Stochastic Lanczos quadrature against the moments that it must reproduce exactly.

Bug classes: weights that are not the start vector's; copies of eigenvalues in float32; a
process that ran out of directions and returns noise for the rest.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curvature_cases import Case, dense_hessian
from torch import nn

from invariance.core._errors import MeasureError
from invariance.curvature import HessianOperator, spectral_density


def test_each_probe_reproduces_its_moments_exactly():
    case = Case("tanh", "cross-entropy")
    model, x, y = case.build()
    operator = HessianOperator(model, x, y)
    start = operator.random_vectors(3, seed=4, stream="density")
    unit = start / start.norm(dim=1, keepdim=True)
    found = spectral_density(operator, probes=3, steps=6, seed=4)
    np.testing.assert_allclose(found.weights.sum(1), 1.0, atol=1e-12)
    power, dense = unit, dense_hessian(case)
    for order in range(1, 12):  # a quadrature with 6 nodes is exact up to degree 11
        power = power @ dense
        expected = (unit * power).sum(1).numpy()
        np.testing.assert_allclose(
            (found.weights * found.nodes**order).sum(1), expected, rtol=1e-8, atol=1e-14
        )


def test_the_density_integrates_to_one_and_to_the_mean_eigenvalue():
    case = Case("conv-max-pool", "cross-entropy")
    model, x, y = case.build()
    found = spectral_density(model, x, y, probes=6, steps=30)
    step = found.grid[1] - found.grid[0]
    assert found.density.sum() * step == pytest.approx(1.0, abs=1e-3)
    mean = found.moment(1)
    assert (found.density * found.grid).sum() * step == pytest.approx(float(mean), abs=1e-3)
    truth = float(dense_hessian(case).diagonal().mean())
    assert abs(float(mean) - truth) <= 5 * mean.stderr
    assert (found.stderr >= 0).all()
    assert found.stderr.max() > 0


def test_float32_returns_no_copies_of_the_top_eigenvalue():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(60, 40, generator=draws)
    x[:, 0] *= 30  # one eigenvalue far above the rest converges at once, the classic trap
    model = nn.Linear(40, 1, bias=False)
    found = spectral_density(model, x, x[:, :1], loss="mse", probes=2, steps=40)
    top = found.nodes.max(1)
    for probe in range(2):
        assert (found.nodes[probe] > 0.5 * top[probe]).sum() == 1


def test_an_invariant_subspace_ends_a_process_cleanly():
    # Two distinct eigenvalues only: every Krylov space has dimension two.
    x = torch.diag(torch.tensor([2.0, 2, 2, 1, 1, 1], dtype=torch.float64))
    model = nn.Linear(6, 1, bias=False).double()
    found = spectral_density(model, x, x[:, :1], loss="mse", probes=3, steps=6)
    live = found.weights > 1e-12
    values = found.nodes[live] * 3
    assert np.allclose(np.minimum(abs(values - 4), abs(values - 1)), 0, atol=1e-10)


def test_seeds_and_bad_requests():
    model, x, y = Case("relu", "cross-entropy").build()
    one, two = (spectral_density(model, x, y, probes=2, steps=5, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.nodes, two.nodes)
    with pytest.raises(MeasureError, match="probes >= 2"):
        spectral_density(model, x, y, probes=1)
    with pytest.raises(MeasureError, match="width"):
        spectral_density(model, x, y, width=0.0)
