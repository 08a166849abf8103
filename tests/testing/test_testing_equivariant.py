"""Catches: a training step that depends on how the network is written and passes, or one that
does not and fails."""

import pytest
import torch
from torch import nn

import invariance as inv
from invariance import transforms as T
from invariance.core._errors import MeasureError, UsageError
from invariance.testing.gate._assert_equivariant import NotEquivariantError


@pytest.fixture
def net():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(12, 4, generator=draws, dtype=torch.float64)
    y = torch.randint(0, 3, (12,), generator=draws)
    return inv.models.mlp([4, 5, 3], seed=1, dtype=torch.float64).eval(), x, y


def slopes(model, x, y):
    values = list(model.parameters())
    return values, torch.autograd.grad(nn.functional.cross_entropy(model(x), y), values)


def along(direction):
    """Two steps along ``direction(theta, g)``."""

    def step(model, x, y):
        for _ in range(2):
            values, gradients = slopes(model, x, y)
            with torch.no_grad():
                for value, g in zip(values, gradients, strict=True):
                    value.sub_(0.1 * direction(value, g))

    return step


def optimiser(kind, **options):
    def step(model, x, y):
        made = kind(model.parameters(), **options)
        for _ in range(3):
            made.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            made.step()

    return step


def sharpness_aware(scale):
    def step(model, x, y):
        values, gradients = slopes(model, x, y)
        scaled = [scale(v.detach()) * g for v, g in zip(values, gradients, strict=True)]
        size = torch.sqrt(sum(s.square().sum() for s in scaled))
        moves = [0.05 * scale(v.detach()) * s / size for v, s in zip(values, scaled, strict=True)]
        with torch.no_grad():
            for v, e in zip(values, moves, strict=True):
                v.add_(e)
        _, gradients = slopes(model, x, y)
        with torch.no_grad():
            for v, e in zip(values, moves, strict=True):
                v.sub_(e)
            for v, g in zip(values, gradients, strict=True):
                v.sub_(0.1 * scale(v) ** 2 * g)

    return step


SCALING = T.NeuronScaling(seed=1)
ORDER = T.Permutation(seed=1)
PASSES = {
    "relative": along(lambda v, g: v.square() * g),
    "asam with relative steps": sharpness_aware(lambda v: v.abs()),
    "weight decay alone": along(lambda v, g: v),
}
FAILS = {
    "sgd": optimiser(torch.optim.SGD, lr=0.1),
    "momentum": optimiser(torch.optim.SGD, lr=0.1, momentum=0.9),
    "weight decay": optimiser(torch.optim.SGD, lr=0.1, weight_decay=0.1),
    "adam": optimiser(torch.optim.Adam, lr=0.1),
    "sam": sharpness_aware(torch.ones_like),
    "asam with eta": sharpness_aware(lambda v: v.abs() + 0.01),
}


@pytest.mark.parametrize("name", PASSES)
def test_steps_in_units_of_the_parameters_are_equivariant(name, net):
    found = inv.testing.assert_equivariant(PASSES[name], *net, transforms=[SCALING, ORDER])
    assert all(line.endswith(": parameters") for line in found)


@pytest.mark.parametrize("name", FAILS)
def test_steps_in_fixed_units_are_not(name, net):
    """A permutation keeps all of them; a scaling none."""
    inv.testing.assert_equivariant(FAILS[name], *net, transforms=ORDER)
    with pytest.raises(NotEquivariantError, match="not equivariant under NeuronScaling"):
        inv.testing.assert_equivariant(FAILS[name], *net, transforms=SCALING)


def test_the_message_names_the_mildest_map_and_replays(net):
    model, x, y = net
    with pytest.raises(AssertionError) as caught:
        inv.testing.assert_equivariant(
            FAILS["sgd"], model, x, y, transforms=T.LayerScaling([8.0, 0.125]), name="sgd"
        )
    text = str(caught.value)
    assert "training step 'sgd'" in text
    assert "smallest   LayerScaling([2.0, 0.5])" in text
    assert "layer      `linear1`" in text
    line = text.rsplit("replay     ", 1)[1]
    with pytest.raises(NotEquivariantError):
        exec(line, {"step": FAILS["sgd"], "model": model, "x": x, "y": y})


def test_maps_that_are_not_free_compare_functions(net):
    # A logit shift is a translation along which the loss is flat: SGD carries it along.
    (line,) = inv.testing.assert_equivariant(FAILS["sgd"], *net, transforms=T.LogitShift())
    assert line.endswith(": functions")
    with pytest.raises(NotEquivariantError, match="functions"):
        inv.testing.assert_equivariant(FAILS["sgd"], *net, transforms=T.SplitUnits(1))


def test_a_step_that_returns_a_new_model_counts_and_the_argument_is_left_alone(net):
    model, x, y = net
    before = [value.clone() for value in model.parameters()]

    def returning(model, x, y):
        new = inv.transforms.Permutation(seed=0)(model, x)  # any new module
        PASSES["relative"](new, x, y)
        return inv.transforms.Permutation(seed=0).inverse()(new, x)

    inv.testing.assert_equivariant(returning, model, x, y, transforms=SCALING)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_step_that_does_nothing_or_returns_something_else_is_refused(net):
    with pytest.raises(UsageError, match="changed no parameter"):
        inv.testing.assert_equivariant(lambda m, x, y: None, *net)
    with pytest.raises(MeasureError, match="must return a module or None"):
        inv.testing.assert_equivariant(lambda m, x, y: 3.0, *net)


def test_a_tiny_step_is_judged_by_its_own_length(net):
    tiny = optimiser(torch.optim.SGD, lr=1e-4)
    with pytest.raises(NotEquivariantError):
        inv.testing.assert_equivariant(tiny, *net, transforms=SCALING)
