"""Hand-made modules with the answer written out: group counts, degrees of freedom, stops.

Would catch: an operation whose rule lets something through that it must stop, or stops what
it must let through. Every module's groups are also applied with random elements, and the
scaling degrees of freedom are compared with a dense null space where that is small enough.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from symmetry_modules import MODULES
from symmetry_reference import (
    affine_norm_channels,
    assert_groups_hold,
    diagonal_null_directions,
    enlarge_eps,
    randomize,
)
from torch import nn

import invariance as inv
import invariance.symmetry.analysis._symmetries as engine
from invariance.core._errors import TracingError, TransformError
from invariance.symmetry import SCALING_KINDS, SymmetryKind, symmetries


@pytest.fixture(autouse=True)
def _rules_do_not_fail(monkeypatch):
    """A rule that trips over its arguments is a stop for users, and a failure here."""
    monkeypatch.setattr(engine, "_RULE_FAILURES", (engine.NotUnderstoodError,))


def batches(shape):
    def make(seed):
        stream = torch.Generator().manual_seed(seed)
        return (torch.randn(shape, dtype=torch.float64, generator=stream),)

    return make


@pytest.mark.parametrize("case", MODULES, ids=lambda case: case.name)
def test_groups_hold_and_are_complete(case):
    model = enlarge_eps(randomize(case.build(), 0))
    make = batches((8, *case.shape))
    found = assert_groups_hold(model, make(0), [make(1), make(2)])
    counts = {kind.value: found.count(kind) for kind in SymmetryKind if found.count(kind)}
    for kind in ("logit_shift", "translation"):  # these have tests of their own
        counts.pop(kind, None)
    assert counts == case.groups
    assert found.dof(*SCALING_KINDS) == case.dof
    null = diagonal_null_directions(model, make) - affine_norm_channels(model)
    assert null == case.dof + case.extra_null


def test_table_names_kinds_parameters_and_reasons():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2))
    found = symmetries(model, torch.randn(2, 3))
    text = str(found)
    assert "scaling" in text
    assert "permutation" in text
    assert "0.weight, 0.bias" in text
    assert (
        "`3` GELU is not positively homogeneous: no scaling through it; permutation still holds"
        in text
    )
    assert max(len(line) for line in text.splitlines()) <= 100
    data = found.to_dict()
    assert data["groups"][0]["producers"] == ["0.weight", "0.bias"]
    assert [group.kind for group in found.groups] == [
        SymmetryKind.SCALING,
        SymmetryKind.PERMUTATION,
        SymmetryKind.PERMUTATION,
        SymmetryKind.LOGIT_SHIFT,
    ]


@pytest.mark.parametrize(
    ("activation", "operation"),
    [
        (nn.GELU(), "GELU"),
        (nn.Softplus(), "Softplus"),
        (nn.SiLU(), "SiLU"),
        (nn.Sigmoid(), "Sigmoid"),
        (nn.ReLU6(), "ReLU6"),
        (nn.ELU(), "ELU"),
    ],
)
def test_activations_that_are_not_homogeneous_stop_scaling_by_name(activation, operation):
    model = nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2))
    found = symmetries(model, torch.randn(2, 3))
    assert found.dof(*SCALING_KINDS) == 0
    assert found.count(SymmetryKind.PERMUTATION) == 1
    stops = [stop for stop in found.stops if SymmetryKind.SCALING in stop.kinds]
    assert stops[0].place == "1"
    assert stops[0].operation == operation


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.fft.rfft(x).abs(),
        lambda x: x / torch.linalg.inv(torch.eye(4).to(x) + 1e-3 * (x.T @ x)[:4, :4]).sum(),
        torch.special.bessel_j0,
        lambda x: torch.cummax(x, 1).values,
    ],
)
def test_unknown_operations_stop_everything_by_name(function):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.LazyLinear(2)

        def forward(self, x):
            return self.b(function(torch.relu(self.a(x))).to(x.dtype))

    model = Model()
    model(torch.randn(2, 3))
    found = symmetries(model, torch.randn(2, 3))
    assert not [group for group in found.groups if "a.weight" in group.producers]
    assert any("not an operation whose symmetries are known" in stop.reason for stop in found.stops)


def test_a_users_function_with_a_known_name_is_unknown():
    from torch.overrides import handle_torch_function, has_torch_function_unary

    def relu(x):
        if has_torch_function_unary(x):
            return handle_torch_function(relu, (x,), x)
        return torch.exp(x)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(relu(self.a(x)))

    found = symmetries(Model(), torch.randn(2, 3))
    assert found.dof(*SCALING_KINDS) == 0


def test_data_dependent_control_flow_names_the_line():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 4)

        def forward(self, x):
            h = self.a(x)
            if h.sum() > 0:
                return h
            return -h

    with pytest.raises(TracingError, match=r"test_symmetry_engine\.py:\d+.*torch\.where"):
        symmetries(Model(), torch.randn(2, 3))


def test_control_flow_on_shapes_and_flags_is_followed():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)])

        def forward(self, x):
            assert x.dim() == 2
            if x.shape[1] != 3:
                raise ValueError("three features")
            for i, layer in enumerate(self.layers):
                x = layer(x) if i == 2 else F.relu(layer(x), inplace=True)
            return x

    assert symmetries(Model(), torch.randn(2, 3)).dof(SymmetryKind.SCALING) == 8


def test_wrong_input_names_the_line():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(TracingError, match="example_input"):
        symmetries(model, torch.randn(2, 5))
    with pytest.raises(TransformError, match="NaN"):
        symmetries(model, torch.full((2, 3), torch.nan))
    with pytest.raises(TransformError, match="empty"):
        symmetries(model, torch.zeros(0, 3))
    with pytest.raises(TransformError, match="Pass example_input"):
        symmetries(nn.Sequential(nn.Conv2d(1, 2, 3)))


@pytest.mark.parametrize("module", [nn.BatchNorm1d(4), nn.Dropout(0.5)])
def test_train_mode_is_refused(module):
    model = nn.Sequential(nn.Linear(3, 4), module, nn.Linear(4, 2))
    with pytest.raises(TransformError, match=r"`1` is in train mode.*eval"):
        symmetries(model, torch.randn(2, 3))
    model.eval()
    assert symmetries(model, torch.randn(2, 3)).groups


def test_frozen_and_unused_parameters_are_reported():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(7, 7)
            self.a.weight.requires_grad_(False)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    found = symmetries(Model(), torch.randn(2, 3))
    assert found.unused == ("c.weight", "c.bias")
    assert found.frozen == ("a.weight",)
    assert found.dof(SymmetryKind.SCALING) == 4


def test_a_view_overwritten_in_place_is_not_trusted():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(8, 2)

        def forward(self, x):
            h = self.a(x)
            view = h.view(-1, 2, 2)
            view.add_(1.0)
            return self.b(torch.cat([h, h.relu()], 1))

    model = randomize(Model(), 0)
    found = assert_groups_hold(model, batches((4, 3))(0), [batches((4, 3))(1)])
    assert found.dof(*SCALING_KINDS) == 0


def test_nothing_of_the_user_is_touched():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    model[0].train()
    model(torch.randn(5, 3)).sum().backward()
    before = {n: (t.clone(), t._version) for n, t in model.state_dict(keep_vars=True).items()}
    grads = [p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    str(symmetries(model))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert model[0].training
    assert not model[1].training
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert torch.equal(before[name][0], tensor)
        assert before[name][1] == tensor._version
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, model.parameters(), strict=True))
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_classes_without_a_canonical_order_stay():
    """Out_i = h_i + h_p(i): nothing tells the three members of a cycle apart."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x):
            h = self.a(x)
            return self.b(torch.relu(h + h[:, [1, 2, 0, 5, 3, 4]]))

    model = randomize(Model(), 0)
    found = assert_groups_hold(model, batches((4, 3))(0), [batches((4, 3))(1)])
    assert found.count(SymmetryKind.PERMUTATION) == 0
    assert found.dof(SymmetryKind.SCALING) == 2


