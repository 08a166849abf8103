"""Catches: a closed form that does not interpolate, is not flattest, or a bound that is not one."""

import math

import pytest
import sympy
import torch
from parity_reference import dense_hessian

from invariance import measures
from invariance.core._errors import UsageError
from invariance.papers.wen.flat_not_general import (
    build,
    construct,
    draw_problem,
    exact_trace,
    isolable,
    minimum_trace,
    published_constants,
    realise,
    sharpness,
)
from invariance.papers.wen.flat_not_general._published_constants import complete_training_set

SMALL = draw_problem(1, dimension=6, n_train=12, n_test=400)


@pytest.mark.parametrize(
    ("architecture", "bias"), [("plain", False), ("plain", True), ("layer", True), ("batch", True)]
)
@pytest.mark.parametrize("floor", [0.05, 40.0])
def test_closed_form_traces_are_those_of_the_dense_hessian(architecture, bias, floor):
    model = build(
        architecture, dimension=6, width=9, bias=bias, floor=floor, x_train=SMALL.x_train, seed=2
    )
    dense = dense_hessian(model, SMALL.x_train, SMALL.y_train)
    found = sharpness(model, SMALL.x_train, SMALL.y_train)
    assert found.trace == pytest.approx(float(dense.trace()), rel=1e-12)
    torch.testing.assert_close(found.outputs, model(SMALL.x_train)[:, 0].detach())
    squares = 0.0
    for output in model(SMALL.x_train)[:, 0]:
        parts = torch.autograd.grad(output, list(model.parameters()), retain_graph=True)
        squares += sum(float(part.square().sum()) for part in parts)
    assert found.gauss_newton == pytest.approx(2 * squares / 12, rel=1e-12)
    if architecture == "plain":
        package = measures.hessian_trace(model, SMALL.x_train, SMALL.y_train[:, None], loss="mse")
        assert found.trace == pytest.approx(float(package), rel=1e-12)


@pytest.mark.parametrize(
    ("architecture", "bias", "kind", "least"),
    [
        ("plain", False, "generaliser", 4 * math.sqrt(6)),
        ("plain", True, "generaliser", 4 * math.sqrt(7)),
        ("plain", True, "memoriser", 4 * math.sqrt(7)),
        ("layer", True, "generaliser", 2.0),
        ("layer", True, "memoriser", 2.0),
        ("batch", True, "memoriser", 4 * math.sqrt(12)),
    ],
)
def test_constructions_interpolate_with_the_least_trace(architecture, bias, kind, least):
    made = construct(kind, SMALL.x_train, SMALL.y_train, architecture=architecture, bias=bias)
    model = realise(made, SMALL.x_train, width=14)
    assert made.outputs_are(SMALL.x_train, SMALL.y_train)
    torch.testing.assert_close(model(SMALL.x_train)[:, 0], SMALL.y_train, rtol=0, atol=1e-13)
    dense = dense_hessian(model, SMALL.x_train, SMALL.y_train)
    assert float(dense.trace()) == pytest.approx(least, rel=1e-12)
    if architecture != "batch":
        features = 6 + bias
        assert sympy.simplify(exact_trace(made, SMALL.x_train) - sympy.nsimplify(
            minimum_trace(architecture, features=features))) == 0  # fmt: skip
        assert float(minimum_trace(architecture, features=features)) == pytest.approx(least)
    seen = {tuple(row) for row in SMALL.x_train.tolist()}
    new = torch.tensor([tuple(row) not in seen for row in SMALL.x_test.tolist()])
    outputs = model(SMALL.x_test)[:, 0].detach()
    if kind == "memoriser":
        assert bool((outputs[new] == 0).all()) and int(new.sum()) > 100
    else:
        torch.testing.assert_close(outputs, SMALL.y_test, rtol=0, atol=1e-12)
    assert not made.outputs_are(SMALL.x_train, -SMALL.y_train)


def test_any_other_size_is_sharper():
    for kind in ("memoriser", "generaliser"):
        made = construct(kind, SMALL.x_train, SMALL.y_train, architecture="plain", bias=True)
        for size in (7**0.25 * 0.9, 7**0.25 * 1.1):
            model = realise(made, SMALL.x_train, size=size)
            found = sharpness(model, SMALL.x_train, SMALL.y_train).trace
            assert found > 4 * math.sqrt(7) * (1 + 1e-3)


def test_the_bound_holds_everywhere():
    for seed in range(20):
        for bias, features in ((False, 6), (True, 7)):
            model = build("plain", dimension=6, width=5, bias=bias, seed=seed)
            found = sharpness(model, SMALL.x_train, SMALL.y_train)
            least = 4 * math.sqrt(features) * float(found.outputs.abs().mean())
            assert found.gauss_newton >= least * (1 - 1e-12)


