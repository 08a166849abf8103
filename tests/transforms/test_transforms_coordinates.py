"""Coordinates: would catch a wrong chart, a lost gradient term, a trace that moves."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invariance.core._errors import MeasureError, TransformError, UsageError
from invariance.core._rng import generator
from invariance.transforms._reparametrize import Reparametrize, Unparametrize, parametrized
from invariance.transforms._reparametrize_law import coordinate_law, covariant_trace
from invariance.transforms._reparametrize_maps import (
    Coordinates,
    Diffeomorphism,
    Dinh,
    ExpLog,
    WeightNorm,
)


def sinh_of(eta: Tensor) -> Tensor:
    return torch.sinh(eta)


def asinh_of(weight: Tensor) -> Tensor:
    return torch.asinh(weight)


CHARTS = [
    WeightNorm(),
    ExpLog(),
    Dinh(power=0.7, offset=0.3),
    Dinh(power=-0.4, offset=0.5),
    Dinh(power=1.5, offset=0.2, center="here"),
    Diffeomorphism(sinh_of, asinh_of),
]


def tiny(seed: int = 0) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    draw = generator(seed, "tiny")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return model


def rows(seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = generator(seed, "rows")
    x = torch.randn(12, 3, generator=draw, dtype=torch.float64)
    return x, torch.randint(0, 3, (12,), generator=draw)


@pytest.mark.parametrize("chart", CHARTS, ids=repr)
def test_same_function_same_weights_other_coordinates(chart: object) -> None:
    model, (x, _) = tiny(), rows()
    before = copy.deepcopy(model.state_dict())
    applied = Reparametrize(chart).apply(model, x)
    assert applied.verification is not None
    assert applied.verification.max_abs_logit_diff < 1e-13
    assert applied.action is None
    assert parametrized(applied.model) == ("0.weight", "2.weight")
    weight = applied.model.get_submodule("0").weight
    torch.testing.assert_close(weight, before["0.weight"], rtol=1e-14, atol=1e-14)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not parametrized(model)
    back = Reparametrize(chart).inverse()(applied.model, x)
    assert list(dict(back.named_parameters())) == list(dict(model.named_parameters()))
    torch.testing.assert_close(back(x), model(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("chart", CHARTS, ids=repr)
def test_law_away_from_a_critical_point(chart: object) -> None:
    """H_eta measured through the parametrised network equals the law's right-hand side."""
    x, y = rows()
    law = coordinate_law(Reparametrize(chart)(tiny(), x), x, y)
    assert law.gradient.norm() > 0.1
    torch.testing.assert_close(law.hessian, law.predicted, rtol=1e-9, atol=1e-9)
    trace = float(law.weight_hessian.trace())
    assert law.covariant_trace == pytest.approx(trace, rel=1e-8)
    # The plain trace moves, and so does the trace that forgets the gradient term.
    assert abs(float(law.hessian.trace()) - trace) > 1e-3 * abs(trace)
    if not (isinstance(chart, Dinh) and chart.center == "here"):
        forgetful = torch.trace(torch.linalg.pinv(law.metric, hermitian=True) @ law.hessian)
        assert abs(float(forgetful) - trace) > 1e-3 * abs(trace)


@pytest.mark.parametrize("chart", CHARTS, ids=repr)
def test_law_at_a_critical_point(chart: object) -> None:
    """With soft targets equal to the network's own softmax the gradient vanishes exactly."""
    model, (x, _) = tiny(), rows()
    targets = model(x).softmax(-1).detach()
    law = coordinate_law(Reparametrize(chart)(model, x), x, targets)
    assert law.gradient.norm() < 1e-14
    congruence = law.jacobian.T @ law.weight_hessian @ law.jacobian
    torch.testing.assert_close(law.hessian, congruence, rtol=1e-9, atol=1e-10)
    assert law.covariant_trace == pytest.approx(float(law.weight_hessian.trace()), rel=1e-8)


