"""Catches: a kind of map that a check, the gate, the soak or a strategy forgets."""

import math

import pytest
import torch

import invariance as inv
from invariance.core._groups import ABOUT, Group
from invariance.testing.strategies import DRAWABLE
from invariance.transforms._members import default_transforms, draw_member, members

T = inv.transforms


@pytest.fixture(scope="module")
def network():
    return inv.models.mlp([5, 4, 3, 2], batch_norm=True, dtype=torch.float64).eval()


def test_every_kind_is_described_and_has_one_transform():
    assert set(ABOUT) == set(Group)
    assert [kind.group for kind in T.KINDS] == [g for g in Group if ABOUT[g].members != "none"]


@pytest.mark.parametrize("kind", T.KINDS, ids=lambda kind: kind.__name__)
def test_members_are_of_their_kind_decided_by_the_seed_and_in_every_check(kind, network):
    first = repr(draw_member(kind.group, network, 1))
    assert first == repr(draw_member(kind.group, network, 1))
    assert draw_member(kind.group, network, 1).groups == (kind.group,)
    if ABOUT[kind.group].members == "many":
        assert len({repr(draw_member(kind.group, network, seed)) for seed in range(4)}) > 1
    names = [entry.name for entry in default_transforms(network)]
    assert kind.__name__ in names
    assert [m.groups for m in members(network, [kind.group], 0)] == [
        (kind.group,) for name in names if name == kind.__name__
    ]


def test_strategies_draw_what_a_relu_network_can_admit():
    assert set(DRAWABLE) == set(Group) - {Group.LINEAR_MIXING, Group.COORDINATES}


def test_what_perceptrons_with_relu_admit_is_what_their_symmetries_say():
    """With and without BatchNorm, by trying a member of each kind."""
    for norm in (False, True):
        model = inv.models.mlp([5, 4, 3], batch_norm=norm, dtype=torch.float64).eval()
        for group in DRAWABLE:
            expected = ABOUT[group].relu_mlp == "all" or norm
            try:
                draw_member(group, model, 3).apply(model, torch.rand(6, 5, dtype=torch.float64))
                admitted = True
            except inv.TransformError:
                admitted = False
            assert admitted == expected, (group, norm)


@pytest.mark.parametrize("layers", [1, 2, 3, 5, 9])
def test_default_scalings_touch_every_hidden_layer_and_multiply_to_one(layers):
    model = inv.models.mlp([3] * (layers + 1))
    bitwise, general = T.LayerScaling.default_members(model, 0)
    for scaling in (bitwise, general):
        assert math.prod(scaling.factors) == pytest.approx(1.0, rel=1e-12)
        assert len(scaling.factors) == layers
    assert all(math.frexp(factor)[0] == 0.5 for factor in bitwise.factors)
    cumulative = [math.prod(bitwise.factors[:k]) for k in range(1, layers)]
    assert all(factor != 1.0 for factor in cumulative)
