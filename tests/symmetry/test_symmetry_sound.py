"""What the engine cannot see or understand is refused by name, never claimed.

Would catch: a computation behind the back of torch functions that counts as a constant, a
cast that counts as the identity, an output that is not pinned because it hides in an object,
a claim that holds on one example only.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from symmetry_reference import assert_groups_hold, randomize
from torch import nn

from invariance.core._errors import TracingError, TransformError
from invariance.core._modules import clone
from invariance.symmetry import SCALING_KINDS, SymmetryKind, symmetries
from invariance.symmetry.analysis._symmetries import Analysis
from invariance.transforms import FoldBatchNorm, NeuronScaling, Permutation, SplitUnits
from invariance.transforms import _acting as acting

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Between(nn.Module):
    """Two linear layers with something between them."""

    def __init__(self, function, width=4):
        super().__init__()
        self.a, self.b = nn.Linear(3, width), nn.Linear(width, 2)
        self.function = function

    def forward(self, x):
        return self.b(self.function(self.a(x)))


def swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


def through_data(x):
    other = torch.zeros_like(x)
    other.data = x
    return torch.sigmoid(other)


def through_set(x):
    other = torch.zeros_like(x)
    other.set_(x)
    return torch.sigmoid(other)


def through_a_view_of_out(x):
    whole = torch.zeros(x.numel(), dtype=x.dtype)
    torch.sigmoid(x, out=whole.view(x.shape))
    return whole.view(x.shape) + 0


def through_a_view_of_a_tracked_out(x):
    h = x.clone()
    view = h.view(-1)
    torch.sigmoid(x, out=h)
    return view.view(x.shape) * 1.0


def through_a_new_storage(x):
    view = x.view(x.shape)
    x.data = torch.sigmoid(x)
    return x + view


def through_jacobian(x):
    return torch.func.grad(lambda h: torch.sigmoid(h).sum())(x)


def _outside_of_the_module(function):
    """A scripted function cannot be copied with the module that holds it."""
    return lambda x: function(x)  # noqa: PLW0108


HIDDEN = {
    "a scripted function": lambda: _outside_of_the_module(torch.jit.script(swish)),
    "a scripted module": lambda: torch.jit.script(Swish()),
    "a traced module": lambda: torch.jit.trace(Swish(), torch.randn(2, 4)),
    "a traced layer": lambda: torch.jit.trace(nn.Linear(4, 4).double(), torch.randn(2, 4).double()),
    "vmap": lambda: torch.func.vmap(lambda row: row * torch.sigmoid(row)),
    "grad": lambda: through_jacobian,
    "data": lambda: through_data,
    "set_": lambda: through_set,
    "a view of out=": lambda: through_a_view_of_out,
    "a view of a tracked out=": lambda: through_a_view_of_a_tracked_out,
    "a new storage": lambda: through_a_new_storage,
    "an autograd function": lambda: _Square.apply,
}


@pytest.mark.parametrize("what", HIDDEN)
def test_what_happens_out_of_sight_is_refused_by_name(what):
    model = Between(HIDDEN[what]()).double().eval()
    make = torch.Generator().manual_seed(0)
    x, probe = torch.randn(2, 5, 3, generator=make, dtype=torch.float64)
    found = assert_groups_hold(model, (x,), [(probe,)])
    assert found.dof(*SCALING_KINDS, SymmetryKind.LINEAR_MIXING) == 0
    assert all(
        group.consumers for group in found.groups if group.kind is not SymmetryKind.LOGIT_SHIFT
    )
    assert any(SymmetryKind.SCALING in stop.kinds for stop in found.stops)


def test_a_wholly_scripted_network_is_refused_by_name():
    model = torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    found = symmetries(model, torch.randn(2, 3))
    assert not found.groups
    assert any("out of sight" in stop.reason for stop in found.stops)


def test_parameters_that_a_closure_hides_from_the_running_function():
    weight = nn.Parameter(torch.randn(4))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.g = nn.Linear(3, 4), nn.Linear(4, 2), weight

        def forward(self, x):
            return self.b(torch.func.vmap(lambda row: row.tanh() * self.g)(self.a(x)))

    model = randomize(Model(), 0)
    x, probe = torch.randn(2, 5, 3, dtype=torch.float64)
    assert assert_groups_hold(model, (x,), [(probe,)]).count(SymmetryKind.SCALING) == 0


@pytest.mark.parametrize(
    "read",
    [
        lambda h: h if "1" in repr(h) else -h,
        lambda h: h if h.data_ptr() else -h,
        lambda h: h if len(h.untyped_storage()) else -h,
        torch.from_dlpack,
        lambda h: torch.from_numpy(h.detach().numpy()),
    ],
)
def test_reads_of_the_data_are_refused(read):
    with pytest.raises(TracingError, match="reads the data itself"):
        symmetries(Between(read), torch.randn(2, 3))


@pytest.mark.parametrize(
    "cast",
    [
        lambda h: h.to(torch.int64).to(h.dtype),
        lambda h: h.int().to(h.dtype),
        lambda h: h.type(torch.int32).to(h.dtype),
        lambda h: h.type_as(torch.zeros(1, dtype=torch.int64)).to(h.dtype),
        lambda h: h.bool().to(h.dtype),
        lambda h: h.long().to(h.dtype),
        lambda h: torch.nan_to_num(h * 1e308) * 1e-308,
    ],
)
def test_casts_to_integers_are_not_the_identity(cast):
    model = randomize(Between(lambda h: cast(4 * h)), 0)
    x, probe = torch.randn(2, 50, 3, dtype=torch.float64)
    found = assert_groups_hold(model, (x,), [(probe,)])
    assert found.dof(*SCALING_KINDS) == 0
    assert found.count(SymmetryKind.PERMUTATION) == 1


@dataclass
class Pair:
    logits: torch.Tensor
    extra: object


class Slotted:
    __slots__ = ("hidden",)

    def __init__(self, hidden):
        self.hidden = hidden


WRAPPERS = {
    "dataclass": Pair,
    "dataclass in a dataclass": lambda y, h: Pair(y, Pair(y, h)),
    "namespace": lambda y, h: SimpleNamespace(y=y, nested={"h": SimpleNamespace(h=h)}),
    "set": lambda y, h: {y, h},
    "slots": lambda y, h: (y, Slotted(h)),
    "object in a list": lambda y, h: [y, Pair(h, None)],
}


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.a, self.b, self.wrap = nn.Linear(3, 4), nn.Linear(4, 2), wrap

    def forward(self, x):
        h = self.a(x).relu()
        return self.wrap(self.b(h), h)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_outputs_inside_objects_are_kept(wrap):
    model = Wrapped(WRAPPERS[wrap])
    assert not symmetries(model, torch.randn(2, 3)).groups


def test_what_is_written_into_an_argument_is_output():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x, cache):
            h = self.a(x).relu()
            cache.append(h)
            return self.b(h)

    cache = []
    found = symmetries(Model(), (torch.randn(2, 3), cache))
    assert not [group for group in found.groups if group.kind is not SymmetryKind.LOGIT_SHIFT]


class Table(nn.Module):
    """Adds the first rows of a table; one row has one factor and no order."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.pos = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        h = self.a(x) + self.pos[: x.shape[1]]
        if x.shape[0] == 1:
            h = h.relu()
        return self.b(h.tanh() if x.shape[1] > 1 else h)