def test_jacobians_have_their_closed_forms() -> None:
    x, y = rows()
    model = tiny()
    weight = model.get_submodule("0").weight.detach()

    def block(chart: object) -> Tensor:
        law = coordinate_law(Reparametrize(chart, only=["0.weight"])(model, x), x, y)
        start = sum(
            dict(
                Unparametrize()(
                    Reparametrize(chart, only=["0.weight"])(model, x), x
                ).named_parameters()
            )[n].numel()
            for n in law.weights[: law.weights.index("0.weight")]
        )
        columns, begin = [], 0
        sizes = dict(Reparametrize(chart, only=["0.weight"])(model, x).named_parameters())
        for name in law.coordinates:
            size = sizes[name].numel()
            if "parametrizations" in name:
                columns.append(law.jacobian[start : start + 12, begin : begin + size])
            begin += size
        return torch.cat(columns, dim=1)

    torch.testing.assert_close(block(ExpLog()), torch.diag(weight.reshape(-1)))
    # Dinh at its centre: eta = offset^power (w - c), so J = offset^-power.
    at_centre = block(Dinh(power=1.5, offset=0.2, center="here"))
    torch.testing.assert_close(at_centre, 0.2**-1.5 * torch.eye(12, dtype=torch.float64))
    # Away from it: d eta / d w = (s+b)^a I + 2a (s+b)^(a-1) w w^T, J its inverse.
    w, a, b = weight.reshape(-1), 0.7, 0.3
    s = w.square().sum()
    forward = (s + b) ** a * torch.eye(12, dtype=torch.float64)
    forward = forward + 2 * a * (s + b) ** (a - 1) * torch.outer(w, w)
    torch.testing.assert_close(block(Dinh(power=a, offset=b)), torch.linalg.inv(forward))
    # Weight normalisation: dw/dg = v/|v|, dw/dv = g/|v| (I - v v^T/|v|^2), row by row.
    norm = weight.norm(dim=1, keepdim=True)
    by_g = torch.block_diag(*[(row / n)[:, None] for row, n in zip(weight, norm, strict=True)])
    by_v = torch.block_diag(
        *[
            torch.eye(3).double() - torch.outer(r, r) / n**2
            for r, n in zip(weight, norm, strict=True)
        ]
    )
    torch.testing.assert_close(block(WeightNorm()), torch.cat([by_g, by_v], dim=1))


def test_dinhs_hessian_is_as_sharp_as_one_likes() -> None:
    """Dinh et al. 2017, section 5: at the centre, H is multiplied by offset^(-2 power)."""
    x, y = rows()
    plain = coordinate_law(tiny(), x, y)
    everything = ["0.weight", "0.bias", "2.weight", "2.bias"]
    chart = Dinh(power=1.0, offset=0.01, center="here")
    moved = coordinate_law(Reparametrize(chart, only=everything)(tiny(), x), x, y)
    expected = 0.01**-2 * float(plain.hessian.trace())
    assert float(moved.hessian.trace()) == pytest.approx(expected, rel=1e-9)
    assert moved.covariant_trace == pytest.approx(float(plain.hessian.trace()), rel=1e-9)


def relu_net() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    draw = generator(2, "relu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return model


@pytest.mark.parametrize("make", [tiny, relu_net])
@pytest.mark.parametrize("chart", CHARTS, ids=repr)
def test_covariant_trace_stays_in_any_coordinates(
    chart: object, make: Callable[[], nn.Module]
) -> None:
    """Matrix-free, against the dense definition tr(G^+ (H_eta - curvature))."""
    (x, y), model = rows(), make()
    original = float(coordinate_law(model, x, y).weight_hessian.trace())
    new = Reparametrize(chart)(model, x)
    assert float(covariant_trace(model, x, y)) == pytest.approx(original, rel=1e-9)
    estimate = covariant_trace(new, x, y)
    assert estimate.exact
    assert float(estimate) == pytest.approx(original, rel=1e-9)
    assert coordinate_law(new, x, y).covariant_trace == pytest.approx(original, rel=1e-8)


def test_nested_convolutions_and_repr() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), nn.Flatten(), nn.Linear(48, 2)
    )
    x = torch.randn(4, 2, 6, 6, generator=generator(0, "x"))
    for transform in (
        Reparametrize("weight_norm"),
        Reparametrize(Dinh(power=0.25), only=("0.0.weight",)),
        Reparametrize("exp", only=("2.weight",)),
        Reparametrize(Diffeomorphism(sinh_of, asinh_of)),
    ):
        assert repr(eval(repr(transform))) == repr(transform)
        new = transform(model, x)
        torch.testing.assert_close(new(x), model(x), rtol=1e-5, atol=1e-5)
    assert repr(Reparametrize("exp")) == "Reparametrize(ExpLog())"


