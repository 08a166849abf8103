"""Counts that a wrong layer, a hash collision, a lost bit or a wrong batch would change."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from invariance.core._errors import DataError, MeasureError
from invariance.weakness._agreement import ensemble_agreement
from invariance.weakness.patterns._activation_layers import activation_layers
from invariance.weakness.patterns._patterns import (
    _pack_on_device,
    activation_patterns,
    activation_patterns_ensemble,
    hidden_patterns,
)
from invariance.weakness.patterns._regions import (
    free_parameters,
    free_regions,
    region_class_weakness,
    region_counts,
)


def mlp(sizes, seed, activation=nn.ReLU, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    layers = []
    for before, after in itertools.pairwise(sizes):
        linear = nn.Linear(before, after, dtype=dtype)
        with torch.no_grad():
            for entry in linear.parameters():
                entry.copy_(torch.randn(entry.shape, generator=draw, dtype=dtype) / before**0.5)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1]).eval()


def points(n, d, seed, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def reference_bits(model, x):
    """Each hidden layer's bits by NumPy from the weights, one point at a time."""
    linears = [module for module in model if isinstance(module, nn.Linear)]
    out = [[] for _ in linears[:-1]]
    for row in x.numpy():
        h = row
        for i, linear in enumerate(linears[:-1]):
            z = linear.weight.detach().numpy() @ h + linear.bias.detach().numpy()
            out[i].append(tuple(bool(entry > 0) for entry in z))
            h = np.maximum(z, 0)
    return out


@pytest.mark.parametrize("layer", [0, 1, -1, -2])
@pytest.mark.parametrize("batch_size", [None, 1, 7, 64])
def test_counts_equal_a_pointwise_reference(layer, batch_size):
    model, x = mlp([3, 9, 5, 4], 0), points(150, 3, 1)
    bits = reference_bits(model, x)[layer]
    got = activation_patterns(model, x, layer, batch_size=batch_size)
    assert float(got) == len(set(bits))
    assert got.exact
    assert got.stderr == 0.0
    found = hidden_patterns(model, x, layer=layer, batch_size=batch_size)
    np.testing.assert_array_equal(found.bits(), np.array(bits))


def test_arrangement_of_lines_has_the_closed_form_count():
    # n lines in general position cut the plane into 1 + n + n(n-1)/2 cells; a fine grid
    # that covers every crossing visits each of them.
    angle = torch.arange(5, dtype=torch.float64) * math.pi / 5 + 0.1
    linear = nn.Linear(2, 5, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.stack([angle.cos(), angle.sin()], 1))
        linear.bias.copy_(torch.tensor([0.3, -0.2, 0.5, 0.1, -0.45], dtype=torch.float64))
    model = nn.Sequential(linear, nn.ReLU(), nn.Linear(5, 2, dtype=torch.float64))
    side = torch.linspace(-40, 40, 401, dtype=torch.float64)
    fine = torch.linspace(-3, 3, 601, dtype=torch.float64)
    grid = torch.cat([torch.cartesian_prod(side, side), torch.cartesian_prod(fine, fine)])
    assert float(activation_patterns(model, grid)) == 1 + 5 + 10


def test_all_70_000_patterns_are_told_apart():
    # Row i's pattern is i in binary: every row is distinct, and all-zero tails matter.
    n, width = 70_000, 24
    number = torch.arange(n)
    bits = (number[:, None] >> torch.arange(width)) & 1
    x = bits.to(torch.float32) * 2 - 1
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    assert float(activation_patterns(model, x)) == n
    twice = torch.cat([x[:100], x[:100], x[50:150]])
    assert float(activation_patterns(model, twice)) == 150


@pytest.mark.parametrize("units", [1, 7, 8, 9, 130])
def test_packing_on_a_device_agrees_with_numpy(units):
    bits = points(30, units, 6) > 0
    np.testing.assert_array_equal(_pack_on_device(bits), np.packbits(bits.numpy(), axis=1))


def test_zero_is_inactive_and_near_zero_is_reported():
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    x = torch.tensor([[0.0, 1.0], [-1.0, 1.0], [1e-9, 1.0]])
    got = activation_patterns(model, x)
    assert float(got) == 2  # (0, 1) twice and (1, 1)
    bits = hidden_patterns(model, x).bits()
    np.testing.assert_array_equal(bits, [[False, True], [False, True], [True, True]])
    assert got.detail["near_boundary"] == 1  # 1e-9 but not the exact zero


class Functional(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 4)
        self.how = how

    def forward(self, x):
        return self.second(self.how(self.first(x)))


