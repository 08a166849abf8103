"""Models and losses as people bring them: each value against a dense float64 Hessian, or refused.

Catches: a copy that computes with the original's weights (compiled calls, closures, globals),
a loss that is taken for its base class or that reads the parameters, layers whose output
somebody changes from outside, inputs that are worked on in place.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from dense_reference import dense_matrix, dense_relative_flatness
from torch import nn
from torch.nn import functional as F

import invariance as inv
from invariance.core._errors import MeasureError, ModelError
from invariance.core._modules import clone
from invariance.curvature import (
    GGNOperator,
    HessianOperator,
    hessian_diagonal,
    hessian_eigenvalues_ensemble,
    resolve_loss,
)
from invariance.curvature.losses._custom import CustomLoss

ROWS, FEATURES, CLASSES = 12, 5, 3


class Skip(nn.Module):
    """No plain chain: the branch and the stream meet again."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(FEATURES, 4)
        self.second = nn.Linear(4, 4)
        self.last = nn.Linear(4, CLASSES)

    def forward(self, x):
        h = self.first(x).relu()
        return self.last(h + self.second(h).relu())


def data(*shape):
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(ROWS, *(shape or (FEATURES,)), generator=draws, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (ROWS,), generator=draws)


def built(model):
    draws = torch.Generator().manual_seed(5)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=draws).double())
    return model


def agree(model, reference, x, y, truth=F.cross_entropy, **options):
    """Every measure that is made of the Hessian, against the dense one of ``reference``."""
    names = [name for name, _ in model.named_parameters()]
    dense = dense_matrix(reference, x, y, truth)
    theta = torch.cat([p.detach().flatten() for p in reference.parameters()])
    spectrum = torch.linalg.eigvalsh(dense)
    assert spectrum[-1] > 1e-3  # a test of zeros would show nothing
    measured = inv.measures
    close = functools.partial(pytest.approx, rel=1e-9)
    trace = measured.hessian_trace(model, x, y, **options)
    assert trace.exact
    assert float(trace) == close(float(dense.trace()))
    found = hessian_diagonal(model, x, y, **options)
    assert [found[name].shape for name in names] == [p.shape for p in reference.parameters()]
    flat = torch.cat([found[name].flatten() for name in names])
    assert torch.allclose(flat, dense.diagonal(), rtol=1e-9, atol=1e-12)
    adaptive = measured.adaptive_trace(model, x, y, **options)
    assert float(adaptive) == close(float((theta.square() * dense.diagonal()).sum()))
    top = measured.hessian_eigenvalues(model, x, y, **options)
    assert float(top) == pytest.approx(float(spectrum[-1]), rel=1e-5)
    size = measured.hessian_norm(model, x, y, **options)
    assert float(size) == close(float(dense.norm()))


def flatness_agrees(model, reference, x, y, name):
    start = 0
    for parameter, value in reference.named_parameters():
        stop = start + value.numel()
        if parameter == f"{name}.weight":
            block = dense_matrix(reference, x, y, F.cross_entropy)[start:stop, start:stop]
        start = stop
    expected = dense_relative_flatness(reference.get_submodule(name), block)
    found = inv.measures.relative_flatness(model, x, y, layer=name)
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("chain", [False, True])
def test_a_compiled_model_is_measured_at_its_own_weights(chain):
    model = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, CLASSES))
    model = built(model if chain else Skip())
    reference = copy.deepcopy(model)
    model.compile(backend="eager")
    x, y = data()
    agree(model, reference, x, y)
    flatness_agrees(model, reference, x, y, "2" if chain else "last")
    assert model._compiled_call_impl is not None  # the user's own stays compiled
    assert clone(model)._compiled_call_impl is None


def closure(model):
    inner = model.forward

    def forward(x):
        return 1.5 * inner(x) + model.last.bias

    model.forward = forward


def default(model):
    model.forward = lambda x, inner=model.forward, last=model.last: 1.5 * inner(x) + last.bias


def keyword(model):
    def forward(x, *, inner=model.forward):
        return 1.5 * inner(x) + model.last.bias

    model.forward = forward


def partial(model):
    def forward(owner, x):
        return 1.5 * type(owner).forward(owner, x) + owner.last.bias

    model.forward = functools.partial(forward, model)


def hook(model):
    model.register_forward_hook(lambda module, args, output: 1.5 * output + model.last.bias)


class Outside(Skip):
    """What the closures above make of a :class:`Skip`."""

    def forward(self, x):
        return 1.5 * super().forward(x) + self.last.bias