@pytest.mark.parametrize("chart", [c for c in CHARTS if not isinstance(c, WeightNorm)], ids=repr)
def test_charts_are_inverse_to_second_order(chart: Coordinates) -> None:
    """encode(decode(eta)) = eta, so its Jacobian is the identity and its Hessian zero."""
    weight = tiny().get_submodule("0").weight.detach()[:2, :2].contiguous()
    module = chart.chart("w", weight)
    eta = module.right_inverse(weight).reshape(-1) * 1.1 + 0.05

    def there_and_back(flat: Tensor) -> Tensor:
        return module.right_inverse(module(flat.reshape(2, 2))).reshape(-1)

    jacobian = torch.func.jacrev(there_and_back)(eta)
    torch.testing.assert_close(jacobian, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-12)
    second = torch.func.jacrev(torch.func.jacrev(there_and_back))(eta)
    assert float(second.abs().max()) < 1e-11


def test_derivatives_survive_at_the_centre_and_for_optimisers() -> None:
    """eta = 0 is where a careless |eta| has no derivative."""
    model, (x, y) = tiny(), rows()
    new = Reparametrize(Dinh(power=-0.4, offset=0.5, center="here"))(model, x)
    nn.functional.cross_entropy(new(x), y).backward()
    grads = [p.grad for p in new.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in grads)


class TestRefusals:
    def test_outside_the_chart(self) -> None:
        model, (x, _) = tiny(), rows()
        with torch.no_grad():
            model[0].weight[1] = 0.0
        with pytest.raises(TransformError, match=r"row 1 of '0.weight' is zero"):
            Reparametrize("weight_norm")(model, x)
        with pytest.raises(TransformError, match=r"3 zeros in '0.weight'"):
            Reparametrize("exp")(model, x)
        with pytest.raises(TransformError, match="needs rows"):
            Reparametrize("weight_norm", only=["0.bias"])(model, x)

    def test_wrong_arguments(self) -> None:
        model, (x, _) = tiny(), rows()
        with pytest.raises(UsageError, match="Did you mean 'dinh'"):
            Reparametrize("dihn")
        with pytest.raises(UsageError, match="Unknown parameter"):
            Reparametrize("exp", only=["0.wieght"])(model, x)
        with pytest.raises(TransformError, match="power > -1/2"):
            Dinh(power=-0.5)
        with pytest.raises(TransformError, match="center must be"):
            Dinh(center="there")
        with pytest.raises(TransformError, match="not inverse to each other"):
            Reparametrize(Diffeomorphism(torch.exp, asinh_of))(model, x)

    def test_twice_tied_and_train_mode(self) -> None:
        model, (x, _) = tiny(), rows()
        once = Reparametrize("exp")(model, x)
        with pytest.raises(TransformError, match="parametrized already"):
            Reparametrize("exp", only=["0.weight"])(once, x)
        with pytest.raises(TransformError, match="not parametrized"):
            Unparametrize()(model, x)
        tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double()
        tied[1].weight = tied[0].weight
        with pytest.raises(TransformError, match=r"tied to '1.weight'"):
            Reparametrize("exp")(tied, x)
        with pytest.raises(TransformError, match="train mode"):
            Reparametrize("exp")(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double(), x)
        with pytest.raises(TransformError, match="Pass example_input"):
            Reparametrize("exp")(nn.Sequential(nn.Conv2d(1, 1, 1)))

    def test_dense_law_is_for_small_networks(self) -> None:
        big = nn.Linear(100, 100)
        with pytest.raises(MeasureError, match="Got 10100"):
            coordinate_law(big, torch.zeros(1, 100), torch.zeros(1, dtype=torch.int64))


def test_copies_do_not_share_their_coordinates() -> None:
    """torch keeps a parametrized module's properties on a class that deep copies share."""
    model, (x, _) = tiny(), rows()
    first = Reparametrize("exp", only=["0.weight"])(model, x)
    expected = first(x)
    second = Reparametrize(Dinh(), only=["0.bias"])(first, x)
    assert parametrized(second) == ("0.weight", "0.bias")
    assert parametrized(first) == ("0.weight",)
    partly = Unparametrize(only=["0.weight"])(second, x)
    assert parametrized(partly) == ("0.bias",)
    plain = Unparametrize()(second, x)
    assert type(plain.get_submodule("0")) is nn.Linear
    for other in (first, second, partly, plain):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=1e-13)


def test_frozen_weights_stay_frozen() -> None:
    model, (x, _) = tiny(), rows()
    model[0].weight.requires_grad_(False)
    new = Reparametrize("exp")(model, x)
    inside = new.get_submodule("0").parametrizations["weight"].original
    assert not inside.requires_grad
    assert parametrize.is_parametrized(new.get_submodule("2"), "weight")