def test_functional_dropout_in_train_mode_is_refused():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 4)

        def forward(self, x):
            return F.dropout(self.a(x), 0.5, self.training)

    with pytest.raises(TransformError, match="train mode"):
        symmetries(Model(), torch.randn(2, 3))


def test_pixels_in_any_order_keep_their_addresses():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3), nn.Linear(36, 2)
            self.order = torch.randperm(36, generator=torch.Generator().manual_seed(0))

        def forward(self, x):
            return self.b(torch.relu(self.a(x)).flatten(1)[:, self.order])

    model = randomize(Model(), 0)
    make = batches((3, 1, 5, 5))
    found = assert_groups_hold(model, make(0), [make(1)])
    assert found.of(SymmetryKind.PERMUTATION)[0].size == 4


class _Sequence(nn.Module):
    """Eight rows of a made-up matrix would pass for a sequence of eight tokens."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        return self.head((x + self.attend(x, x, x, need_weights=False)[0]).mean(1))


class _MeanOfTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.embed(x).relu().mean(1))


def test_no_input_is_made_up_for_a_module_that_reads_sequences():
    with pytest.raises(inv.TransformError, match=r"`attend` \(Multihead.*Pass example_input"):
        inv.transforms.Permutation()(_Sequence().eval())
    # The mean would run over channels, and eight rows would pass for eight channels.
    with pytest.raises(inv.TracingError, match="Pass an example_input"):
        inv.transforms.Permutation()(_MeanOfTokens().eval())


@pytest.mark.parametrize("thing", ["a model", None, 3])
def test_what_is_no_module_is_refused(thing):
    with pytest.raises(inv.TransformError, match=r"Expected an nn.Module\. Got"):
        inv.transforms.NeuronScaling()(thing, torch.randn(2, 3))
    with pytest.raises(inv.TransformError, match=r"Expected an nn.Module\. Got"):
        inv.symmetries(thing, torch.randn(2, 3))


class _PartlyShared(nn.Module):
    """Units 0 and 1 are computed twice, once through a slice of the weight."""

    def __init__(self, whole_first):
        super().__init__()
        self.a = nn.Linear(3, 4, bias=False)
        self.o, self.p = nn.Linear(4, 3), nn.Linear(2, 3)
        self.whole_first = whole_first

    def forward(self, x):
        def sliced():
            return F.linear(x, self.a.weight[:2]).relu()

        if self.whole_first:
            h, g = self.a(x).relu(), sliced()
        else:
            g, h = sliced(), self.a(x).relu()
        return self.o(h) + self.p(g)


@pytest.mark.parametrize("whole_first", [True, False])
def test_a_slice_of_a_weight_and_the_whole_agree_where_both_reach(whole_first):
    model = randomize(_PartlyShared(whole_first), 0)
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = symmetries(model, x)
    groups = {(g.kind, g.size, frozenset(g.consumers)) for g in found.groups}
    assert {(k, n) for k, n, _ in groups} == {
        (SymmetryKind.SCALING, 2),
        (SymmetryKind.PERMUTATION, 2),
    }
    both, one = frozenset({"o.weight", "p.weight"}), frozenset({"o.weight"})
    assert {c for k, _, c in groups if k is SymmetryKind.SCALING} == {both, one}
