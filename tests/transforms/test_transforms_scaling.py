"""Layer, neuron and sign transforms: closed forms, laws of second derivatives, refusals.

Would catch: biases that are scaled like weights, an inverse that is none, an action that is
off by a factor, a permutation that leaves a statistic behind.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev

from invariance.core._errors import TransformError
from invariance.symmetry import symmetries
from invariance.transforms import (
    BatchNormScaling,
    Compose,
    FoldBatchNorm,
    LayerScaling,
    NeuronScaling,
    Permutation,
    SignFlip,
)


def mlp(*sizes, activation=nn.ReLU, batch_norm=False, seed=0):
    layers = []
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(n_in, n_out))
        if i < len(sizes) - 2:
            if batch_norm:
                layers.append(nn.BatchNorm1d(n_out))
            layers.append(activation())
    model = nn.Sequential(*layers).double().eval()
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream, dtype=torch.float64))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_(generator=stream)
                module.running_var.uniform_(0.5, 2, generator=stream)
    return model


def data(n=12, d=4, seed=1):
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=stream, dtype=torch.float64)
    return x, torch.randint(0, 3, (n,), generator=stream)


def hessian_diagonal(model, x, y):
    values = {n: p.detach() for n, p in model.named_parameters()}

    def loss(v):
        return F.cross_entropy(functional_call(model, v, (x,)), y)

    blocks = jacrev(jacrev(loss))(values)
    return {
        n: blocks[n][n].reshape(values[n].numel(), -1).diagonal().reshape(values[n].shape)
        for n in values
    }


# -- layer scaling -----------------------------------------------------------------------


def test_layer_scaling_scales_biases_by_the_cumulative_product():
    model = mlp(4, 5, 6, 3)
    moved = LayerScaling([2.0, 4.0, 0.125])(model)
    assert torch.equal(moved[0].weight, model[0].weight * 2)
    assert torch.equal(moved[0].bias, model[0].bias * 2)
    assert torch.equal(moved[2].weight, model[2].weight * 4)
    assert torch.equal(moved[2].bias, model[2].bias * 8)
    assert torch.equal(moved[4].weight, model[4].weight / 8)
    assert torch.equal(moved[4].bias, model[4].bias)


def test_layer_scaling_through_batch_norm_compensates_statistics():
    model = mlp(4, 5, 3, batch_norm=True)
    applied = LayerScaling([4.0, 0.25]).apply(model)
    old, new = model[1], applied.model[1]
    assert torch.equal(applied.model[0].weight, 4 * model[0].weight)
    assert torch.allclose(new.running_mean, 4 * old.running_mean)
    assert torch.allclose(new.running_var, 16 * (old.running_var + old.eps) - old.eps)
    assert torch.equal(new.weight, 4 * old.weight)
    assert torch.equal(new.bias, 4 * old.bias)
    assert torch.equal(applied.model[3].weight, model[3].weight / 4)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([2.0, 1.0, 1.0], "product"),
        ([2.0, 0.5], r"2 factors.*3 weight layers.*0\.weight, 2\.weight, 4\.weight"),
        ([-1.0, -1.0, 1.0], "positive"),
        ([float("nan"), 1.0, 1.0], "finite"),
        ([float("inf"), 0.0, 1.0], "finite"),
        ([], "non-empty"),
    ],
)
def test_layer_scaling_refuses_bad_factors(factors, message):
    with pytest.raises(TransformError, match=message):
        LayerScaling(factors)(mlp(4, 5, 6, 3))


def test_layer_scaling_stops_at_gelu_and_says_which_layers():
    model = mlp(4, 5, 3, activation=nn.GELU)
    with pytest.raises(TransformError, match=r"f\(0\.weight\) has to be 1"):
        LayerScaling([2.0, 0.5])(model)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (
            nn.Linear(4, 5),
            nn.Linear(5, 6),
            nn.Linear(6, 5),
            nn.Linear(5, 3),
        )
        self.double()

    def forward(self, x):
        x = torch.relu(self.a(x))
        return self.d(torch.relu(x + self.c(torch.relu(self.b(x)))))


def test_layer_scaling_of_a_residual_net_needs_consistent_factors():
    model, (x, _) = Residual(), data()
    moved = LayerScaling([2.0, 8.0, 0.125, 0.5])(model, x)
    assert torch.equal(moved(x), model(x))
    assert torch.equal(moved.b.bias, 16 * model.b.bias)
    with pytest.raises(TransformError, match=r"f\(b\.weight\) \* f\(c\.weight\) has to be 1"):
        LayerScaling([2.0, 8.0, 0.25, 0.25])(model, x)


# -- all transforms ----------------------------------------------------------------------

ALL = [
    LayerScaling([2.0, 0.7, 1 / 1.4]),
    NeuronScaling(),
    NeuronScaling(spread=3.0, seed=4, powers_of_two=True),
    Permutation(seed=2),
    SignFlip(seed=3),
    BatchNormScaling(2.5),
    BatchNormScaling([2.0, 0.5]),
    Compose([NeuronScaling(), Permutation(1), BatchNormScaling(3.0), SignFlip(0)]),
]


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_function_kept_inverse_and_repr(transform):
    model, (x, _) = mlp(4, 5, 6, 3, batch_norm=True), data()
    applied = transform.apply(model, x)
    with torch.no_grad():
        assert torch.allclose(applied.model(x), model(x), rtol=1e-11, atol=1e-11)
    assert not torch.equal(applied.model[0].weight, model[0].weight) or not torch.equal(
        applied.model[1].weight, model[1].weight
    )
    back = transform.inverse()(applied.model, x)
    for a, b in zip(back.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-11, atol=1e-12)
    assert repr(eval(repr(transform))) == repr(transform)  # the module's own names
    assert applied.verification.labels_changed == 0
    assert applied.description


@pytest.mark.parametrize("transform", [*ALL, FoldBatchNorm()], ids=repr)
def test_action_predicts_the_hessian_diagonal(transform):
    model, (x, y) = mlp(4, 5, 6, 3, batch_norm=True, seed=5), data()
    applied = transform.apply(model, x)
    predicted = applied.action.diagonal(hessian_diagonal(model, x, y))
    measured = hessian_diagonal(applied.model, x, y)
    assert set(predicted) == set(measured)
    for name, wanted in measured.items():
        scale = float(wanted.abs().max()) + 1e-12
        assert float((predicted[name] - wanted).abs().max()) <= 1e-9 * scale, name


def test_neuron_scaling_takes_explicit_factors():
    model = mlp(4, 2, 3)
    moved = NeuronScaling(factors=[[2.0, 0.5]])(model)
    assert torch.equal(moved[0].weight[0], 2 * model[0].weight[0])
    assert torch.equal(moved[0].bias[1], 0.5 * model[0].bias[1])
    assert torch.equal(moved[2].weight[:, 1], 2 * model[2].weight[:, 1])
    with pytest.raises(TransformError, match="2 units"):
        NeuronScaling(factors=[[1.0, 2.0, 3.0]])(model)
    with pytest.raises(TransformError, match=r"for 2 groups; the module has 1: 0\.weight \(2\)"):
        NeuronScaling(factors=[1.0, 2.0])(model)


def test_neuron_scaling_draws_from_its_range_and_seed():
    model = mlp(4, 200, 3)
    drawn = torch.tensor(NeuronScaling(5.0, 1).apply(model).detail["factors"]["0:0.weight"])
    assert float(drawn.min()) >= 0.2
    assert float(drawn.max()) <= 5.0
    assert float(drawn.min()) < 0.25
    assert float(drawn.max()) > 4.0
    again = torch.tensor(NeuronScaling(5.0, 1).apply(model).detail["factors"]["0:0.weight"])
    other = torch.tensor(NeuronScaling(5.0, 2).apply(model).detail["factors"]["0:0.weight"])
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)
    with pytest.raises(TransformError, match="at least 1"):
        NeuronScaling(0.5)


def test_powers_of_two_are_bitwise_in_float32():
    model = mlp(4, 50, 60, 3).float()
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    for transform in (
        NeuronScaling(64.0, 0, powers_of_two=True),
        LayerScaling([2.0**9, 2.0**-3, 2.0**-6]),
    ):
        applied = transform.apply(model, x)
        assert applied.verification.bitwise
        assert torch.equal(applied.model(x), model(x))


def test_permutation_moves_rows_columns_and_statistics():
    model = mlp(4, 6, 3, batch_norm=True)
    applied = Permutation(seed=7).apply(model)
    order = torch.tensor(next(iter(applied.detail["orders"].values())))
    moved = applied.model
    assert torch.equal(moved[0].weight, model[0].weight[order])
    assert torch.equal(moved[1].running_var, model[1].running_var[order])
    assert torch.equal(moved[1].weight, model[1].weight[order])
    assert torch.equal(moved[3].weight, model[3].weight[:, order])
    assert sorted(order.tolist()) == list(range(6))


def test_sign_flip_through_tanh_and_refused_by_relu():
    model, (x, _) = mlp(4, 6, 3, activation=nn.Tanh), data()
    applied = SignFlip(seed=0).apply(model, x)
    signs = torch.tensor(next(iter(applied.detail["signs"].values())), dtype=torch.float64)
    assert torch.equal(applied.model[0].weight, model[0].weight * signs[:, None])
    assert applied.verification.bitwise
    with pytest.raises(TransformError, match="ReLU is not an odd function"):
        SignFlip()(mlp(4, 6, 3))


@pytest.mark.parametrize("activation", [nn.GELU, nn.Softplus, nn.SiLU])
def test_neuron_scaling_is_refused_by_name(activation):
    with pytest.raises(TransformError, match=rf"`1` {activation.__name__} is not positively"):
        NeuronScaling()(mlp(4, 5, 3, activation=activation))
    model, (x, _) = mlp(4, 5, 3, activation=activation), data()
    assert torch.allclose(Permutation()(model, x)(x), model(x))


def test_compose_needs_transforms():
    with pytest.raises(TransformError, match="at least one"):
        Compose([])
    with pytest.raises(TransformError, match="int"):
        Compose([3])


def test_verification_catches_a_wrong_result():
    from invariance.symmetry._verify import verify

    model, (x, _) = mlp(4, 5, 3), data()
    wrong = mlp(4, 5, 3)
    with torch.no_grad():
        wrong[0].weight[0, 0] *= 1 + 1e-9
    with pytest.raises(TransformError, match="changed the function"):
        verify(model, wrong, (x,), "a wrong transform")
    with torch.no_grad():
        wrong[0].weight[0, 0] = torch.nan
    with pytest.raises(TransformError, match="changed the function"):
        verify(model, wrong, (x,), "a transform that makes NaN")
    with pytest.raises(TransformError, match="NaN"):
        verify(wrong, wrong, (x,), "anything")


def test_example_input_may_be_omitted_for_linear_nets():
    model = mlp(4, 5, 3)
    assert NeuronScaling().apply(model).verification.rows == 8
    assert symmetries(model).dof("scaling") == 5


def test_frozen_parameters_keep_their_flag():
    model = mlp(4, 5, 3)
    model[0].weight.requires_grad_(False)
    moved = NeuronScaling()(model)
    assert not moved[0].weight.requires_grad
    assert moved[0].bias.requires_grad
    assert not torch.equal(moved[0].weight, model[0].weight)


class CastingNorm(nn.Module):
    """Normalises in float32 whatever the model's format, as language models do."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 64), nn.Linear(64, 3)
        self.double()

    def forward(self, x):
        h = self.a(x).float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.b(h.double())


def test_verification_knows_the_coarsest_format_inside():
    model, (x, _) = CastingNorm(), data()
    applied = Permutation(0).apply(model, x)
    assert applied.verification.max_abs_logit_diff <= 1e-5


class _Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.first(x).relu().sort(-1).values)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3)), "GELU is not positively"),
        (nn.Sequential(nn.Linear(5, 6), nn.Softplus(), nn.Linear(6, 3)), "Softplus is not pos"),
        (_Unknown(), "sort runs along the channels"),
    ],
)
@pytest.mark.parametrize("transform", [LayerScaling([2.0, 0.5]), NeuronScaling()])
def test_what_stops_a_scaling_is_named(model, name, transform):
    with pytest.raises(TransformError, match=name):
        transform(model, torch.randn(4, 5))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LayerScaling([2, "x"]), "list of numbers as factors, got"),
        (lambda: LayerScaling(3), "list of numbers as factors, got 3"),
        (lambda: NeuronScaling(spread="wide"), "finite spread of at least 1, got 'wide'"),
    ],
)
def test_what_is_no_number_is_refused(build, message):
    with pytest.raises(TransformError, match=message):
        build()
