"""Exact blocks of any module against dense Hessians: convolutions, skips, shared weights.

Would catch: patches unfolded in another order than the kernel, groups mixed up, in-place
activations that move a tap past themselves, a shared weight whose uses are summed outside the
square, curvature of a parameter without influence, and a smooth network taken for a piecewise
linear one.
"""

from __future__ import annotations

import pytest
import torch
from curvature_cases import ARCHITECTURES, CASES
from dense_reference import dense_blocks, dense_relative_flatness
from torch import nn
from torch.nn import functional as F

from invariance.core._errors import MeasureError
from invariance.curvature import exact_curvature, hessian_trace
from invariance.curvature.exact._linearity import analyse_linearity

RTOL = 1e-10

#: Not piecewise linear over all, and exact all the same: linear in each parameter (prelu), or
#: an MLP whose activations' second derivatives the sweep carries along.
ALSO_EXACT = ("prelu", "tanh", "gelu-softplus", "output-sigmoid")


def assert_matches_dense(model, x, y, loss, reference, **options):
    blocks = dense_blocks(model, x, y, reference)
    result = exact_curvature(
        model, x, y, loss=loss, relative_flatness=True, diagonal=True, **options
    )
    assert list(result.traces) == [n for n, p in model.named_parameters() if p.requires_grad]
    for name, trace in result.traces.items():
        block = blocks[name, name]
        assert trace == pytest.approx(block.trace().item(), rel=RTOL, abs=1e-12), name
        torch.testing.assert_close(
            result.diagonal[name],
            block.diagonal().view_as(result.diagonal[name]),
            rtol=RTOL,
            atol=1e-12,
        )
    for name, value in result.relative_flatness.items():
        block = blocks[f"{name}.weight".lstrip("."), f"{name}.weight".lstrip(".")]
        expected = dense_relative_flatness(model.get_submodule(name), block)
        assert value == pytest.approx(expected, rel=RTOL, abs=1e-12), name
    plain = exact_curvature(model, x, y, loss=loss, **options)
    assert plain.traces == pytest.approx(dict(result.traces), rel=1e-12, abs=1e-14)
    assert not plain.diagonal
    assert not plain.relative_flatness
    return result


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.piecewise_linear or c.architecture in ALSO_EXACT],
    ids=lambda c: c.id,
)
def test_table_of_cases(case):
    model, x, y = case.build()
    assert_matches_dense(model, x, y, case.loss, case.reference_loss)


class Conv(nn.Module):
    def __init__(self, layer, size):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 1) if isinstance(layer, nn.Conv2d) else nn.Identity()
        self.layer = layer
        self.act = nn.ReLU(inplace=True)
        self.size = size
        self.head = nn.Linear(size, 3)

    def forward(self, x):
        return self.head(self.act(self.layer(self.first(x))).flatten(1)[:, : self.size])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Conv2d(4, 3, (3, 2), stride=(2, 1), padding=(1, 2)), (1, 5, 6)),
        (lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=(1, 2), padding="same"), (1, 4, 5)),
        (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect"), (1, 4, 5)),
        (lambda: nn.Conv2d(4, 2, 3, padding=2, padding_mode="circular", bias=False), (1, 4, 4)),
        (lambda: nn.Conv2d(4, 8, 3), (1, 3, 3)),  # one position
        (lambda: nn.Conv1d(2, 4, 3, padding="same", groups=2), (2, 6)),
        pytest.param(
            lambda: nn.Conv1d(2, 3, 4, padding="same"),
            (2, 5),
            marks=pytest.mark.filterwarnings("ignore:Using padding='same'"),
        ),
        (lambda: nn.Conv1d(2, 4, 4, padding="valid", dilation=2), (2, 9)),
        (lambda: nn.Conv3d(2, 2, (2, 1, 2), stride=(1, 2, 1), padding=(0, 1, 1)), (2, 3, 3, 2)),
        (lambda: nn.Conv3d(2, 4, 2, groups=2, padding_mode="replicate", padding=1), (2, 2, 2, 2)),
    ],
)
def test_convolutions(layer, shape):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        kernel = layer()
        model = Conv(kernel, 8).double()
        x = torch.randn(6, *shape, dtype=torch.float64)
        y = torch.randint(0, 3, (6,))
    assert_matches_dense(model, x, y, "cross_entropy", F.cross_entropy)


