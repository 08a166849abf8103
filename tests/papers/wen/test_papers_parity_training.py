"""Catches: a compiled step that is not the method's step, and a log that is not the network's."""

import numpy as np
import pytest
import torch
from parity_reference import train_by_autograd

from invariance.core._errors import UsageError
from invariance.papers.wen.flat_not_general import (
    Phase,
    Recipe,
    build,
    draw_problem,
    sharpness,
    train_network,
)
from invariance.papers.wen.flat_not_general._measuring import measured
from invariance.papers.wen.flat_not_general._training import log_times, summary

PROBLEM = draw_problem(3, dimension=5, n_train=9, n_test=40)
PHASES = (Phase(2, 0.05, 0.1), Phase(1, 0.02, 0.3))


def recipe(architecture, bias, algorithm, **rest):
    given = {"floor": 0.05, "noise": 0.3, "weight_decay": 0.1, "trace_weight": 0.03} | rest
    given |= {"dtype": "float64", "log_points": 3}
    return Recipe(architecture, bias, 13, algorithm, PHASES, **given)


@pytest.mark.parametrize("algorithm", ["sam", "sgd", "label_noise", "gd", "trace"])
@pytest.mark.parametrize(
    ("architecture", "bias", "rest"),
    [
        ("plain", False, {}),
        ("plain", True, {"init_scale": 2.0}),
        ("layer", True, {}),
        ("layer", True, {"floor": 50.0}),  # below the floor the norm divides nothing
        ("batch", True, {}),
    ],
)
def test_every_step_is_that_of_autograd(architecture, bias, algorithm, rest):
    if architecture == "batch" and algorithm in ("trace", "label_noise"):
        with pytest.raises(UsageError, match="not written for architecture 'batch'"):
            recipe(architecture, bias, algorithm, **rest)
        return
    how = recipe(architecture, bias, algorithm, **rest)
    model, _ = train_network(how, PROBLEM, seed=1)
    expected = train_by_autograd(how, PROBLEM, seed=1)
    start = build(architecture, dimension=5, width=13, bias=bias, x_train=PROBLEM.x_train, seed=1)
    for (name, found), wanted, before in zip(
        model.named_parameters(), expected.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13, msg=name)
        assert not torch.allclose(found, before)


def test_the_first_layer_stays_on_its_sphere():
    how = recipe("layer", True, "sam", radius=3.0)
    model, facts = train_network(how, PROBLEM, seed=1)
    expected = train_by_autograd(how, PROBLEM, seed=1)
    for found, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)
    assert facts["log"]["norm"][-1] == pytest.approx(3.0, rel=1e-12)
    with pytest.raises(UsageError, match="one sample a step"):
        recipe("layer", True, "gd", radius=3.0)


def test_single_precision_is_near_and_repeats_itself():
    double, _ = train_network(recipe("plain", True, "sam"), PROBLEM, seed=1)
    how = Recipe("plain", True, 13, "sam", PHASES, log_points=3)
    single, log = train_network(how, PROBLEM, seed=1)
    again, same = train_network(how, PROBLEM, seed=1)
    other, _ = train_network(how, PROBLEM, seed=2)
    assert single.hidden.weight.dtype == torch.float32
    torch.testing.assert_close(
        single.hidden.weight.double(), double.hidden.weight, atol=1e-5, rtol=0
    )
    assert torch.equal(single.hidden.weight, again.hidden.weight)
    assert log == same
    assert not torch.equal(single.hidden.weight, other.hidden.weight)


def test_silent_units_rest_or_decay():
    how = recipe("plain", True, "gd")
    start = build("plain", dimension=5, width=13, seed=1)
    bias = start.hidden.bias.detach().clone()
    model, _ = train_network(how, PROBLEM, seed=1)
    weights = torch.cat([start.hidden.weight, start.hidden.bias[:, None]], 1).detach()
    x = torch.cat([PROBLEM.x_train, torch.ones(9, 1)], 1)
    silent = ~(x @ weights.T > 0).any(0)
    if silent.any():  # the seed may have none; then the next assertion is empty
        left = np.prod([(1 - phase.lr * 0.1) ** phase.epochs for phase in PHASES])
        torch.testing.assert_close(model.hidden.bias[silent], bias[silent] * left)
    # A unit that is silent by construction is left out of the loops and decays all the same.
    torch.testing.assert_close(
        train_by_autograd(how, PROBLEM, seed=1).hidden.bias, model.hidden.bias, rtol=1e-12, atol=0
    )


def test_the_log_is_the_network_s():
    model, facts = train_network(recipe("layer", True, "sam"), PROBLEM, seed=4)
    log = facts["log"]
    assert log["epoch"] == [0, 1, 2, 3]
    assert {len(values) for values in log.values()} == {4}
    found = summary(model, PROBLEM)
    for name, value in found.items():
        assert log[name][-1] == value
    with torch.no_grad():
        right = (model(PROBLEM.x_test)[:, 0] * PROBLEM.y_test > 0).double().mean()
    assert found["test_accuracy"] == float(right)
    assert found["trace"] == sharpness(model, PROBLEM.x_train, PROBLEM.y_train).trace
    assert log_times(100_000, 100)[:3] == [1, 2, 3]
    assert log_times(100_000, 100)[-1] == 100_000


def test_problems_are_drawn_as_described():
    again = draw_problem(3, dimension=5, n_train=9, n_test=40)
    assert torch.equal(again.x_train, PROBLEM.x_train)
    assert set(PROBLEM.x_test.flatten().tolist()) == {-1.0, 1.0}
    assert torch.equal(PROBLEM.y_test, PROBLEM.x_test[:, 0] * PROBLEM.x_test[:, 1])
    full = draw_problem(0, dimension=4, n_train=16, n_test=1)
    assert len(set(map(tuple, full.x_train.tolist()))) == 16
    with pytest.raises(UsageError, match="n_train <= 2\\^dimension"):
        draw_problem(0, dimension=3, n_train=9, n_test=1)
    with pytest.raises(UsageError, match="architecture must be one of"):
        build("layer", dimension=3, width=2, bias=False)
    with pytest.raises(UsageError, match="x_train"):
        build("batch", dimension=3, width=2)
    with pytest.raises(UsageError, match="algorithm must be one of"):
        recipe("plain", True, "adam")


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_measured_of_a_plain_network_has_a_closed_form(bias):
    """Of one hidden layer: paths and the least trace written out, unit by unit."""
    how = recipe("plain", bias, "gd")
    model = build("plain", dimension=5, width=13, bias=bias, seed=2)
    found = measured(model, PROBLEM, how, seed=0)["measures"]
    x = PROBLEM.x_train.double()
    hidden, readout = model.hidden, model.output.weight[0].detach()
    inputs = torch.cat([x, torch.ones(len(x), 1)], 1) if bias else x
    rows = torch.cat([hidden.weight, hidden.bias[:, None]], 1) if bias else hidden.weight
    rows = rows.detach()
    paths = sum(float(a**2 * w.square().sum()) for a, w in zip(readout, rows, strict=True))
    assert found["path_norm"] == pytest.approx(paths**0.5, rel=1e-12)
    least = 0.0
    for a, w in zip(readout, rows, strict=True):
        pre = inputs @ w
        above = 2 * float(((pre > 0) * inputs.square().sum(1)).mean()) * float(a) ** 2
        below = 2 * float(pre.clamp(min=0).square().mean())
        least += 2 * (above * below) ** 0.5
    assert found["minimum_sharpness"] == pytest.approx(least, rel=1e-10)
