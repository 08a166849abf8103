"""Trace and norm estimators, deterministic part: identities that hold for every draw.

Bug classes: a leave-one-out basis that still contains the left-out probe; a crash or a bias
on matrices of low rank and with zero rows; parts that do not add up; a standard error that
is not that of the mean. How good the estimates are is tested in test_curvature_quality.
"""

from __future__ import annotations

import math

import pytest
import torch
from curvature_cases import Case, dense_hessian
from torch import nn

from invariance.core._errors import MeasureError, UsageError
from invariance.curvature import GGNOperator, HessianOperator, hessian_norm, hessian_trace_estimate
from invariance.curvature.estimates._interval import standard_error
from invariance.curvature.estimates._probes import blocks_of_probes, random_normals, random_signs

ESTIMATORS = ["hutchinson", "hutchpp", "xtrace"]


def low_rank_operator(rank=4, dim=24):
    """Linear regression on few rows: H = 2 X^T X / n has rank n."""
    draws = torch.Generator().manual_seed(2)
    x = torch.randn(rank, dim, generator=draws, dtype=torch.float64)
    y = torch.randn(rank, 1, generator=draws, dtype=torch.float64)
    model = nn.Linear(dim, 1, bias=False).double()
    return HessianOperator(model, x, y, loss="mse"), 2 * x.T @ x / rank


def test_xtrace_equals_the_naive_leave_one_out_estimator():
    case = Case("tanh", "cross-entropy")
    model, x, y = case.build()
    operator = HessianOperator(model, x, y)
    a, d, m = dense_hessian(case), operator.shape[0], 8
    omega = torch.cat([*blocks_of_probes(operator, m, 3, random_normals, "xtrace")]).T
    samples = []
    for i in range(m):
        others = [j for j in range(m) if j != i]
        q, _ = torch.linalg.qr(a @ omega[:, others])
        rest = omega[:, i] - q @ (q.T @ omega[:, i])
        tail = (rest @ a @ rest) * (d - (m - 1)) / (rest @ rest)
        samples.append((q.T @ a @ q).trace() + tail)
    naive = torch.stack(samples)
    found = hessian_trace_estimate(operator, estimator="xtrace", budget=2 * m, seed=3)
    assert float(found) == pytest.approx(float(naive.mean()), rel=1e-9)
    assert found.stderr > float(naive.std()) / math.sqrt(m)  # the samples share their probes


def test_hutchinson_is_the_mean_of_its_quadratic_forms():
    case = Case("relu", "mse")
    model, x, y = case.build()
    operator = HessianOperator(model, x, y, loss="mse")
    probes = torch.cat([*blocks_of_probes(operator, 20, 0, random_signs, "hutchinson")])
    forms = (probes * (probes @ dense_hessian(case))).sum(1)
    found = hessian_trace_estimate(operator, estimator="hutchinson", budget=20)
    assert float(found) == pytest.approx(float(forms.mean()), rel=1e-12)
    assert found.stderr == pytest.approx(float(standard_error(forms)), rel=1e-12)
    assert found.stderr > float(forms.std()) / math.sqrt(20)  # Student's quantile, and skewness