class Parallel(nn.Module):
    """One layer on two halves of the input: linear in it, with cross terms between uses."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(3, 4)
        self.conv = nn.Conv1d(1, 2, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        left, right = x[:, :3], x[:, 3:]
        a = torch.relu(self.shared(left)) + 0.5 * self.shared(right)
        b = self.conv(left[:, None]).flatten(1) - self.conv(right[:, None]).flatten(1)
        return self.head(torch.cat([a, b], 1))


class ParallelTied(nn.Module):
    """Two layers, each called once, that hold one weight: linear in it, used twice."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 3)
        self.right.weight = self.left.weight

    def forward(self, x):
        return self.head(torch.relu(self.left(x[:, :3]) + 2 * self.right(x[:, 3:])))


class Scaled(nn.Module):
    """Parameters of its own, gates computed from the input, comparisons, max and where."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.gain = nn.Parameter(torch.randn(5))
        self.table = nn.Embedding(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        gate = torch.sigmoid(x[:, :5])  # a function of the input only
        h = self.body(x) * self.gain * gate
        h = torch.where(h > 0, h, -0.3 * h) + (h > 0.1).double() * 0.2 * h
        h = torch.maximum(h, h.flip(1)) + self.table((x[:, 0] > 0).long())
        return self.head(h)


class Tokens(nn.Module):
    """A linear layer over several positions of each row."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(2, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = torch.relu(self.embed(x.view(-1, 3, 2)))
        return self.head(self.norm(h.transpose(1, 2)).amax(2))


