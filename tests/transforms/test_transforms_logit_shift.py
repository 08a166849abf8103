"""Logit shifts: would catch a shift of one class only, or of a layer that is not the last."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transforms_zoo import ZOO, build

from invariance.core._errors import TransformError
from invariance.core._groups import Group
from invariance.symmetry.analysis._logits import logit_shift_group
from invariance.transforms import LogitShift


@pytest.mark.parametrize("name", list(ZOO))
def test_softmax_stays_and_logits_move(name: str) -> None:
    model, x, _ = build(name)
    before = copy.deepcopy(model.state_dict())
    applied = LogitShift(1, scale=2.0).apply(model, x)
    evidence = applied.verification
    assert evidence is not None
    assert evidence.compared == "softmax"
    assert evidence.labels_changed == 0
    old, new = model(x), applied.model(x)
    torch.testing.assert_close(new.softmax(-1), old.softmax(-1), rtol=0, atol=1e-13)
    shift = new - old
    assert float(shift.detach().abs().max()) > 0.1
    torch.testing.assert_close(shift, shift[:, :1].expand_as(shift), rtol=0, atol=1e-12)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_every_derivative_of_the_loss_stays() -> None:
    """A translation: gradient and Hessian, entry by entry, in the dense."""
    model, x, y = build("mlp_tanh")
    applied = LogitShift(0).apply(model, x)

    def derivatives(net: nn.Module) -> tuple[Tensor, Tensor]:
        named = dict(net.named_parameters())
        sizes = [p.numel() for p in named.values()]
        flat = torch.cat([p.detach().reshape(-1) for p in named.values()])

        def loss(vector: Tensor) -> Tensor:
            pieces = vector.split(sizes)
            values = {
                n: piece.reshape(p.shape)
                for (n, p), piece in zip(named.items(), pieces, strict=True)
            }
            out = torch.func.functional_call(net, values, (x,))
            return nn.functional.cross_entropy(out, y)

        return torch.func.jacrev(loss)(flat), torch.func.jacrev(torch.func.jacrev(loss))(flat)

    for old, new in zip(derivatives(model), derivatives(applied.model), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-9, atol=1e-12)
    assert applied.action is not None
    for name, act in applied.action.parameters.items():
        assert act.source == name
        assert act.index is None
        assert bool((act.gradient == 1).all())


def test_group_says_what_moves() -> None:
    model, x, _ = build("mlp")
    group = logit_shift_group(model, (x,))
    assert not isinstance(group, str)
    assert group.producers == ("4.weight", "4.bias")
    assert (group.size, group.dof) == (4, 7)


def test_inverse_and_repr() -> None:
    model, x, _ = build("mlp")
    shift = LogitShift(5, scale=0.5)
    assert repr(eval(repr(shift))) == repr(shift) == "LogitShift(seed=5, scale=0.5)"
    back = shift.inverse()
    assert repr(eval(repr(back))) == repr(back) == "LogitShift(seed=5, scale=0.5, inverted=True)"
    assert repr(back.inverse()) == repr(shift)
    assert repr(LogitShift(2).inverse()) == "LogitShift(seed=2, inverted=True)"
    back = shift.inverse()(shift(model, x), x)
    for key, value in back.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], rtol=0, atol=1e-14)
    assert LogitShift.group is Group.LOGIT_SHIFT
    without = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)).double()
    moved = LogitShift()(without)
    torch.testing.assert_close(moved(x).softmax(-1), without(x).softmax(-1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


class AddsInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.head(x)
        out += x
        return out


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.head(x)
        return out, out.square()


class TestRefusals:
    @pytest.mark.parametrize(
        ("model", "reason"),
        [
            (nn.Sequential(nn.Linear(4, 3), nn.Softplus()), "by `1` Softplus"),
            (Tied(), "read in 2 places"),
            (AddsInPlace(), "not by a linear layer directly"),
            (TwoOutputs(), "2 outputs"),
            (nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), "computed"),
        ],
    )
    def test_where_the_last_layer_is_not_free(self, model: nn.Module, reason: str) -> None:
        with pytest.raises(TransformError, match=reason):
            LogitShift()(model, torch.ones(2, 4))

    def test_scale(self) -> None:
        with pytest.raises(TransformError, match="scale must be positive"):
            LogitShift(scale=0.0)