RECTIFIERS = {
    "F.relu": F.relu,
    "F.relu inplace": lambda z: F.relu(z, inplace=True),
    "torch.relu": torch.relu,
    "method": lambda z: z.relu(),
    "in place": lambda z: z.relu_(),
    "clamp": lambda z: z.clamp(min=0),
    "clamp positional": lambda z: torch.clamp(z, 0.0),
    "clamp_": lambda z: z.clamp_(min=0.0),
    "clamp_min": lambda z: z.clamp_min(0),
    "maximum": lambda z: torch.maximum(z, torch.zeros_like(z)),
    "maximum swapped": lambda z: torch.maximum(torch.zeros(()), z),
    "max": lambda z: torch.max(torch.zeros_like(z), z),
    "threshold": lambda z: F.threshold(z, 0, 0),
    "leaky": lambda z: F.leaky_relu(z, 0.2),
    "module": nn.ReLU(),
    "module inplace": nn.ReLU(inplace=True),
    "leaky module": nn.LeakyReLU(0.3),
    "prelu": nn.PReLU(),
    "rrelu eval": nn.RReLU().eval(),
}


@pytest.mark.parametrize("how", RECTIFIERS.values(), ids=RECTIFIERS)
def test_every_way_to_write_a_rectifier_is_seen(how):
    model = Functional(how).eval()
    x = points(200, 3, 4, torch.float32)
    with torch.no_grad():
        expected = len(torch.unique(model.first(x) > 0, dim=0))
    assert len(activation_layers(model, x[:2])) == 1
    assert float(activation_patterns(model, x)) == expected


def test_other_clamps_are_not_activations():
    model = Functional(lambda z: F.relu(z.clamp(min=-3).clamp(min=0, max=9)).clamp(max=2)).eval()
    assert [entry.kind for entry in activation_layers(model, points(2, 3, 0, torch.float32))] == [
        "relu"
    ]