@pytest.mark.parametrize("bind", [closure, default, keyword, partial, hook])
def test_what_is_set_on_the_instance_is_bound_to_the_copy(bind):
    model, reference = built(Skip()), built(Outside())
    bind(model)
    x, y = data()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    agree(model, reference, x, y)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_copy_that_computes_with_the_original_is_refused():
    x, y = data()
    for number in range(2):
        model = built(Skip())
        holder = {"model": model}

        def forward(x, holder=holder):
            return type(holder["model"]).forward(holder["model"], x)

        model.forward = forward
        if number:  # frozen parameters too, which no gradient would betray
            model.requires_grad_(False)
        with pytest.raises(ModelError, match=r"does not use its own parameters.*'first.weight'"):
            HessianOperator(model, x, y, parameters=["last"])


def test_a_layer_with_a_forward_of_its_own_is_no_plain_layer():
    model = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, CLASSES))
    reference = built(copy.deepcopy(model))
    model = built(model)
    layer = model[2]
    layer.forward = lambda h: F.linear(2 * h, layer.weight, layer.bias)

    class Twice(nn.Linear):
        def forward(self, h):
            return F.linear(2 * h, self.weight, self.bias)

    reference[2].__class__ = Twice
    x, y = data()
    agree(model, reference, x, y)


class Focal(nn.CrossEntropyLoss):
    """A subclass with a forward of its own."""

    def forward(self, outputs, y):
        p = outputs.softmax(1).gather(1, y[:, None])[:, 0]
        return -((1 - p) ** 2 * p.log()).mean()


class Quartic(nn.MSELoss):
    def forward(self, outputs, y):
        return (outputs - y).pow(4).mean()


class Renamed(nn.CrossEntropyLoss):
    """A subclass that computes what its base does."""


@pytest.mark.parametrize("chain", [False, True])
def test_a_subclass_of_a_loss_is_what_its_forward_says(chain):
    model = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, CLASSES))
    model = built(model if chain else Skip())
    x, y = data()
    agree(model, model, x, y, Focal(), loss=Focal())
    targets = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0)).double()
    agree(model, model, x, targets, Quartic(), loss=Quartic())
    hooked = nn.CrossEntropyLoss()
    hooked.register_forward_hook(lambda module, args, value: value.square() + value)
    with pytest.raises(MeasureError, match="not the mean over rows"):
        inv.measures.hessian_trace(model, x, y, loss=hooked)
    assert not isinstance(resolve_loss(Renamed()), CustomLoss)


def test_a_loss_that_reads_the_parameters_is_refused():
    model = built(Skip())
    x, y = data()

    def decayed(outputs, y):
        penalty = sum(p.square().sum() for p in model.parameters())
        return F.cross_entropy(outputs, y) + 1e-3 * penalty

    def detached(outputs, y):
        return F.cross_entropy(outputs, y) + 1e-3 * model.last.weight.detach().view(-1).norm()

    measured = inv.measures
    for loss in (decayed, detached):
        for measure in (
            measured.hessian_trace,
            measured.hessian_eigenvalues,
            measured.relative_flatness,
            measured.sam_sharpness,
            measured.gaussian_sharpness,
            measured.worst_case_sharpness,
        ):
            with pytest.raises(MeasureError, match=r"depends on the model's parameters.*\.weight'"):
                measure(model, x, y, loss=loss)

    def device(outputs, y):  # it reads them, and its value is the same whatever they are
        like = torch.zeros_like(model.last.bias)
        return F.cross_entropy(outputs + like, y)

    agree(model, model, x, y, loss=device)


class InPlace(Skip):
    def forward(self, x):
        return super().forward(x.mul_(2).add_(1))


class OutOfPlace(Skip):
    def forward(self, x):
        return super().forward(x * 2 + 1)


def test_a_forward_that_works_in_place_leaves_the_data_alone():
    model, reference = built(InPlace()), built(OutOfPlace())
    x, y = data()
    kept = x.clone()
    agree(model, reference, x, y)
    measured = inv.measures
    for measure in (
        measured.sam_sharpness,
        measured.worst_case_sharpness,
        measured.fisher_rao_norm,
        measured.fisher_rao_closed_form,
        measured.information_geometric_sharpness,
        measured.relative_flatness,
        measured.standardized_relative_flatness,
        measured.path_norm_margin,
    ):
        try:
            found = float(measure(model, x, y))
        except inv.InvarianceError:
            continue
        finally:
            assert torch.equal(x, kept), measure.__name__
        assert found == pytest.approx(float(measure(reference, x, y)), rel=1e-9)
    operator = HessianOperator(model, x, y, mode="dual")
    dense = dense_matrix(reference, x, y, F.cross_entropy)
    assert torch.allclose(operator.to_dense(), dense, rtol=1e-9, atol=1e-12)
    assert torch.equal(x, kept)


