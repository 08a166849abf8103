"""Single products as functions: by name, by flat vector, and refused when they do not fit."""

from __future__ import annotations

import pytest
import torch
from curvature_cases import Case, dense_hessian

from invariance.core._errors import DataError
from invariance.curvature import (
    EmpiricalFisherOperator,
    FisherOperator,
    GGNOperator,
    HessianOperator,
    fisher_vector_product,
    ggn_vector_product,
    hessian_vector_product,
)


@pytest.mark.parametrize("name", ["relu", "tied", "conv-max-pool"])
def test_products_by_flat_vector_and_by_name_agree(name):
    case = Case(name, "weighted")
    model, x, y = case.build()
    operator = HessianOperator(model, x, y, loss=case.loss)
    vector = torch.linspace(-1, 1, operator.shape[0], dtype=torch.float64)
    flat = hessian_vector_product(model, x, y, vector, loss=case.loss)
    named = hessian_vector_product(model, x, y, operator.split(vector), loss=case.loss)
    joined = torch.cat([flat[key].flatten() for key in operator.names])
    expected = dense_hessian(case) @ vector
    torch.testing.assert_close(joined, expected, rtol=1e-10, atol=1e-12)
    for key, parameter in model.named_parameters():
        assert flat[key].shape == parameter.shape
        assert torch.equal(flat[key], named[key])


def test_the_three_outer_products():
    model, x, y = Case("tanh", "cross-entropy").build()
    vector = torch.linspace(-1, 1, HessianOperator(model, x, y).shape[0], dtype=torch.float64)
    for function, operator in (
        (ggn_vector_product, GGNOperator),
        (fisher_vector_product, FisherOperator),
        (lambda *a: fisher_vector_product(*a, empirical=True), EmpiricalFisherOperator),
    ):
        found = function(model, x, y, vector)
        dense = operator(model, x, y).to_dense()
        joined = torch.cat([part.flatten() for part in found.values()])
        torch.testing.assert_close(joined, dense @ vector, rtol=1e-10, atol=1e-12)


def test_absent_names_are_zero_and_wrong_ones_are_refused():
    model, x, y = Case("relu", "cross-entropy").build()
    bias = torch.ones(6, dtype=torch.float64)
    found = hessian_vector_product(model, x, y, {"0.bias": bias})
    dense = dense_hessian(Case("relu", "cross-entropy"))
    torch.testing.assert_close(
        torch.cat([part.flatten() for part in found.values()]),
        dense[:, 24:30] @ bias,
        rtol=1e-10,
        atol=1e-12,
    )
    with pytest.raises(DataError, match="nothere"):
        hessian_vector_product(model, x, y, {"nothere": bias})
    with pytest.raises(DataError, match="shape"):
        hessian_vector_product(model, x, y, {"0.bias": bias[:2]})