class Twice(nn.Module):
    """One ReLU module run twice, and registered before the layers that it follows."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.last, self.middle, self.first = nn.Linear(4, 3), nn.Linear(5, 4), nn.Linear(3, 5)

    def forward(self, x):
        return self.last(self.act(self.middle(self.act(self.first(x)))))


def test_layers_follow_the_order_of_execution():
    model, x = Twice().eval(), points(64, 3, 2, torch.float32)
    assert [entry.units for entry in activation_layers(model, x[:2])] == [5, 4]
    with torch.no_grad():
        first = model.first(x)
        second = model.middle(first.relu())
    assert float(activation_patterns(model, x, 0)) == len(torch.unique(first > 0, dim=0))
    assert float(activation_patterns(model, x, 1)) == len(torch.unique(second > 0, dim=0))


def test_layers_of_other_kinds_count_as_one_each():
    kinds = [nn.LeakyReLU(0.1), nn.GELU(), nn.PReLU(), nn.ReLU()]
    widths = [3, 4, 5, 6, 7]
    stages = [
        stage
        for i, kind in enumerate(kinds)
        for stage in (nn.Linear(widths[i], widths[i + 1]), kind)
    ]
    model = nn.Sequential(*stages, nn.Linear(7, 2)).eval()
    x = points(80, 3, 1, torch.float32)
    listed = [(entry.index, entry.kind, entry.units) for entry in activation_layers(model, x[:2])]
    assert listed == [(0, "leaky_relu", 4), (1, "gelu", 5), (2, "prelu", 6), (3, "relu", 7)]
    for index in (0, 2, 3):
        with torch.no_grad():
            z = model[: 2 * index + 1](x)
        expected = len(torch.unique(z > 0, dim=0))
        assert float(activation_patterns(model, x, index)) == expected
        assert float(activation_patterns(model, x, index - 4)) == expected


def test_a_convolution_counts_all_positions():
    torch_model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    ).eval()
    x = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    x = torch.cat([x, x[:10]])
    with torch.no_grad():
        z = torch_model[1](torch_model[0](x)).flatten(1)
    got = activation_patterns(torch_model, x)
    assert got.detail["units"] == 3 * 4 * 4
    assert float(got) == len(torch.unique(z > 0, dim=0)) == 40


def test_ensemble_equals_one_by_one():
    models = [mlp([3, 6, 5, 4], seed) for seed in range(4)]
    x = points(90, 3, 5)
    together = activation_patterns_ensemble(models, x, 0)
    assert list(together) == [float(activation_patterns(model, x, 0)) for model in models]


def test_free_regions_and_parameters_equal_set_arithmetic():
    model, train, unseen = mlp([2, 8, 6, 3], 7), points(150, 2, 8) * 0.7, points(300, 2, 9) * 3
    seen, found = reference_bits(model, train)[-1], reference_bits(model, unseen)[-1]
    free = set(found) - set(seen)
    assert len(free) > 2
    got = free_regions(model, train, unseen)
    assert float(got) == len(free)
    assert got.detail["free_points"] == sum(entry in free for entry in found)
    assert got.detail["shared_regions"] == len(set(found) & set(seen))
    assert got.detail["train_regions"] == len(set(seen))
    log = region_class_weakness(model, train, unseen)
    assert float(log) == pytest.approx(math.log(4 ** len(free)), rel=1e-14)
    size = 6 * 3 + 3
    expected = sum(max(0, size - seen.count(entry)) for entry in set(seen)) + len(free) * size
    assert float(free_parameters(model, train, unseen)) == expected
    assert max(region_counts(model, train).train) > size  # so that max(0, .) is exercised


def test_agreement_by_hand():
    class Table(nn.Module):
        def __init__(self, labels):
            super().__init__()
            self.logits = nn.Parameter(F.one_hot(torch.tensor(labels), 3).float())

        def forward(self, x):
            return self.logits[x[:, 0].long()]

    y = torch.tensor([0, 1, 2, 0])
    models = [Table([0, 1, 0, 1]), Table([0, 1, 2, 1]), Table([0, 0, 2, 0]), Table([0, 1, 2, 0])]
    got = ensemble_agreement(models, torch.arange(4.0)[:, None], y)
    # Net 0 errs on points 2 (3 of 3 others right) and 3 (2 of 3); net 1 on 3 (2 of 3);
    # net 2 on 1 (3 of 3); net 3 makes no mistake.
    np.testing.assert_allclose(got.values, [5 / 6, 2 / 3, 1.0, np.nan])
    assert got.detail["undefined"] == (3,)
    assert got.detail["errors"] == (2, 1, 1, 0)
    assert got.detail["pooled"] == pytest.approx((5 / 3 + 2 / 3 + 1) / 4)


def test_nothing_of_the_user_is_touched():
    model = mlp([3, 6, 5, 4], 0)
    model[1].train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x, before = points(30, 3, 1), torch.get_rng_state()
    kept = x.clone()
    activation_patterns(model, x)
    free_parameters(model, x, x + 1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(x, kept)
    assert model[1].training
    assert not model[0].training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(entry.grad is None and entry.requires_grad for entry in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("smooth", [nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ELU])
def test_smooth_activations_are_refused_by_name(smooth):
    model = mlp([3, 6, 4], 0, smooth)
    with pytest.raises(MeasureError, match=rf"(?i)'{smooth.__name__}'.*not piecewise linear"):
        activation_patterns(model, points(4, 3, 0))


def test_a_smooth_last_layer_still_has_countable_earlier_ones():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))
    with pytest.raises(MeasureError, match="can be counted: 0: relu of 4"):
        activation_patterns(model, points(4, 3, 0, torch.float32))
    assert float(activation_patterns(model, points(9, 3, 0, torch.float32), layer=0)) >= 1
    with pytest.raises(MeasureError, match=r"'hardtanh'.*more than two linear pieces"):
        activation_patterns(nn.Sequential(nn.Linear(3, 2), nn.ReLU6()), torch.zeros(2, 3))


def test_bad_input_is_refused():
    model, x = mlp([3, 6, 4], 0), points(5, 3, 0)
    with pytest.raises(MeasureError, match=r"layer=3 does not exist.*1 activation layers"):
        activation_patterns(model, x, 3)
    with pytest.raises(MeasureError, match="no activation"):
        activation_patterns(nn.Linear(3, 2), x.float())
    with pytest.raises(DataError, match="x holds NaN"):
        activation_patterns(model, x * float("nan"))
    with pytest.raises(DataError, match="x_unseen must be a tensor with at least one row"):
        free_regions(model, x, x[:0])
    huge = nn.Linear(3, 2)
    nn.init.constant_(huge.weight, 1e5)
    with pytest.raises(MeasureError, match="NaN or infinite pre-activations on rows 0 to 4"):
        activation_patterns(nn.Sequential(huge, nn.ReLU()), (x * 1e38).float())
    normed = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(MeasureError, match=r"'1' is in train mode.*eval"):
        activation_patterns(normed, x.float())
    dropping = Functional(lambda z: F.dropout(F.relu(z), 0.5)).eval()
    with pytest.raises(MeasureError, match=r"dropout in training mode"):
        activation_patterns(dropping, x.float())
    with pytest.raises(MeasureError, match="at least two networks"):
        ensemble_agreement([model], x, torch.zeros(5, dtype=torch.long))
    with pytest.raises(DataError, match="y_unseen must be"):
        ensemble_agreement([model, model], x, torch.zeros(4, dtype=torch.long))
    with pytest.raises(MeasureError, match="Network 1: layer=1"):
        activation_patterns_ensemble([mlp([3, 6, 6, 4], 0), model], x, 1)
