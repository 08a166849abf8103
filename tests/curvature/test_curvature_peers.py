"""Two other libraries as oracles: independent code for the same matrices.

Skipped where they are not installed.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from curvature_cases import Case
from scipy.sparse.linalg import eigsh
from torch import nn

from invariance.curvature import (
    EmpiricalFisherOperator,
    GGNOperator,
    HessianOperator,
    hessian_eigenvalues,
    hessian_norm,
    hessian_trace_estimate,
)

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


def load(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


CASES = [
    Case(name, loss)
    for name in ("linear", "relu", "tanh", "conv-max-pool", "batch-norm", "residual-concat")
    for loss in ("cross-entropy", "mse")
]


def torch_loss(case):
    return nn.MSELoss() if case.loss_name == "mse" else nn.CrossEntropyLoss()


def splits(x, y):
    return [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])]


def dense(operator):
    return operator @ torch.eye(operator.shape[1], dtype=torch.float64)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_hessian_and_ggn_agree_with_curvlinops(case):
    peer = load("curvlinops")
    model, x, y = case.build()
    parameters = [p for p in model.parameters() if p.requires_grad]
    for build, theirs in (
        (HessianOperator, peer.HessianLinearOperator),
        (GGNOperator, peer.GGNLinearOperator),
    ):
        ours = build(model, splits(x, y), loss=case.loss).to_dense()
        other = theirs(model, torch_loss(case), parameters, splits(x, y))
        torch.testing.assert_close(ours, dense(other), rtol=1e-9, atol=1e-12)


def test_the_empirical_fisher_matrix_agrees_with_curvlinops():
    peer = load("curvlinops")
    model, x, y = Case("relu", "cross-entropy").build()
    other = peer.EFLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)])
    ours = EmpiricalFisherOperator(model, x, y).to_dense()
    torch.testing.assert_close(ours, dense(other), rtol=1e-9, atol=1e-12)


def test_eigenvalues_and_norm_agree_with_curvlinops_and_arpack():
    peer = load("curvlinops")
    model, x, y = Case("conv-max-pool", "cross-entropy").build()
    other = peer.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)]
    )
    top = eigsh(other.to_scipy(), k=3, which="LA", tol=1e-10, return_eigenvectors=False)[::-1]
    bottom = eigsh(other.to_scipy(), k=1, which="SA", tol=1e-10, return_eigenvectors=False)
    ours = hessian_eigenvalues(model, x, y, k=3, solver="lanczos", tolerance=1e-9)
    np.testing.assert_allclose(ours.values, top, rtol=1e-8)
    lowest = hessian_eigenvalues(model, x, y, which="smallest", solver="lanczos")
    assert float(lowest) == pytest.approx(float(bottom[0]), rel=1e-6)
    assert float(hessian_norm(model, x, y)) == pytest.approx(float(dense(other).norm()), rel=1e-9)


@pytest.mark.parametrize("loss_name", ["cross-entropy", "mse"])
@pytest.mark.parametrize("name", ["linear", "relu", "tanh", "relu-no-bias"])
def test_the_diagonal_agrees_with_backpack(name, loss_name):
    peer = load("backpack")
    from backpack.extensions import DiagHessian

    case = Case(name, loss_name)
    model, x, y = case.build()
    ours = HessianOperator(model, x, y, loss=case.loss)
    diagonal = ours.to_dense().diagonal()
    extended = peer.extend(nn.Sequential(model) if name == "linear" else model)
    criterion = peer.extend(torch_loss(case))
    with peer.backpack(DiagHessian()):
        criterion(extended(x), y).backward()
    theirs = torch.cat([p.diag_h.flatten() for p in model.parameters()])
    torch.testing.assert_close(diagonal, theirs, rtol=1e-9, atol=1e-12)
    trace = hessian_trace_estimate(ours, budget=10**4)
    assert float(trace) == pytest.approx(float(theirs.sum()), rel=1e-10)