class Covering(nn.Module):
    """Convolutions whose kernel is as large as their map (the C5 of LeNet-5)."""

    def __init__(self, groups=1):
        super().__init__()
        self.c1 = nn.Conv2d(2, 4, 3)
        self.c5 = nn.Conv2d(4, 6, 4, groups=groups)
        self.last = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.last(self.c5(self.c1(x).relu()).relu().flatten(1))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_that_covers_its_map(groups):
    model = built(Covering(groups))
    x, y = data(2, 6, 6)
    agree(model, model, x, y)
    flatness_agrees(model, model, x, y, "c5")
    weights = {name: p.detach().square() for name, p in model.named_parameters()}
    assert hessian_diagonal(model, x, y)["c5.weight"].shape == weights["c5.weight"].shape
    lowest = inv.measures.minimum_sharpness(model, x, y)
    assert 0 < float(lowest) < float(inv.measures.hessian_trace(model, x, y))
    scaled = inv.transforms.NeuronScaling(spread=3.0, seed=1)(model, x[:2])
    assert float(inv.measures.minimum_sharpness(scaled, x, y)) == pytest.approx(float(lowest))
    flat = nn.Sequential(nn.Unflatten(1, (2, 6, 6)), model)
    parts = ("train", "test", "unseen")
    task = inv.Task(
        "covering",
        CLASSES,
        **{f"x_{part}": x.flatten(1).float() for part in parts},
        **{f"y_{part}": y for part in parts},
    )
    scaling = inv.transforms.NeuronScaling(spread=3.0, seed=1)
    report = inv.check(flat, task, measures=["hessian_trace"], transforms=[scaling])
    assert [row.verdict for row in report.rows] == ["law"]


class Steered(Skip):
    """What the hooks below make of a :class:`Skip`."""

    def forward(self, x):
        h = self.first(x.tanh()).relu()
        return self.last(h + 3 * self.second(h).relu()) * 2 + self.last.bias


def test_a_tap_sees_what_the_layers_below_see():
    model, reference = built(Skip()), built(Steered())
    model.first.register_forward_pre_hook(lambda module, args: (args[0].tanh(),))
    model.second.register_forward_hook(lambda module, args, output: 3 * output)
    model.last.register_forward_hook(lambda module, args, output: output.mul_(2) + module.bias)
    x, y = data()
    agree(model, reference, x, y)
    for name in ("first", "second", "last"):
        flatness_agrees(model, reference, x, y, name)
    with pytest.raises(MeasureError, match="hooks of its own"):
        inv.measures.standardized_relative_flatness(model, x, y, layer="last")
    with pytest.raises(MeasureError, match="something acts after it"):
        inv.measures.pair_proxy(model, x, y, x + 1)


@pytest.mark.parametrize("chain", [False, True])
def test_a_hook_on_every_module_is_part_of_the_function(chain):
    model = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, CLASSES))
    model = built(model if chain else Skip())

    def steer(module, args, output):
        return 2 * output if isinstance(module, nn.Linear) else None

    x, y = data()
    reference = copy.deepcopy(model)
    for module in reference.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(steer)
    handle = nn.modules.module.register_module_forward_hook(steer)
    try:
        values = inv.measures.hessian_trace(model, x, y), hessian_diagonal(model, x, y).trace
    finally:
        handle.remove()
    expected = float(dense_matrix(reference, x, y, F.cross_entropy).trace())
    assert float(values[0]) == pytest.approx(expected, rel=1e-9)
    assert values[1] == pytest.approx(expected, rel=1e-9)


def test_a_layer_may_be_called_by_the_name_of_its_argument():
    class Named(Skip):
        def forward(self, x):
            h = self.first(input=x).relu()
            return self.last(input=h + self.second(input=h).relu())

    model, reference = built(Named()), built(Skip())
    x, y = data()
    agree(model, reference, x, y)
    flat = inv.measures.standardized_relative_flatness
    assert float(flat(model, x, y)) == pytest.approx(float(flat(reference, x, y)), rel=1e-12)
    features = inv.measures.pair_proxy(reference, x, y, x + 1)
    assert float(inv.measures.pair_proxy(model, x, y, x + 1)) == float(features)