def test_several_examples_give_what_holds_on_all():
    model = randomize(Table(), 0)
    wide, narrow, one = (torch.randn(n, t, 3).double() for n, t in ((2, 6), (3, 1), (1, 1)))
    assert (
        symmetries(model, narrow).count(SymmetryKind.LINEAR_MIXING) == 0
    )  # the table is read in part
    assert symmetries(model, [narrow, one]).count(SymmetryKind.SIGN_FLIP) == 0
    for examples in ([wide, narrow], [narrow, wide], [wide, narrow, one]):
        found = symmetries(model, examples)
        assert found.dof(*SCALING_KINDS) == 0
        assert found.count(SymmetryKind.PERMUTATION) == 1
        moved = Permutation(1).apply(model, examples)
        assert moved.verification.rows == sum(len(example) for example in examples)
        for probe in examples:
            assert torch.allclose(moved.model(probe), model(probe), atol=1e-12)
    assert "(2, 6, 3)" in str(symmetries(model, [wide, narrow]))
    assert "(3, 1, 3)" in str(symmetries(model, [wide, narrow]))


def test_several_alike_examples_change_nothing():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    one = symmetries(model, torch.randn(2, 3))
    two = symmetries(model, [torch.randn(2, 3), torch.randn(7, 3)])
    assert [g.to_dict() for g in one.groups] == [g.to_dict() for g in two.groups]
    assert one.count(SymmetryKind.LINEAR_MIXING) == 1


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, ids):
        if 7 in ids:
            raise ValueError("seven")
        if (ids == 3).any() and ids.max().item() > 1:
            return self.o(self.e(ids).relu())
        return self.o(self.e(ids).tanh())


