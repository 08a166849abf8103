"""Products with the Hessian, GGN and Fisher matrices against closed forms and dense float64.

Bug classes: wrong weight of a ragged last batch; a lost second-derivative term; wrong order
or shape of parameters; frozen, unused and shared parameters; a model left changed.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from curvature_cases import CASES, Case, dense_hessian, dense_jacobian
from torch import nn
from torch.nn import functional as F

from invariance.core._errors import DataError, MeasureError, UsageError
from invariance.curvature import (
    EmpiricalFisherOperator,
    FisherOperator,
    GGNOperator,
    HessianOperator,
)

TIGHT = {"rtol": 0.0, "atol": 1e-12}


def test_linear_regression_in_closed_form():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(11, 3, generator=draws, dtype=torch.float64)
    y = torch.randn(11, 2, generator=draws, dtype=torch.float64)
    operator = HessianOperator(nn.Linear(3, 2).double(), x, y, loss="mse")
    # L = sum |W x + b - y|^2 / (n K): the Hessian is 2 / (n K) I_K (x) [x, 1][x, 1]^T.
    xx, sums = x.T @ x, x.sum(0)
    eye = torch.eye(2, dtype=torch.float64)
    expected = torch.zeros(8, 8, dtype=torch.float64)
    expected[:6, :6] = torch.kron(eye, xx)
    expected[:6, 6:] = torch.kron(eye, sums[:, None])
    expected[6:, :6] = expected[:6, 6:].T
    expected[6:, 6:] = 11 * eye
    torch.testing.assert_close(operator.to_dense(), expected * 2 / 22, **TIGHT)


@pytest.mark.parametrize("classes", [2, 4])
def test_logistic_and_softmax_regression_in_closed_form(classes):
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(10, 3, generator=draws, dtype=torch.float64)
    y = torch.randint(0, classes, (10,), generator=draws)
    model = nn.Linear(3, classes, bias=False).double()
    p = (x @ model.weight.detach().T).softmax(1)
    s = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = torch.einsum("nij,na,nb->iajb", s, x, x).reshape(3 * classes, -1) / 10
    for operator in (HessianOperator, GGNOperator, FisherOperator):
        torch.testing.assert_close(operator(model, x, y).to_dense(), expected, **TIGHT)


def test_deep_linear_cross_block_in_closed_form():
    # f = u w x with scalars: L = mean (u w x - y)^2, so d2L/du dw = mean(4 u w x^2 - 2 x y).
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    w, u = (p.item() for p in model.parameters())
    x = torch.tensor([[1.0], [2.0], [-1.5]], dtype=torch.float64)
    y = torch.tensor([[0.5], [-1.0], [2.0]], dtype=torch.float64)
    xx, xy = float((x * x).mean()), float((x * y).mean())
    cross = 4 * u * w * xx - 2 * xy
    expected = torch.tensor([[2 * u * u * xx, cross], [cross, 2 * w * w * xx]], dtype=torch.float64)
    found = HessianOperator(model, x, y, loss="mse").to_dense()
    torch.testing.assert_close(found, expected, **TIGHT)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_engine_agrees_with_the_dense_hessian(case):
    model, x, y = case.build()
    expected = dense_hessian(case)
    engines = ["auto", "graph"] + ["dual"] * (case.loss_name in ("cross-entropy", "log-cosh"))
    for mode in engines:
        operator = HessianOperator(model, x, y, loss=case.loss, mode=mode)
        torch.testing.assert_close(operator.to_dense(), expected, rtol=1e-10, atol=1e-12)
        vector = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
        torch.testing.assert_close(
            operator.matvec(vector), expected @ vector, rtol=1e-10, atol=1e-12
        )


def _outer_reference(case: Case, matrix: str) -> torch.Tensor:
    """J^T B J row by row in float64, with B by autograd of PyTorch's own loss."""
    jacobian, outputs, y = dense_jacobian(case)
    n, k, d = jacobian.shape
    weights = _weights(case, y)
    total = torch.zeros(d, d, dtype=torch.float64)
    for row in range(n):
        if weights[row] == 0:
            continue

        def value(f, label, row=row):
            # One row's share of the batch loss: torch divides by the batch's weights.
            return case.reference_loss(f[None], label[None]) * weights[row]

        f = outputs[row]
        if matrix == "ggn":
            b = torch.autograd.functional.hessian(lambda g, row=row: value(g, y[row]), f)
        elif matrix == "empirical_fisher":
            c = torch.autograd.functional.jacobian(lambda g, row=row: value(g, y[row]), f)
            b = c[:, None] * c[None, :] / weights[row]
        else:
            b = torch.zeros(k, k, dtype=torch.float64)
            for label, probability in enumerate(f.softmax(0)):
                c = torch.autograd.functional.jacobian(
                    lambda g, label=label: F.cross_entropy(g[None], torch.tensor([label])), f
                )
                b += weights[row] * probability * c[:, None] * c[None, :]
        total += jacobian[row].T @ b @ jacobian[row]
    return total / weights.sum()


