"""Width: would catch a share that is lost, a tensor left behind, a unit that should stay."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transforms_zoo import ZOO, build

from invariance.core._errors import TransformError, UsageError
from invariance.core._groups import Group
from invariance.symmetry import reduce_width, same_orbit
from invariance.transforms import DormantUnits, NeuronScaling, Permutation, SplitUnits

CONVOLUTIONAL = ["cnn", "depthwise", "resnet"]
DENSE = ["mlp", "mlp_tanh", "mlp_gelu", "linear_path"]


def gap(model: nn.Module, expected: Tensor, x: Tensor) -> float:
    """Largest difference of the outputs, relative to their largest entry."""
    return float((model(x).detach() - expected).abs().max() / expected.abs().max())


def diagonal(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Hessian diagonal of the mean cross-entropy by its definition."""
    named = dict(model.named_parameters())
    loss = nn.functional.cross_entropy(model(x), y)
    grads = torch.autograd.grad(loss, list(named.values()), create_graph=True)
    result = {}
    for (name, parameter), grad in zip(named.items(), grads, strict=True):
        entries = [
            torch.autograd.grad(g, parameter, retain_graph=True)[0].reshape(-1)[i]
            if g.requires_grad
            else torch.zeros(())
            for i, g in enumerate(grad.reshape(-1))
        ]
        result[name] = torch.stack([e.double() for e in entries]).reshape(parameter.shape).detach()
    return result


@pytest.mark.parametrize("name", [*DENSE, *CONVOLUTIONAL])
@pytest.mark.parametrize("count", [1, 9])
def test_splitting_keeps_the_function(name: str, count: int) -> None:
    model, x, _ = build(name)
    before = copy.deepcopy(model.state_dict())
    applied = SplitUnits(count, seed=3).apply(model, x)
    expected = model(x).detach()
    assert float((applied.model(x).detach() - expected).abs().max()) <= 1e-12 * float(
        expected.abs().max()
    )
    assert not applied.detail["refused"]
    assert len(applied.detail["units"]) == {"mlp": 2, "cnn": 3, "resnet": 4}.get(name, 2)
    for done in applied.detail["units"].values():
        source, share = np.array(done["source"]), np.array(done["share"])
        assert share.min() > 0
        totals = np.bincount(source, share)
        assert totals == pytest.approx(np.ones_like(totals))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert sum(p.numel() for p in applied.model.parameters()) > sum(
        p.numel() for p in model.parameters()
    )
    # Other inputs than the one it was verified on.
    other = 3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    torch.testing.assert_close(applied.model(other), model(other), rtol=1e-11, atol=1e-11)


def test_modules_know_their_new_sizes() -> None:
    model, x, _ = build("cnn")
    new = SplitUnits(2)(model, x)
    assert (new[0].out_channels, new[3].in_channels, new[3].out_channels) == (6, 6, 7)
    assert (new[4].num_features, new[5].num_parameters, new[7].in_features) == (7, 7, 28)
    assert (new[7].out_features, new[9].in_features) == (8, 8)
    assert new[4].running_var.shape == (7,)
    model, x, _ = build("depthwise")
    new = SplitUnits(2)(model, x)
    assert (new[2].groups, new[2].in_channels, new[2].out_channels) == (6, 6, 6)


@pytest.mark.parametrize("name", ["mlp", "linear_path", "depthwise"])
def test_action_predicts_the_hessian_diagonal(name: str) -> None:
    model, x, y = build(name)
    applied = SplitUnits(2, seed=1).apply(model, x)
    assert applied.action is not None
    predicted = applied.action.diagonal(diagonal(model, x, y))
    measured = diagonal(applied.model, x, y)
    assert predicted.keys() == measured.keys()
    for key, value in measured.items():
        torch.testing.assert_close(predicted[key], value, rtol=1e-8, atol=1e-12)


def test_no_action_where_units_are_curved() -> None:
    model, x, _ = build("mlp_tanh")
    applied = SplitUnits(1).apply(model, x)
    assert applied.action is None
    assert applied.detail["curved"] == ("0.weight", "2.weight")


def test_power_of_two_shares() -> None:
    model, x, _ = build("mlp", rows=3)
    applied = SplitUnits(15, power_of_two=True).apply(model, x)
    for done in applied.detail["units"].values():
        assert all(np.log2(share).is_integer() for share in done["share"])