class Normalised(nn.Module):
    """Weight normalisation by torch, as a parametrisation or (once) as a hook."""

    def __init__(self, wrap, activation):
        super().__init__()
        self.first = wrap(nn.Linear(FEATURES, 4))
        self.second = wrap(nn.Linear(4, 4), dim=1)
        self.last = wrap(nn.Linear(4, CLASSES), dim=None)
        self.activation = activation

    def forward(self, x):
        h = self.activation(self.first(x))
        return self.last(h + self.activation(self.second(h)))


class NormalisedByHand(nn.Module):
    """The same function of the same parameters, in plain operations."""

    def __init__(self, model):
        super().__init__()
        self.values = nn.ParameterList([p.detach().clone() for p in model.parameters()])
        self.order = [name for name, _ in model.named_parameters()]
        self.activation = model.activation

    def layer(self, name, h, over):
        own = dict(zip(self.order, self.values, strict=True))
        g = own[f"{name}.parametrizations.weight.original0"]
        v = own[f"{name}.parametrizations.weight.original1"]
        size = v.square().sum(over, keepdim=True).sqrt()
        return h @ (v * g / size).T + own[f"{name}.bias"]

    def forward(self, x):
        h = self.activation(self.layer("first", x, 1))
        h = h + self.activation(self.layer("second", h, 0))
        return self.layer("last", h, (0, 1))


@pytest.mark.parametrize("activation", [torch.relu, torch.tanh])
@pytest.mark.parametrize("mode", ["graph", "dual"])
def test_weight_norm_is_differentiated_by_its_formula(activation, mode):
    wrap = nn.utils.parametrizations.weight_norm
    model = built(Normalised(wrap, activation))
    reference = NormalisedByHand(model).double()
    x, y = data()
    assert torch.allclose(model(x), reference(x), rtol=1e-12)
    agree(model, reference, x, y)
    dense = dense_matrix(reference, x, y, F.cross_entropy)
    operator = HessianOperator(model, x, y, mode=mode)
    found = operator.rows(torch.eye(len(dense), dtype=torch.float64))
    assert torch.allclose(found, dense, rtol=1e-9, atol=1e-12)
    theta = torch.cat([p.detach().flatten() for p in reference.parameters()])
    fisher = GGNOperator(reference, x, y).to_dense()
    norm = inv.measures.fisher_rao_norm(model, x, y)
    assert float(norm) == pytest.approx(float(theta @ fisher @ theta), rel=1e-9)


class _Cubed(torch.autograd.Function):
    """x^3 whose second derivative mixes up entries."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 3 * (x**2 + 5 * (x - x.detach()).roll(1, -1))


class Cubed(Skip):
    def forward(self, x):
        return super().forward(x) + 0.1 * _Cubed.apply(self.first(x))[:, :CLASSES]


class Fused(Skip):
    """Torch's fused kernel, called where nobody replaces it."""

    def forward(self, x):
        size = self.second.weight.norm(dim=1, keepdim=True).detach()
        weight, _ = torch.ops.aten._weight_norm_interface(self.second.weight, size, 0)
        return super().forward(x) + F.linear(self.first(x).tanh(), weight)[:, :CLASSES]


@pytest.mark.parametrize(
    ("kind", "named"), [(Cubed, "_Cubed"), (Fused, r"aten\._weight_norm_interface\.default")]
)
def test_a_matrix_that_is_not_symmetric_is_refused_with_the_operation(kind, named):
    model = built(kind())
    x, y = data()
    measured = inv.measures
    for measure in (measured.hessian_trace, measured.hessian_eigenvalues, measured.hessian_norm):
        for dtype in (torch.float64, torch.float32):
            with pytest.raises(ModelError, match=f"{named} has a second derivative that is not"):
                measure(clone(model).to(dtype), x.to(dtype), y)
    with pytest.raises(ModelError, match="not symmetric"):
        hessian_eigenvalues_ensemble([model, clone(model)], x, y)


def test_round_off_is_no_asymmetry():
    # A softmax that is saturated leaves few digits of the products, and no operation to blame.
    x, y = data()
    for dtype in (torch.float32, torch.float64):
        for factor in (1.0, 10.0, 30.0):
            model = built(Skip()).to(dtype)
            with torch.no_grad():
                model.last.weight.mul_(factor)
            HessianOperator(model, x.to(dtype), y).matvec(torch.ones(59, dtype=dtype))


