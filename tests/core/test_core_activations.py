"""The table of activations against torch itself, and whether all who use it agree.

Would catch: an activation that one part of the package takes for piecewise linear (or odd, or
homogeneous) and another does not, a kink or slope that is wrong, a new activation of torch that
nobody has looked at.
"""

import inspect

import pytest
import torch
from torch import nn

from invariance import symmetries
from invariance.core._activations import BY_CALL, TABLE, activation_of, clipped
from invariance.core._perceptron import Dense, Slope, derivatives, read_perceptron
from invariance.curvature import HessianOperator, exact_curvature, hessian_trace
from invariance.curvature.exact._linearity import analyse_linearity
from invariance.training._engine import PerceptronEngine
from invariance.training.perceptrons._activations import formula
from invariance.weakness import activation_layers

#: Activations of torch that are no functions of one entry each.
NOT_ELEMENTWISE = {
    "GLU", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "LogSoftmax",
}  # fmt: skip

ARGUMENTS = {
    "Threshold": [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (-0.4, -0.4)],
    "Hardtanh": [(), (-2.0, 2.0), (0.0, 1.0), (-0.5, 1.5)],
    "LeakyReLU": [(), (0.0,), (-0.3,), (2.0,), (1.0,)],
    "RReLU": [(), (0.2, 0.3)],
    "Softshrink": [(), (0.2,)],
    "Hardshrink": [(), (0.2,)],
    "ELU": [(), (0.4,)],
    "CELU": [(), (0.4,)],
    "Softplus": [(), (2.0, 1.5)],
    "GELU": [(), ("tanh",)],
    "PReLU": [(), (1, 0.7)],
}


def elementwise_modules():
    """Every module of torch.nn.modules.activation that maps entry by entry, plus Identity."""
    for name, kind in inspect.getmembers(torch.nn.modules.activation, inspect.isclass):
        public = kind.__module__ == "torch.nn.modules.activation" and hasattr(nn, name)
        if public and name not in NOT_ELEMENTWISE:
            for arguments in ARGUMENTS.get(name, [()]):
                yield pytest.param(kind, arguments, id=f"{name}{arguments}")
    yield pytest.param(nn.Identity, (), id="Identity")
    yield pytest.param(nn.Dropout, (0.5,), id="Dropout")


EVERY = list(elementwise_modules())


def grid():
    return torch.linspace(-8, 8, 4001, dtype=torch.float64) + 1e-4