@pytest.mark.parametrize("name", [*DENSE, *CONVOLUTIONAL])
def test_dormant_units_keep_the_function(name: str) -> None:
    model, x, _ = build(name)
    applied = DormantUnits(2, seed=1).apply(model, x)
    expected = model(x).detach()
    assert float((applied.model(x).detach() - expected).abs().max()) <= 1e-13 * float(
        expected.abs().max()
    )
    assert applied.action is None
    moved = DormantUnits(2, seed=2, move=True).apply(applied.model, x)
    assert float((moved.model(x).detach() - expected).abs().max()) <= 1e-13 * float(
        expected.abs().max()
    )
    shapes = {key: value.shape for key, value in applied.model.state_dict().items()}
    assert {key: value.shape for key, value in moved.model.state_dict().items()} == shapes
    changed = [
        key
        for key, value in moved.model.state_dict().items()
        if not torch.equal(value, applied.model.state_dict()[key])
    ]
    assert changed
    assert set(moved.detail["units"]) == set(applied.detail["units"])


def test_dormant_units_are_new_features() -> None:
    """Their incoming weights are neither zero nor a copy, in every layer."""
    model, x, _ = build("mlp")
    new = DormantUnits(2, seed=1)(model, x)
    features = torch.relu(new[0](x))
    assert features.shape == (6, 9)
    assert float(new[0].weight[7:].detach().abs().min()) > 0
    assert bool((new[2].weight[:, 7:] == 0).all())
    assert bool((new[4].weight[:, 6:] == 0).all())
    assert torch.equal(new[0].weight[:7], model[0].weight)


def test_only_named_groups() -> None:
    model, x, _ = build("mlp")
    assert SplitUnits(1, groups=["2.weight"])(model, x)[0].out_features == 7
    assert DormantUnits(1, groups=["0.weight"])(model, x)[2].out_features == 6
    with pytest.raises(UsageError, match=r"Did you mean '2.weight'"):
        SplitUnits(1, groups=["2.wieght"])(model, x)


class HardCoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)).reshape(len(x), 6))