def _weights(case: Case, y: torch.Tensor) -> torch.Tensor:
    if case.loss_name == "weighted":
        return torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)[y]
    if case.loss_name == "smoothed-ignoring":
        return (y != 1).double()
    return torch.ones(len(y), dtype=torch.float64)


OUTER = [
    (case, matrix)
    for case in CASES
    for matrix in ("ggn", "fisher", "empirical_fisher")
    if case.architecture in ("relu", "tanh", "conv-max-pool", "tied", "unused-layer")
    and (matrix != "fisher" or case.loss_name not in ("mse", "log-cosh"))
]


@pytest.mark.parametrize(("case", "matrix"), OUTER, ids=lambda v: getattr(v, "id", v))
def test_gauss_newton_and_fisher_agree_with_the_definition(case, matrix):
    model, x, y = case.build()
    build = {
        "ggn": GGNOperator,
        "fisher": FisherOperator,
        "empirical_fisher": EmpiricalFisherOperator,
    }[matrix]
    expected = _outer_reference(case, matrix)
    assert float(expected.abs().max()) > 1e-4
    for mode in ("auto", "graph", "dual"):
        operator = build(model, x, y, loss=case.loss, mode=mode)
        torch.testing.assert_close(operator.to_dense(), expected, rtol=1e-10, atol=1e-12)


def test_the_fisher_matrix_of_a_loss_without_likelihood_is_refused():
    model, x, y = Case("relu", "log-cosh").build()
    operator = FisherOperator(model, x, y, loss=Case("relu", "log-cosh").loss)
    with pytest.raises(MeasureError, match="names no predictive distribution"):
        operator.to_dense()


@pytest.mark.parametrize("mode", ["auto", "graph", "dual"])
@pytest.mark.parametrize("name", ["relu", "conv-max-pool"])
def test_chunks_forced_by_a_small_budget_change_nothing(mode, name):
    model, x, y = Case(name, "weighted").build()
    loss = Case(name, "weighted").loss
    whole = HessianOperator(model, x, y, loss=loss).to_dense()
    tiny = HessianOperator(model, x, y, loss=loss, mode=mode, memory_budget=4000)
    torch.testing.assert_close(tiny.to_dense(), whole, **TIGHT)


@pytest.mark.parametrize("loss_name", ["cross-entropy", "weighted", "smoothed-ignoring", "mse"])
@pytest.mark.parametrize("mode", ["auto", "graph", "dual"])
def test_ragged_batches_weigh_exactly_what_their_rows_weigh(loss_name, mode):
    case = Case("relu", loss_name)
    model, x, y = case.build()
    whole = HessianOperator(model, x, y, loss=case.loss).to_dense()
    pieces = [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])]
    found = HessianOperator(model, pieces, loss=case.loss, mode=mode).to_dense()
    torch.testing.assert_close(found, whole, **TIGHT)


@pytest.mark.parametrize("chosen", [["2"], ["0.bias", "4.weight"], ["4.bias"]])
@pytest.mark.parametrize("mode", ["auto", "graph"])
def test_a_choice_of_parameters_gives_the_diagonal_block(chosen, mode):
    model, x, y = Case("relu", "cross-entropy").build()
    full = HessianOperator(model, x, y)
    dense, spans = full.to_dense(), full.space.blocks()
    part = HessianOperator(model, x, y, parameters=chosen, mode=mode)
    index = torch.cat([torch.arange(*spans[name]) for name in part.names])
    torch.testing.assert_close(part.to_dense(), dense[index][:, index], **TIGHT)


