"""Half precision and tiny radii: the value of the same weights in float64, or a refusal.

Catches: a perturbation that rounding takes away (a sharpness of 0, or off by factors), a
decomposition that half precision does not have, a forward that narrows inside.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import invariance as inv
from invariance.core._errors import InvarianceError, MeasureError, ModelError
from invariance.measures._registry import all_measures, get_measure

NAMES = [name for name in all_measures() if not name.startswith("volume")]
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def data():
    draws = torch.Generator().manual_seed(3)
    x, unseen = (torch.rand(n, 6, generator=draws) for n in (16, 4))
    y = torch.randint(0, 3, (16,), generator=draws)
    return {"x": x, "y": y, "x_train": x, "y_train": y, "x_unseen": unseen}


def outcome(name, model, data):
    """A value, or the reason why there is none."""
    try:
        return get_measure(name).function(model, **data)
    except InvarianceError as error:
        return str(error)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_the_function_of_its_weights(name, dtype, data):
    given = {field: data[field] for field in get_measure(name).fields}
    wide = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    for activation in ("relu", "tanh"):
        model = inv.models.mlp([6, 5, 4, 3], activation=activation).to(dtype).eval()
        found = outcome(name, model, given)
        expected = outcome(name, copy.deepcopy(model).double(), wide)
        if isinstance(expected, str):
            assert found == expected
            continue
        assert float(found) == pytest.approx(float(expected), rel=2e-6, abs=1e-12)
        assert f"{str(dtype)[6:]} parameters, computed in float32" in found.method
        assert all(parameter.dtype == dtype for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rho", [0.05, 1e-3, 1e-6, 1e-9])
def test_radii_that_float32_rounds_away(dtype, rho, data):
    # To first order the rise is rho |g|, of which the second order is a share of rho.
    x, y = data["x"], data["y"]
    model = inv.models.mlp([6, 5, 3], activation="tanh").to(dtype).eval()
    own = copy.deepcopy(model).double()
    F.cross_entropy(own(x.double()), y).backward()
    gradient = torch.cat([p.grad.flatten() for p in own.parameters()])
    for measure in (inv.measures.sam_sharpness, inv.measures.worst_case_sharpness):
        found = float(measure(model, x, y, rho=rho))
        assert found == pytest.approx(rho * float(gradient.norm()), rel=10 * rho + 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_noise_that_float32_rounds_away(dtype, data):
    x, y = data["x"], data["y"]
    model = inv.models.mlp([6, 5, 3], activation="tanh").to(dtype).eval()
    noisy = inv.measures.gaussian_sharpness(model, x, y, sigma=1e-5)
    trace = float(inv.measures.hessian_trace(copy.deepcopy(model).double(), x.double(), y))
    assert abs(float(noisy) - 1e-10 * trace / 2) < 5 * noisy.stderr < 1e-10 * trace
    drowned = inv.measures.gaussian_sharpness(model, x, y, sigma=1e-10)
    assert abs(float(drowned) - 1e-20 * trace / 2) < 5 * drowned.stderr  # which is round-off


def test_a_rise_within_round_off_is_not_exact(data):
    model = inv.models.mlp([6, 5, 3]).eval()
    found = inv.measures.sam_sharpness(model, data["x"], data["y"], rho=1e-13)
    assert not found.exact and "round-off" in found.method


def test_a_radius_beside_which_parameters_are_large_is_refused(data):
    model = inv.models.mlp([6, 5, 3]).eval()
    for measure in (inv.measures.sam_sharpness, inv.measures.worst_case_sharpness):
        with pytest.raises(MeasureError, match="rounding changes it"):
            measure(model, data["x"], data["y"], rho=1e-15)


class Narrow(nn.Module):
    """A perceptron that computes in another dtype inside."""

    def __init__(self, inside, dtype):
        super().__init__()
        self.inside, self.dtype = inside, dtype

    def forward(self, x):
        weights = {name: p.to(self.dtype) for name, p in self.inside.named_parameters()}
        return torch.func.functional_call(self.inside, weights, x.to(self.dtype)).to(x)


@pytest.mark.parametrize("name", ["hessian_trace", "sam_sharpness", "pair_proxy"])
def test_a_forward_that_casts_to_half_precision_is_refused(name, data):
    model = Narrow(inv.models.mlp([6, 5, 3]), torch.bfloat16).eval()
    given = {field: data[field] for field in get_measure(name).fields}
    with pytest.raises(ModelError, match=r"casts to torch\.bfloat16 inside"):
        get_measure(name).function(model, **given)


class Automatic(nn.Linear):
    """Switches autocast on by itself."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def test_a_forward_under_its_own_autocast_is_refused(data):
    with pytest.raises(ModelError, match=r"casts to torch\.bfloat16 inside"):
        inv.measures.hessian_eigenvalues(Automatic(6, 3), data["x"], data["y"])


def test_a_forward_that_casts_to_float32_has_its_round_off(data):
    model = Narrow(inv.models.mlp([6, 5, 3]), torch.float32).double().eval()
    with pytest.raises(MeasureError, match="rounding changes it"):
        inv.measures.sam_sharpness(model, data["x"].double(), data["y"], rho=1e-6)
    assert inv.measures.sam_sharpness(model, data["x"].double(), data["y"]).exact


def test_a_loss_that_has_no_float64_is_named(data):
    model = inv.models.mlp([6, 5, 3]).eval()
    mixing = torch.ones(3, 3)

    def loss(outputs, y):
        return (outputs @ mixing).square().mean()

    with pytest.raises(MeasureError, match="float64 outputs"):
        inv.measures.sam_sharpness(model, data["x"], data["y"], loss=loss)


def test_a_penalty_on_half_precision_parameters_is_found(data):
    model = inv.models.mlp([6, 5, 3]).to(torch.bfloat16).eval()

    def penalised(outputs, y):
        return F.cross_entropy(outputs, y) + sum(
            p.float().square().sum() for p in model.parameters()
        )

    for measure in (inv.measures.hessian_trace, inv.measures.sam_sharpness):
        with pytest.raises(MeasureError, match="beyond the outputs"):
            measure(model, data["x"], data["y"], loss=penalised)


@pytest.mark.parametrize("dtype", HALVES)
def test_operators_and_ensembles_of_half_precision(dtype, data):
    x, y = data["x"], data["y"]
    model = inv.models.mlp([6, 5, 3]).to(dtype).eval()
    exact = float(inv.measures.hessian_trace(copy.deepcopy(model).double(), x.double(), y))
    both = inv.curvature.hessian_trace_ensemble([model, model], x, y)
    assert both.trace == pytest.approx([exact, exact], rel=2e-6)
    operator = inv.curvature.HessianOperator(model, x, y)
    assert float(operator.to_dense().trace()) == pytest.approx(exact, rel=2e-6)