def value_and_slope(function, z):
    leaf = z.clone().requires_grad_()
    value = function(leaf.clone())
    (slope,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    return value.detach(), slope


def check_facts(function, known, z):
    value, slope = value_and_slope(function, z)
    scaled = all(
        torch.allclose(function(a * z), a * value, rtol=1e-9, atol=1e-9) for a in (0.37, 2.9)
    )
    assert scaled == known.homogeneous
    assert torch.allclose(function(-z), -value, rtol=1e-9, atol=1e-9) == known.odd
    if known.piecewise_linear and known.slopes:
        edges = torch.tensor(known.kinks, dtype=z.dtype)
        expected = torch.tensor(known.slopes, dtype=z.dtype)[torch.bucketize(z, edges)]
        # torch keeps hardsigmoid's 1/6 in single precision.
        torch.testing.assert_close(slope.detach(), expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("kind", "arguments"), EVERY)
def test_every_fact_of_every_module_is_what_torch_computes(kind, arguments):
    module = kind(*arguments).eval().double()
    known = activation_of(module)
    assert known is not None, f"{kind.__name__} is missing in the table"
    check_facts(lambda z: module(z.clone()), known, grid())
    if not known.piecewise_linear:
        _, slope = value_and_slope(module, grid())
        pieces = len(torch.unique(slope.detach().round(decimals=9)))
        assert pieces > 100  # curved indeed: endlessly many slopes


#: Calls that take further arguments, or are another's private name.
FURTHER = {"prelu", "threshold", "rrelu_with_noise", "log_sigmoid"}


@pytest.mark.parametrize("name", sorted(set(BY_CALL) - FURTHER))
def test_every_fact_of_every_function_is_what_torch_computes(name):
    function = getattr(torch, name, None) or getattr(torch.nn.functional, name)
    z = grid()
    if name.startswith("log") and name != "logsigmoid":
        z = z[z > 0]
    if name in ("asin", "arcsin"):
        z = z[z.abs() < 0.3]
    if name.startswith("log") and name != "logsigmoid":
        assert not BY_CALL[name].odd
        assert not BY_CALL[name].homogeneous
        return
    check_facts(function, BY_CALL[name], z)


@pytest.mark.parametrize(("low", "high"), [(0, None), (None, 0), (-1, 1), (0.5, None), (-1, 2)])
def test_clipping_at_any_bounds(low, high):
    check_facts(lambda z: z.clamp(low, high), clipped(low, high), grid())


@pytest.mark.parametrize(("kind", "arguments"), EVERY)
def test_slopes_are_those_of_autograd_also_on_a_kink(kind, arguments):
    module = kind(*arguments).eval().double()
    steps = read_perceptron(nn.Sequential(nn.Linear(3, 2).double(), module))
    if kind is nn.PReLU:
        assert steps is None  # its slope is a parameter of no weight layer
        return
    slopes = [step for step in steps if isinstance(step, Slope)]
    kinks = torch.tensor(activation_of(module).kinks or (), dtype=torch.float64)
    z = torch.cat([grid(), kinks, torch.zeros(1, dtype=torch.float64)])
    value, slope, bend = derivatives(slopes, z, second=True)
    wanted, first = value_and_slope(lambda t: module(t.clone()), z)
    torch.testing.assert_close(value, wanted)
    found = torch.ones_like(z) if slope is None else slope
    torch.testing.assert_close(found, first.detach(), rtol=1e-7, atol=1e-12)
    assert (bend is None) == activation_of(module).piecewise_linear
    if bend is not None:
        leaf = z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(module(leaf.clone()).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(gradient.sum(), leaf)
        torch.testing.assert_close(bend, second)


class Ramp(nn.Module):
    """Hardsigmoid, of which torch has no second derivative."""

    def forward(self, z):
        return (z / 6 + 0.5).clamp(0, 1)


def network(kind, arguments):
    torch.manual_seed(4)
    layers = nn.Linear(4, 5), kind(*arguments), nn.Linear(5, 3)
    return nn.Sequential(*layers).double().eval()


@pytest.mark.parametrize(("kind", "arguments"), EVERY)
def test_all_who_use_the_table_agree(kind, arguments):
    """Curvature, weakness, symmetry and training treat one activation alike, in one network."""
    model, x = network(kind, arguments), torch.randn(12, 4, dtype=torch.float64)
    y = torch.randint(0, 3, (12,))
    known = activation_of(model[1])
    # Curvature: exact either way, and Gauss-Newton only where nothing is curved.
    plain = model if kind is not nn.Hardsigmoid else nn.Sequential(model[0], Ramp(), model[2])
    dense = HessianOperator(plain, x, y, mode="graph").to_dense()
    swept = exact_curvature(model, x, y)
    assert swept.trace == pytest.approx(float(dense.trace()), rel=1e-9, abs=1e-12)
    assert swept.gauss_newton == known.piecewise_linear
    assert hessian_trace(model, x, y).exact
    # The traced graph, which serves all other networks, says the same.
    reasons = analyse_linearity(model, x[:1]).reasons
    assert ("0.weight" not in reasons) == known.piecewise_linear or kind is nn.Tanhshrink
    # Weakness: two pieces that meet at zero, or a reason.
    layers = activation_layers(model, x)
    if known.identity:
        assert layers == ()
    else:
        (layer,) = layers
        counted = known.kinks == (0.0,) and arguments not in ARGUMENTS["Threshold"][2:]
        assert (layer.refused == "") == counted
    # Symmetry: scalings and sign flips pass where the table says so.
    found = symmetries(model, x)
    assert bool(found.of("scaling")) == known.homogeneous
    assert bool(found.of("sign_flip")) == known.odd
    # Training: by hand wherever nothing is random.
    assert PerceptronEngine.accepts(model.train()) == (not known.random)


#: Without parameters and not random in training.
FORMULAS = [case for case in EVERY if case.values[0] not in (nn.PReLU, nn.RReLU, nn.Dropout)]


@pytest.mark.parametrize(("kind", "arguments"), FORMULAS)
def test_training_formulas_have_torchs_derivative(kind, arguments):
    module = kind(*arguments).double()
    known, z = formula(module), grid()
    gradient = torch.linspace(-1, 1, len(z), dtype=torch.float64)
    value, slope = value_and_slope(module, z)
    torch.testing.assert_close(known.forward(z.clone()), value)
    kept = z if known.in_place is None else value
    torch.testing.assert_close(known.backward(gradient.clone(), kept), gradient * slope.detach())


def test_every_entry_is_reached_by_a_module_or_a_call():
    assert all(known.modules or known.calls for known in TABLE)
    calls = [call for known in TABLE for call in known.calls]
    assert len(calls) == len(set(calls))


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class MyReLU(nn.ReLU):
    def forward(self, x):
        return super().forward(x) + 1


def broken(how):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).eval()
    if how == "hook":
        model[1].register_forward_hook(lambda *_: None)
    elif how == "pre-hook":
        model.register_forward_pre_hook(lambda *_: None)
    elif how == "own forward":
        model[1].forward = lambda x: x
    elif how == "subclass":
        model[1] = MyReLU()
    elif how == "forward of a subclass":
        model = Doubled(*model)
    elif how == "shared weight":
        model[2].weight = model[0].weight
    elif how == "shared module":
        model = nn.Sequential(model[0], model[1], model[0])
    elif how == "parametrised":
        nn.utils.parametrizations.weight_norm(model[0])
    elif how == "dropout in training":
        model = nn.Sequential(*model, nn.Dropout(0.1))
    elif how == "batch statistics":
        model = nn.Sequential(*model, nn.BatchNorm1d(3))
    elif how == "flattened behind":
        model = nn.Sequential(*model, nn.Flatten())
    return model


@pytest.mark.parametrize(
    "how",
    [
        "hook", "pre-hook", "own forward", "subclass", "forward of a subclass", "shared weight",
        "shared module", "parametrised", "dropout in training", "batch statistics",
        "flattened behind",
    ],
)  # fmt: skip
def test_what_is_no_plain_perceptron(how):
    assert read_perceptron(broken("nothing")) is not None
    assert read_perceptron(broken(how)) is None


def test_nested_networks_read_in_order_with_their_names():
    inner = nn.Sequential(nn.Linear(4, 3), nn.Identity(), nn.Dropout(0.5))
    model = nn.Sequential(nn.Flatten(), inner, nn.Sequential(nn.Tanh()), nn.Linear(3, 2)).eval()
    steps = read_perceptron(model)
    assert [step.name for step in steps] == ["1.0", "2.0", "3"]
    x = torch.randn(5, 4)
    for step in steps:
        x = step.forward(x) if isinstance(step, Dense | Slope) else x
    assert x.shape == (5, 2)