def test_a_shared_parameter_counts_once_and_answers_to_both_names():
    model, x, y = Case("tied", "cross-entropy").build()
    first = HessianOperator(model, x, y, parameters=["first.weight"])
    second = HessianOperator(model, x, y, parameters=["second.weight"])
    assert first.names == second.names == ("first.weight",)
    torch.testing.assert_close(first.to_dense(), second.to_dense(), **TIGHT)


def test_frozen_parameters_are_left_out_unless_named():
    model, x, y = Case("frozen-weight", "cross-entropy").build()
    default = HessianOperator(model, x, y)
    assert "0.weight" not in default.names
    assert "0.weight" in default.method
    named = HessianOperator(model, x, y, parameters=["0.weight"])
    model[0].weight.requires_grad_(True)
    free = HessianOperator(model, x, y, parameters=["0.weight"])
    torch.testing.assert_close(named.to_dense(), free.to_dense(), **TIGHT)


def test_parameters_without_influence_have_zero_rows_and_are_named():
    model, x, y = Case("unused-layer", "cross-entropy").build()
    operator = HessianOperator(model, x, y)
    start, stop = operator.space.blocks()["spare.weight"]
    assert float(operator.to_dense()[start:stop].abs().max()) == 0.0
    assert operator.objective.unused == ("spare.weight", "spare.bias")
    assert "spare.weight" in operator.method


def test_scipy_view_and_matmat():
    case = Case("conv-max-pool", "cross-entropy")
    model, x, y = case.build()
    operator = HessianOperator(model, x, y)
    dense = operator.to_dense()
    columns = torch.linspace(-1, 1, 3 * len(dense), dtype=torch.float64).reshape(-1, 3)
    torch.testing.assert_close(operator @ columns, dense @ columns, **TIGHT)
    view = operator.to_scipy()
    assert view.shape == operator.shape
    np.testing.assert_allclose(view @ columns.numpy(), (dense @ columns).numpy(), atol=1e-12)
    np.testing.assert_allclose(
        view @ columns[:, 0].numpy(), (dense @ columns[:, 0]).numpy(), atol=1e-12
    )
    # LinearOperator forms the adjoint for solvers that want it: the matrix is symmetric.
    np.testing.assert_allclose(
        view.rmatvec(columns[:, 0].numpy()), (dense @ columns[:, 0]).numpy(), atol=1e-12
    )


def test_the_engine_can_be_chosen_by_measurement():
    model, x, y = Case("relu", "cross-entropy").build()
    operator = HessianOperator(model, x, y, mode="measure")
    assert "measured" in operator.method
    torch.testing.assert_close(
        operator.to_dense(), HessianOperator(model, x, y).to_dense(), **TIGHT
    )
    with pytest.raises(UsageError, match="graph"):
        HessianOperator(model, x, y, mode="grahp")


def test_a_float32_model_can_be_measured_in_float64():
    model, x, y = Case("tanh", "cross-entropy").build()
    single = copy.deepcopy(model).float()
    found = HessianOperator(single, x.float(), y, dtype=torch.float64)
    widened = copy.deepcopy(single).double()
    expected = HessianOperator(widened, x.float().double(), y).to_dense()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.to_dense(), expected, **TIGHT)
    assert next(single.parameters()).dtype == torch.float32


@pytest.mark.parametrize("name", ["relu", "conv-skip-batch-norm", "tied"])
def test_nothing_of_the_users_is_changed(name):
    model, x, y = Case(name, "cross-entropy").build()
    modules = list(model.modules())
    modules[-1].train()  # a mixed state that must survive as it is
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    HessianOperator(model, x, y).to_dense()
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.requires_grad and bool((p.grad == 3.0).all()) for p in model.parameters())


def test_later_training_does_not_move_an_operator():
    model, x, y = Case("relu", "cross-entropy").build()
    operator = HessianOperator(model, x, y, mode="graph")
    before = operator.to_dense()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    torch.testing.assert_close(operator.to_dense(), before, **TIGHT)


def test_bad_vectors_and_names_are_refused():
    model, x, y = Case("relu", "cross-entropy").build()
    operator = HessianOperator(model, x, y)
    with pytest.raises(DataError, match="Expected vectors with"):
        operator.matvec(torch.ones(3, dtype=torch.float64))
    with pytest.raises(UsageError, match=r"0\.weight"):
        HessianOperator(model, x, y, parameters=["0.wieght"])
    with pytest.raises(MeasureError, match="chain"):
        HessianOperator(*Case("tied", "mse").build(), loss="mse", mode="chain")