def geometric_reference(model, x, y):
    """``g^T F^+ g`` of the summed loss from dense matrices, scaled columns and all."""
    names = [name for name, _ in model.named_parameters()]
    state = {name: p.detach() for name, p in model.named_parameters()}
    jacobian = torch.func.jacrev(lambda s: torch.func.functional_call(model, s, (x,)))(state)
    jacobian = torch.cat([jacobian[name].flatten(2) for name in names], 2)
    p = model(x).detach().softmax(1)
    s = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    fisher = torch.einsum("nkd,nkl,nle->de", jacobian, s, jacobian)
    g = torch.einsum("nk,nkd->d", p - F.one_hot(y, p.shape[1]), jacobian)
    return float(g @ torch.linalg.pinv(fisher, rtol=1e-10, hermitian=True) @ g)


@pytest.mark.parametrize("rows", [3, ROWS])  # of full rank, and not (59 parameters)
def test_information_geometric_sharpness_in_every_precision_and_scale(rows):
    measure = inv.measures.information_geometric_sharpness
    x, y = data()
    x, y = x[:rows].repeat(rows // 3, 1), y[:rows].repeat(rows // 3)
    model = built(Skip())
    expected = geometric_reference(model, x, y)
    found = measure(model, x, y)
    assert found.exact
    assert float(found) == pytest.approx(expected, rel=1e-7)
    chain = built(nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, CLASSES)))
    for dtype, close in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        small = clone(chain).to(dtype)
        before = float(measure(small, x, y))
        for factor in (2.0**20, 1e6, 1e-6):
            moved = inv.transforms.LayerScaling([factor, 1 / factor])(small, x[:2].to(dtype))
            assert float(measure(moved, x, y)) == pytest.approx(before, rel=close)


@pytest.mark.parametrize("factor", [1.0, 1e3])
def test_the_residual_of_information_geometric_sharpness_covers_round_off(factor):
    # Inputs that are almost on a line leave directions that round-off turns.
    measure = inv.measures.information_geometric_sharpness
    draws = torch.Generator().manual_seed(5)
    x, y = data()
    x = x[:, :1] * x[:1] + 1e-5 * torch.randn(x.shape, generator=draws, dtype=x.dtype)
    chain = built(nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, CLASSES)))
    with torch.no_grad():
        chain[2].weight.mul_(factor**0.25)
    x, y = x.repeat(4, 1), torch.cat([y.roll(places) for places in range(4)])
    found = measure(chain, x, y)
    assert found.detail["rank"] < found.detail["rows"]
    moved = []
    for _ in range(20):
        order = torch.randperm(len(y), generator=draws)
        near = clone(chain)
        with torch.no_grad():
            for p in near.parameters():
                p.mul_(1 + torch.randn(p.shape, generator=draws, dtype=p.dtype) * 2.0**-53)
        moved.append(abs(float(measure(near, x[order], y[order])) - float(found)))
    assert max(moved) <= found.residual <= 1e-6 * float(found)


def test_information_geometric_sharpness_at_the_edges():
    measure = inv.measures.information_geometric_sharpness
    x, y = data()
    model = built(Skip())
    with torch.no_grad():
        model.last.weight.mul_(30)
    p = model(x).detach().softmax(1)
    assert float(p.max()) > 1 - 1e-12  # zero in float32
    own = p.gather(1, y[:, None])[:, 0]
    found = measure(clone(model).float(), x[:2], y[:2])
    assert float(found) == pytest.approx(float(((1 - own) / own)[:2].sum()), rel=1e-3)
    with torch.no_grad():
        model.last.weight.mul_(1e4)
    with pytest.raises(MeasureError, match="probability that is zero in float64"):
        measure(model, x, y)
    single = built(nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, 1)))
    assert float(measure(single, x, torch.zeros_like(y))) == 0.0


@pytest.mark.parametrize("chain", [False, True])
def test_an_autocast_outside_changes_nothing(chain):
    model = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, CLASSES))
    model = built(model if chain else Skip()).float()
    x, y = data()
    x = x.float()
    measured = inv.measures
    for measure in (
        measured.hessian_trace,
        measured.hessian_eigenvalues,
        measured.hessian_norm,
        measured.adaptive_trace,
        measured.relative_flatness,
        measured.sam_sharpness,
        measured.gaussian_sharpness,
        measured.worst_case_sharpness,
    ):
        plain = float(measure(model, x, y))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = float(measure(model, x, y))
            assert torch.is_autocast_enabled("cpu")
        assert inside == pytest.approx(plain, rel=1e-5), measure.__name__