def test_the_inequalities_are_identities_plus_squares():
    h, k, a, b, f, r = sympy.symbols("h k a b F r", positive=True)
    means = h**2 + f * a**2 - 2 * sympy.sqrt(f) * h * a
    assert sympy.simplify(means - (h - sympy.sqrt(f) * a) ** 2) == 0
    cauchy = (h**2 + k**2) * (a**2 + b**2) - (h * a + k * b) ** 2
    assert sympy.expand(cauchy - (h * b - k * a) ** 2) == 0
    per_sample = r**2 + f / r**2
    best = f ** sympy.Rational(1, 4)
    assert sympy.simplify(sympy.diff(per_sample, r).subs(r, best)) == 0
    assert sympy.simplify(sympy.diff(per_sample, r, 2).subs(r, best)) == 8
    assert sympy.simplify(2 * per_sample.subs(r, best) - 4 * sympy.sqrt(f)) == 0


def test_curvature_of_the_normalised_output():
    units = sympy.symbols("h1:4", positive=True)
    weights = sympy.symbols("a1:4", real=True)
    square = sum(u**2 for u in units)
    output = sum(u * a for u, a in zip(units, weights, strict=True)) / sympy.sqrt(square)
    laplacian = sum(sympy.diff(output, u, 2) for u in units)
    assert sympy.simplify(laplacian - (1 - 3) * output / square) == 0


def test_the_quadrant_lemma_of_batch_norm():
    # b + u, b + v, b - v, b - u: the alternating sum of relus is at most their norm.
    rng = torch.Generator().manual_seed(0)
    b, u, v = torch.randn(3, 20_000, generator=rng, dtype=torch.float64)
    values = torch.stack([b + u, b + v, b - v, b - u]).relu()
    alternating = values[0] - values[1] - values[2] + values[3]
    assert bool((alternating.abs() <= values.norm(dim=0) + 1e-12).all())
    assert bool((alternating.abs() > 0.999 * values.norm(dim=0)).any())


def test_batch_norm_tends_to_eight_on_a_complete_training_set():
    x, y = complete_training_set(5)
    assert torch.linalg.matrix_rank(x[::4, 2:] - x[0, 2:]) == 3
    made = construct("generaliser", x, y, architecture="batch", bias=True)
    traces = [sharpness(realise(made, x, size=size), x, y).trace for size in (1.0, 10.0, 1e3, 1e6)]
    assert traces == sorted(traces, reverse=True)
    assert traces[-1] == pytest.approx(8.0, rel=1e-9)
    assert minimum_trace("batch", features=6) == 8


def test_who_can_be_isolated():
    corner = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert isolable(corner, bias=True) == [True] * 4
    # Without a bias (1, 1) needs w.(1,-1) <= 0, w.(-1,1) <= 0, w.(-1,-1) <= 0: w = (1, 1) does.
    assert isolable(corner, bias=False) == [True] * 4
    many = draw_problem(0, dimension=4, n_train=16, n_test=1)
    assert isolable(many.x_train, bias=True) == [True] * 16
    paper = draw_problem(0, dimension=30, n_train=100, n_test=1)
    assert isolable(paper.x_train, bias=False) == [False] * 100
    with pytest.raises(UsageError, match="no unit isolates"):
        construct("memoriser", corner, corner[:, 0], architecture="plain", bias=False)


def test_which_published_constants_survive():
    checked = {one.where: one for one in published_constants(dimension=8, n_train=20)}
    failed = {where for where, one in checked.items() if not one.survives}
    assert len(checked) == 13
    for part in ("equation (5)", "A.1, equation (16)", "Lemma A.3", "Lemma A.1: weights",
                 "Lemma A.13", "Theorem A.2", "Theorem 5.1", "zero-one"):  # fmt: skip
        assert any(part in where for where in failed), part
    assert len(failed) == 8
    wrong = next(one for one in checked.values() if "equation (5)" in one.where)
    root = math.sqrt(8**2 + 1)
    assert wrong.found == pytest.approx(2 * (root + 9 / root), rel=1e-12)
    assert all(one.correct for one in checked.values() if not one.survives)


def test_any_layer_normalised_network_flattens_as_its_first_layer_grows():
    model = build("layer", dimension=6, width=9, seed=2)
    before = model(SMALL.x_train).detach()
    first = sharpness(model, SMALL.x_train, SMALL.y_train).gauss_newton
    with torch.no_grad():
        model.hidden.weight.mul_(1e6)
        model.hidden.bias.mul_(1e6)
    torch.testing.assert_close(model(SMALL.x_train), before)
    assert first > 2.01
    assert sharpness(model, SMALL.x_train, SMALL.y_train).gauss_newton == pytest.approx(2, abs=1e-9)