class RowsFolded(nn.Module):
    """Folds positions into the batch: the tap cannot see rows, per-row gradients can."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(2, 4)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(torch.relu(self.embed(x.reshape(-1, 2))).reshape(-1, 12))


@pytest.mark.parametrize("kind", [Parallel, ParallelTied, Scaled, Tokens, RowsFolded])
def test_modules_of_the_users_own(kind):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = kind().double().eval()
        x = torch.randn(7, 6, dtype=torch.float64)
        y = torch.randint(0, 3, (7,))
    assert_matches_dense(model, x, y, "cross_entropy", F.cross_entropy)


def test_chunks_do_not_matter():
    case = next(c for c in CASES if c.architecture == "conv-max-pool")
    model, x, y = case.build()
    whole = exact_curvature(model, x, y)
    for budget in (1, 20_000):
        chunked = exact_curvature(model, x, y, memory_budget=budget)
        assert chunked.traces == pytest.approx(dict(whole.traces), rel=1e-12)


@pytest.mark.parametrize("size", ["small", "several triangular blocks"])
def test_the_two_paths_agree_on_an_mlp(size):
    model, x, y = next(c for c in CASES if c.architecture == "relu").build()
    if size != "small":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(180, 150), nn.ReLU(), nn.Linear(150, 3)).double()
            x = torch.randn(9, 180, dtype=torch.float64)
    fast = exact_curvature(model, x, y, relative_flatness=True)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x)

    general = exact_curvature(Wrapped(), x, y, relative_flatness=True)
    for name, value in fast.traces.items():
        assert general.traces[f"inner.{name}"] == pytest.approx(value, rel=1e-12)
    for name, value in fast.relative_flatness.items():
        assert general.relative_flatness[f"inner.{name}"] == pytest.approx(value, rel=1e-12)


SMOOTH = {name for name, (_, _, linear) in ARCHITECTURES.items() if not linear} - {"prelu"}


@pytest.mark.parametrize("architecture", sorted(SMOOTH))
def test_linear_parameters_of_a_smooth_network_are_told_from_the_others(architecture):
    # The verdict of the graph must agree with the truth: the network's own second derivative
    # in a parameter vanishes or not.
    model, x, y = next(c for c in CASES if c.architecture == architecture).build()
    linearity = analyse_linearity(model, x[:1])
    mixing = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        second = dense_blocks(model, x, y, lambda f, _: (f @ mixing).sum())
    assert linearity.reasons
    for name, _ in model.named_parameters():
        curved = second[name, name].abs().max().item() > 1e-12
        assert curved == (name in linearity.reasons), name


def test_a_smooth_network_is_refused_by_name_and_its_linear_part_is_not():
    model, x, y = next(c for c in CASES if c.architecture == "layer-norm").build()
    with pytest.raises(MeasureError, match=r"not piecewise linear in '0\.weight'.*layer_norm"):
        exact_curvature(model, x, y)
    blocks = dense_blocks(model, x, y, F.cross_entropy)
    last = exact_curvature(model, x, y, parameters=["3"])
    assert last.trace == pytest.approx(
        sum(blocks[n, n].trace().item() for n in ("3.weight", "3.bias")), rel=RTOL
    )


class SerialTied(nn.Module):
    """One layer applied twice in a row: quadratic in its weight, though nothing is smooth."""

    def __init__(self):
        super().__init__()
        self.again, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.again(torch.relu(self.again(x)))))


class Gated(nn.Module):
    """A product of two functions of one weight."""

    def __init__(self):
        super().__init__()
        self.gate, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = torch.relu(self.gate(x))
        return self.head(h * h.flip(1))


@pytest.mark.parametrize(("kind", "name"), [(SerialTied, "again"), (Gated, "gate")])
def test_products_of_a_parameter_with_itself_are_seen(kind, name):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = kind().double()
        x = torch.randn(6, 4, dtype=torch.float64)
    y = torch.arange(6) % 3
    with pytest.raises(MeasureError, match=rf"'{name}\.weight': it occurs in both factors"):
        exact_curvature(model, x, y)
    blocks = dense_blocks(model, x, y, F.cross_entropy)
    found = hessian_trace(model, x, y)
    for parameter, _ in model.named_parameters():
        assert found.parts[parameter] == pytest.approx(
            blocks[parameter, parameter].trace().item(), rel=1e-9
        )


def test_untraceable_control_flow_is_refused():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x) if float(x.sum()) > 0 else self.head(x) ** 2

    with pytest.raises(MeasureError, match="could not be traced"):
        exact_curvature(Branching(), torch.randn(3, 4), torch.tensor([0, 1, 2]))


def test_rows_that_interact_are_refused():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x - x.mean(0))

    with pytest.raises(MeasureError, match="other rows"):
        exact_curvature(Centred(), torch.randn(3, 4), torch.tensor([0, 1, 2]))


def test_parameters_without_influence_are_zero_and_named():
    model, x, y = next(c for c in CASES if c.architecture == "unused-layer").build()
    estimate = hessian_trace(model, x, y)
    assert estimate.parts["spare.weight"] == 0.0
    assert "spare.weight" in estimate.method


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Linear])
def test_a_softmax_over_one_class_has_no_curvature(kind):
    first = nn.Conv1d(1, 2, 2) if kind is nn.Conv1d else nn.Linear(3, 4)
    model = nn.Sequential(first, nn.Flatten(), nn.Linear(4, 1))
    x = torch.randn(5, 1, 3) if kind is nn.Conv1d else torch.randn(5, 3)
    y = torch.zeros(5, dtype=torch.long)
    found = exact_curvature(model, x, y, diagonal=True, relative_flatness=True)
    assert set(found.traces.values()) == {0.0} == set(found.relative_flatness.values())
    assert not any(part.any() for part in found.diagonal.values())


def test_hooks_are_removed_even_on_errors():
    model, x, _ = next(c for c in CASES if c.architecture == "conv-max-pool").build()
    with pytest.raises(Exception, match="out of range"):
        exact_curvature(model, x, torch.full((len(x),), 7))
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_works_under_no_grad():
    model, x, y = next(c for c in CASES if c.architecture == "residual-concat").build()
    expected = float(hessian_trace(model, x, y))
    with torch.no_grad():
        assert float(hessian_trace(model, x, y)) == expected