@pytest.mark.parametrize("estimator", ["hutchpp", "xtrace"])
def test_a_matrix_of_low_rank_is_measured_exactly(estimator):
    operator, dense = low_rank_operator()
    found = hessian_trace_estimate(operator, estimator=estimator, budget=18)
    assert float(found) == pytest.approx(float(dense.trace()), rel=1e-12)
    assert found.stderr < 1e-10


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_zero_matrices_and_zero_rows_do_not_crash(estimator):
    x = torch.zeros(3, 24, dtype=torch.float64)
    zero = HessianOperator(nn.Linear(24, 1, bias=False).double(), x, x[:, :1], loss="mse")
    found = hessian_trace_estimate(zero, estimator=estimator, budget=12)
    assert float(found) == 0.0
    assert found.stderr == 0.0
    for name in ("dead-unit", "unused-layer"):
        model, x, y = Case(name, "cross-entropy").build()
        found = hessian_trace_estimate(model, x, y, estimator=estimator, budget=24)
        assert math.isfinite(float(found))
        assert math.isfinite(found.stderr)
    assert found.parts["spare.weight"] == 0.0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_parts_add_up_and_belong_to_their_blocks(estimator):
    case = Case("conv-max-pool", "cross-entropy")
    model, x, y = case.build()
    found = hessian_trace_estimate(model, x, y, estimator=estimator, budget=36)
    assert math.fsum(found.parts.values()) == pytest.approx(float(found), rel=1e-12)
    operator = HessianOperator(model, x, y)
    diagonal = dense_hessian(case).diagonal()
    for name, (start, stop) in operator.space.blocks().items():
        error = abs(found.parts[name] - float(diagonal[start:stop].sum()))
        assert error <= 6 * found.detail["part_stderr"][name] + 1e-12


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_budget_of_the_dimension_buys_the_exact_trace(estimator):
    case = Case("tanh", "log-cosh")
    model, x, y = case.build()
    dense = dense_hessian(case)
    found = hessian_trace_estimate(
        model, x, y, loss=case.loss, estimator=estimator, budget=len(dense)
    )
    assert found.exact
    assert float(found) == pytest.approx(float(dense.trace()), rel=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_budget_is_kept_and_counted(estimator):
    model, x, y = Case("conv-max-pool", "cross-entropy").build()
    operator = HessianOperator(model, x, y)
    found = hessian_trace_estimate(operator, estimator=estimator, budget=31)
    assert operator.products == found.iterations
    assert found.iterations <= 31


def test_an_early_stop_needs_enough_probes_and_meets_its_error():
    model, x, y = Case("conv-max-pool", "cross-entropy").build()
    loose = hessian_trace_estimate(
        model, x, y, estimator="hutchinson", budget=64, relative_error=0.9
    )
    assert loose.iterations == 16  # two lucky probes are not enough
    tight = hessian_trace_estimate(
        model, x, y, estimator="hutchinson", budget=64, relative_error=1e-9
    )
    assert tight.iterations == 64


def test_other_matrices_and_choices_of_parameters():
    model, x, y = Case("relu", "cross-entropy").build()
    dense = GGNOperator(model, x, y, parameters=["2"]).to_dense()
    found = hessian_trace_estimate(model, x, y, matrix="ggn", parameters=["2"], budget=10**4)
    assert float(found) == pytest.approx(float(dense.trace()), rel=1e-12)
    assert set(found.parts) == {"2.weight", "2.bias"}


def test_bad_requests_are_refused():
    model, x, y = Case("relu", "cross-entropy").build()
    with pytest.raises(MeasureError, match="budget of at least 4"):
        hessian_trace_estimate(model, x, y, budget=3)
    with pytest.raises(UsageError, match="xtrace"):
        hessian_trace_estimate(model, x, y, estimator="hutch")
    with pytest.raises(MeasureError, match="relative_error"):
        hessian_trace_estimate(model, x, y, estimator="xtrace", relative_error=0.1)


@pytest.mark.parametrize("loss_name", ["cross-entropy", "weighted", "mse"])
@pytest.mark.parametrize("name", ["relu", "tanh", "tied", "batch-norm"])
def test_the_frobenius_norm_is_exact_for_small_networks(name, loss_name):
    case = Case(name, loss_name)
    model, x, y = case.build()
    found = hessian_norm(model, x, y, loss=case.loss)
    assert found.exact
    assert float(found) == pytest.approx(float(dense_hessian(case).norm()), rel=1e-10)


def test_the_estimated_norm_splits_by_rows_and_is_exact_at_low_rank():
    operator, dense = low_rank_operator()
    found = hessian_norm(operator, exact=False, budget=18)
    assert not found.exact
    assert float(found) == pytest.approx(float(dense.norm()), rel=1e-10)
    case = Case("conv-max-pool", "cross-entropy")
    model, x, y = case.build()
    found = hessian_norm(model, x, y, exact=False, budget=48)
    truth = dense_hessian(case)
    assert abs(float(found) - float(truth.norm())) <= 5 * found.stderr
    assert math.fsum(found.detail["squared_rows"].values()) == pytest.approx(float(found) ** 2)
    with pytest.raises(MeasureError, match="budget"):
        hessian_norm(model, x, y, exact=False, budget=3)
