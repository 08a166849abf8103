"""The router: exact where it can be, else by products, else an estimate that says so.

Would catch: a block counted twice or not at all when methods are mixed, an estimate sold as
exact, and a relative flatness that drops the activations' second derivatives.
"""

from __future__ import annotations

import pytest
import torch
from curvature_cases import CASES
from dense_reference import dense_blocks, dense_relative_flatness
from torch import nn

from invariance.core._errors import MeasureError, UsageError
from invariance.curvature import hessian_diagonal, hessian_trace
from invariance.curvature.exact._flatness import layer_relative_flatness

MIXED = ("attention", "tied", "layer-norm")


def dense(case):
    model, x, y = case.build()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return model, x, y, dense_blocks(model, x, y, case.reference_loss)


@pytest.mark.parametrize("case", [c for c in CASES if c.architecture in MIXED], ids=lambda c: c.id)
def test_networks_outside_the_sweep_are_exact_by_products(case):
    model, x, y, blocks = dense(case)
    trace = hessian_trace(model, x, y, loss=case.loss)
    diagonal = hessian_diagonal(model, x, y, loss=case.loss)
    assert trace.exact
    assert diagonal.exact
    assert not diagonal.gauss_newton
    assert "products" in trace.method
    assert "for '" in trace.method  # it says for which parameter, and why
    assert list(trace.parts) == [name for name, _ in model.named_parameters()]
    for name, value in trace.parts.items():
        block = blocks[name, name]
        assert value == pytest.approx(block.trace().item(), rel=1e-9, abs=1e-12)
        torch.testing.assert_close(diagonal[name].flatten(), block.diagonal())
    assert float(trace) == pytest.approx(diagonal.trace, rel=1e-9)


def test_an_estimate_says_so_and_covers_the_truth():
    case = next(c for c in CASES if c.id == "attention-cross-entropy")
    model, x, y, blocks = dense(case)
    truth = sum(blocks[name, name].trace().item() for name, _ in model.named_parameters())
    found = hessian_trace(model, x, y, max_products=0, budget=16)
    assert not found.exact
    assert 0 < found.stderr < abs(truth)
    assert abs(float(found) - truth) < 5 * found.stderr
    assert float(found) != pytest.approx(truth, rel=1e-9)
    # The head is linear: its blocks stay exact whatever happens to the rest.
    for name in ("head.weight", "head.bias"):
        assert found.parts[name] == pytest.approx(blocks[name, name].trace().item(), rel=1e-10)
    again = hessian_trace(model, x, y, max_products=0, budget=16)
    other = hessian_trace(model, x, y, max_products=0, budget=16, seed=1)
    assert float(again) == float(found) != float(other)
    forced = hessian_trace(model, x, y, method="exact", max_products=0)
    assert forced.exact
    assert float(forced) == pytest.approx(truth, rel=1e-9)
    assert not hessian_trace(model, x, y, method="estimate", budget=16).exact


def test_an_estimated_diagonal_is_unbiased_within_its_errors():
    case = next(c for c in CASES if c.id == "attention-cross-entropy")
    model, x, y, blocks = dense(case)
    found = hessian_diagonal(model, x, y, max_products=0, budget=400)
    assert not found.exact
    deviations = torch.cat(
        [
            ((found[name].flatten() - blocks[name, name].diagonal()) / found.stderr[name].flatten())
            for name in ("qkv.weight", "qkv.bias", "norm.weight")
        ]
    )
    deviations = deviations[deviations.isfinite()]
    assert deviations.abs().max() < 6
    assert 0.5 < deviations.std() < 1.6
    assert not found.stderr["head.bias"].any()


@pytest.mark.parametrize("architecture", ["layer-norm", "attention", "tanh", "conv-max-pool"])
def test_relative_flatness_of_any_layer(architecture):
    case = next(c for c in CASES if c.id == f"{architecture}-cross-entropy")
    model, x, y, blocks = dense(case)
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    found = layer_relative_flatness(model, x, y, layers=layers)
    for value, layer in zip(found, layers, strict=True):
        block = blocks[f"{layer}.weight", f"{layer}.weight"]
        expected = dense_relative_flatness(model.get_submodule(layer), block)
        assert value == pytest.approx(expected, rel=1e-9)
    if architecture == "attention":
        with pytest.raises(MeasureError, match=r"'qkv'.*max_products"):
            layer_relative_flatness(model, x, y, layers=layers, max_products=3)


def test_unknown_method():
    model, x, y = CASES[0].build()
    with pytest.raises(UsageError, match="estimate"):
        hessian_trace(model, x, y, method="hutch")