def test_decisions_on_integer_inputs_are_allowed_with_a_remark():
    found = symmetries(Tokens(), torch.tensor([[1, 3, 2]]))
    assert found.count(SymmetryKind.SCALING) == 1
    assert "decides alike" in str(found)
    both = symmetries(Tokens(), [torch.tensor([[1, 3, 2]]), torch.tensor([[1, 2]])])
    assert both.count(SymmetryKind.SCALING) == 0
    assert both.count(SymmetryKind.PERMUTATION) == 1


def test_a_buffer_that_is_read_elsewhere_is_not_rewritten():
    class Model(nn.Module):
        def __init__(self, read):
            super().__init__()
            self.a, self.n, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
            self.read = read

        def forward(self, x):
            h = self.n(self.a(x)).relu()
            return self.b(h + self.n.running_mean.mean() if self.read else h)

    x, probe = torch.randn(2, 5, 3, dtype=torch.float64)
    counts = []
    for read in (False, True):
        model = randomize(Model(read), 0)
        found = assert_groups_hold(model, (x,), [(probe,)])
        counts.append(found.dof(SymmetryKind.BATCHNORM_WEIGHT_SCALE))
    assert counts == [4, 0]


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.n = nn.BatchNorm1d(4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.python_calls = 0

    def forward(self, x):
        self.calls += 1
        self.python_calls += 1
        return self.b(self.n(self.a(x)).relu())


@pytest.mark.parametrize(
    "transform", [NeuronScaling(2.0, 0), Permutation(0), SplitUnits(1), FoldBatchNorm()]
)
def test_no_counter_moves(transform):
    model = Counting().eval()
    before = copy.deepcopy(model.state_dict())
    new = transform.apply(model, torch.randn(5, 3)).model
    assert torch.equal(model.state_dict()["calls"], before["calls"])
    assert (model.python_calls, new.python_calls, int(new.calls)) == (0, 0, 0)


def test_grouped_convolution_of_many_cells_permutes():
    model = nn.Sequential(
        nn.Conv2d(3, 256, 1), nn.ReLU(), nn.Conv2d(256, 256, 1, groups=2), nn.ReLU(),
        nn.Conv2d(256, 2, 1)
    )  # fmt: skip
    x = torch.randn(2, 3, 4, 4)
    applied = Permutation(0).apply(model, x)
    assert not torch.equal(applied.model[2].weight, model[2].weight)
    assert applied.verification.max_abs_logit_diff < 1e-5


def test_a_wrong_claim_names_the_group_and_the_layers(monkeypatch):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    model = randomize(model, 0)
    found = symmetries(model)
    wrong = next(group for group in found.groups if group.kind is SymmetryKind.SCALING)
    lame = replace(wrong, legs=wrong.legs[:-1])
    groups = tuple(lame if group is wrong else group for group in found.groups)
    monkeypatch.setattr(
        acting, "analyse", lambda m, x: Analysis(clone(m), replace(found, groups=groups), (x,))
    )
    with pytest.raises(
        TransformError,
        match=r"scaling of 5 units made by `2\.weight`.*2\.weight, 2\.bias.*Please report",
    ):
        NeuronScaling(2.0).apply(model, torch.ones(2, 3).double())


def test_nothing_unseen_in_a_plain_network():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    assert F.relu(model(torch.ones(1, 3))).shape == (1, 2)
    assert symmetries(model).dof(*SCALING_KINDS) == 4