class Averaged(nn.Module):
    """A mean over the units that no parameter shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        return self.last(hidden) + hidden.mean(1, keepdim=True)


class TestRefusals:
    def test_hard_coded_sizes(self) -> None:
        with pytest.raises(TransformError, match="hard-codes their number"):
            SplitUnits(1)(HardCoded(), torch.randn(4, 5))

    @pytest.mark.parametrize("transform", [SplitUnits(1), DormantUnits(1)])
    def test_units_that_are_averaged(self, transform: SplitUnits | DormantUnits) -> None:
        with pytest.raises(TransformError, match="changed the function"):
            transform(Averaged(), torch.randn(4, 5))

    def test_grouped_convolutions(self) -> None:
        model = nn.Sequential(
            nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1, groups=2), nn.Flatten()
        )
        with pytest.raises(TransformError, match="grouped convolution"):
            SplitUnits(1)(model, torch.randn(2, 4, 3, 3))

    def test_layer_norm(self) -> None:
        model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3))
        with pytest.raises(TransformError, match="LayerNorm '1' works on all units"):
            SplitUnits(1)(model, torch.randn(4, 5))

    def test_partly_possible_networks_say_what_was_left_out(self) -> None:
        model, x, _ = build("attention")
        applied = SplitUnits(1).apply(model, x)
        assert list(applied.detail["units"]) == ["mlp.0.weight"]
        assert "LayerNorm 'norm1'" in applied.detail["refused"]["embed.weight"]

    def test_nothing_to_move(self) -> None:
        model, x, _ = build("mlp")
        with pytest.raises(TransformError, match="Insert one first"):
            DormantUnits(1, move=True)(model, x)

    def test_counts(self) -> None:
        for make in (SplitUnits, DormantUnits):
            with pytest.raises(TransformError, match="at least 1"):
                make(0)


def test_repr_seed_and_group() -> None:
    for transform in (
        SplitUnits(2, seed=3),
        SplitUnits(1, groups=["0.weight"], power_of_two=True),
        DormantUnits(2, seed=1, move=True, groups=["0.weight"]),
    ):
        assert repr(eval(repr(transform))) == repr(transform)
    model, x, _ = build("mlp")
    one, two, other = (SplitUnits(2, seed=s)(model, x).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)
    assert SplitUnits.group is Group.UNIT_SPLIT
    assert DormantUnits.group is Group.DORMANT_UNITS


class TestReduceWidth:
    @pytest.mark.parametrize("name", [*DENSE, *CONVOLUTIONAL])
    def test_undoes_splits_and_insertions_in_any_disguise(self, name: str) -> None:
        model, x, _ = build(name)
        wide = SplitUnits(2, seed=1)(DormantUnits(2, seed=2)(SplitUnits(3)(model, x), x), x)
        if name not in ("mlp_tanh", "mlp_gelu"):
            wide = NeuronScaling(spread=5.0, seed=4)(wide, x)
        wide = Permutation(seed=5)(wide, x)
        applied = reduce_width(wide, x)
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        assert {key: value.shape for key, value in applied.model.state_dict().items()} == shapes
        expected = model(x).detach()
        assert gap(applied.model, expected, x) <= 1e-11
        assert same_orbit(model, applied.model, x).related

    @pytest.mark.parametrize("name", list(ZOO))
    def test_leaves_a_network_without_redundancy_alone(self, name: str) -> None:
        model, x, _ = build(name)
        applied = reduce_width(model, x)
        assert applied.detail["removed"] == {}
        assert applied.verification is not None
        assert applied.verification.bitwise

    def test_flipped_twins_of_odd_units_merge(self) -> None:
        model, x, _ = build("mlp_tanh")
        wide = SplitUnits(2, seed=1, groups=["0.weight"])(model, x)
        with torch.no_grad():
            wide[0].weight[7:] *= -1
            wide[0].bias[7:] *= -1
            wide[2].weight[:, 7:] *= -1
        assert reduce_width(wide, x).detail["removed"] == {"0.weight": {"duplicate": 2}}

    def test_constant_units_move_into_biases(self) -> None:
        model, x, _ = build("mlp")
        with torch.no_grad():
            model[0].weight[2] = 0.0
            model[0].bias[2] = 1.5
        applied = reduce_width(model, x)
        assert applied.detail["removed"] == {"0.weight": {"constant": 1}}
        torch.testing.assert_close(applied.model(x), model(x), rtol=0, atol=1e-13)
        expected = model[2].bias + 1.5 * model[2].weight[:, 2]
        torch.testing.assert_close(applied.model[2].bias, expected)

    def test_constants_behind_padding_stay(self) -> None:
        model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1))
        with torch.no_grad():
            model[0].weight[1] = 0.0
            model[0].bias[1] = 1.0
        applied = reduce_width(model, torch.randn(2, 2, 4, 4))
        assert applied.detail["removed"] == {}
        assert "padding" in applied.detail["left_alone"]["0.weight (constant)"]

    def test_some_zero_weights_certify_nothing(self) -> None:
        model, x, _ = build("mlp")
        with torch.no_grad():
            model[2].weight[0, 3] = 0.0
            model[0].weight[1, 2] = 0.0
        applied = reduce_width(model, x)
        assert applied.detail["removed"] == applied.detail["left_alone"] == {}

    def test_near_twins_stay(self) -> None:
        model, x, _ = build("mlp")
        wide = SplitUnits(1, seed=1, groups=["0.weight"])(model, x)
        with torch.no_grad():
            wide[0].weight[7] *= 1 + 1e-9 * torch.arange(5, dtype=torch.float64)
        assert reduce_width(wide, x).detail["removed"] == {}

    def test_one_unit_is_left(self) -> None:
        model, x, _ = build("mlp")
        with torch.no_grad():
            model[4].weight.zero_()
        applied = reduce_width(model, x)
        assert applied.model[2].out_features == 1
        torch.testing.assert_close(applied.model(x), model(x))


@pytest.mark.parametrize("transform", [SplitUnits, DormantUnits])
@pytest.mark.parametrize("count", [0, -1, 1.5, "2", True])
def test_a_count_is_a_whole_number(transform, count):
    with pytest.raises(TransformError, match=r"count must be an integer, at least 1\. Got"):
        transform(count)
