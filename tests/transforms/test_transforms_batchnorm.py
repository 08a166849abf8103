"""BatchNorm folding and scaling against the formulas, in every dimension and position.

Would catch: a BatchNorm of variance 1 left in place, eps forgotten in the compensation, a
fold through zero padding, a fold of a layer whose output goes elsewhere, too.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import invariance as inv
from invariance.core._errors import TransformError
from invariance.transforms import BatchNormScaling, Compose, FoldBatchNorm, NeuronScaling

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def fill(model, seed=0):
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream))
        for module in model.modules():
            if isinstance(module, tuple(NORMS.values())):
                module.running_mean.normal_(generator=stream)
                module.running_var.uniform_(0.5, 2, generator=stream)
    return model.double().eval()


def check(model, shape, rtol=1e-11):
    stream = torch.Generator().manual_seed(1)
    example, probe = torch.randn((2, 3, *shape), generator=stream, dtype=torch.float64)
    applied = FoldBatchNorm().apply(model, example)
    assert not any(isinstance(m, tuple(NORMS.values())) for m in applied.model.modules())
    with torch.no_grad():
        old, new = model(probe), applied.model(probe)
    assert float((old - new).abs().max()) <= rtol * float(old.abs().max())
    return applied


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_fold_into_the_convolution_before(dims, affine, bias, groups):
    model = nn.Sequential(
        CONVS[dims](2, 4, 3, padding=1, bias=bias, groups=groups),
        NORMS[dims](4, affine=affine),
        nn.ReLU(),
        CONVS[dims](4, 2, 1),
    )
    applied = check(fill(model), (2, *[4] * dims))
    assert isinstance(applied.model[1], nn.Identity)
    norm, conv = model[1], model[0]
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale * norm.weight if affine else scale
    view = scale.reshape(-1, *[1] * (dims + 1))
    assert torch.allclose(applied.model[0].weight, conv.weight * view, rtol=1e-13)
    assert (applied.action is None) == (not affine and not bias)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_fold_into_a_transposed_convolution_before(dims):
    model = nn.Sequential(
        TRANSPOSED[dims](2, 4, 2), NORMS[dims](4), nn.ReLU(), CONVS[dims](4, 1, 1)
    )
    check(fill(model), (2, *[3] * dims))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_fold_into_the_linear_layer_before(affine, bias):
    model = nn.Sequential(
        nn.Linear(3, 4, bias=bias), nn.BatchNorm1d(4, affine=affine), nn.Tanh(), nn.Linear(4, 2)
    )
    check(fill(model), (3,))


def test_fold_a_sequence_norm_over_transposed_features():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(self.norm(self.a(x).transpose(1, 2)).transpose(1, 2))

    check(fill(Model()), (5, 3))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda bias: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4, bias=bias)), (3,)),
        (
            lambda bias: nn.Sequential(
                nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=bias)
            ),
            (3,),
        ),
        (
            lambda bias: nn.Sequential(
                nn.Conv2d(1, 2, 3),
                nn.ReLU(),
                nn.BatchNorm2d(2),
                nn.Flatten(),
                nn.Linear(8, 3, bias=bias),
            ),
            (1, 4, 4),
        ),
        (
            lambda bias: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, bias=bias)),
            (2, 4, 4),
        ),
    ],
)
def test_fold_into_the_layer_after(model, shape, bias):
    applied = check(fill(model(bias)), shape)
    assert applied.action is None  # the shift goes into the bias: no factor of each entry


def test_two_norms_fold_into_one_layer():
    model = nn.Sequential(
        nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)
    )
    applied = check(fill(model), (3,))
    assert applied.detail["folded"] == {"1": "2", "3": "2"}


def test_gamma_of_zero_folds_without_a_law():
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)))
    with torch.no_grad():
        model[1].weight[0] = 0
    assert check(model, (3,)).action is None


class Shared(nn.Module):
    """The convolution's output is used twice: before and after its BatchNorm."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.a(x)
        return self.b(torch.relu(self.norm(h)) + h)


class Twice(nn.Module):
    """One BatchNorm behind two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(3, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.b(torch.relu(self.norm(self.a(x)))))


class Functional(nn.Module):
    """A functional BatchNorm, with or without an affine part."""

    def __init__(self, affine=False):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.gamma = nn.Parameter(torch.randn(4)) if affine else None
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x):
        return F.batch_norm(self.a(x), self.mean, self.var, self.gamma)


class NormAct(nn.BatchNorm2d):
    """A BatchNorm that drops out and activates, as timm's."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.5), nn.SiLU(inplace=True)

    def forward(self, x):
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
        )
        return self.act(self.drop(x))


class Restless(nn.Module):
    """A subclass whose forward does more than its children."""

    class Norm(NormAct):
        def forward(self, x):
            return super().forward(x) * 2

    def __init__(self):
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 4, 1), self.Norm(4)

    def forward(self, x):
        return self.n(self.a(x))


class Same(nn.Conv2d):
    """A convolution of a subclass, which pads by itself."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


def test_subclasses_fold_and_keep_what_they_do_beside():
    model = fill(nn.Sequential(Same(3, 4, 3, bias=False), NormAct(4), nn.Conv2d(4, 2, 1)))
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).double()
    applied = FoldBatchNorm(strict=True).apply(model, x)
    assert [type(part) for part in applied.model[1]] == [nn.Dropout, nn.SiLU]
    assert applied.verification.max_abs_logit_diff < 1e-12
    assert not any(isinstance(m, nn.BatchNorm2d) for m in applied.model.modules())
    scale = model[1].weight / (model[1].running_var + model[1].eps).sqrt()
    assert torch.allclose(
        applied.model[0].weight, model[0].weight * scale.reshape(4, 1, 1, 1), rtol=1e-12
    )


@pytest.mark.parametrize("affine", [False, True])
def test_functional_norms_become_the_identity_where_they_are_called(affine):
    model = Functional(affine).double().eval()
    with torch.no_grad():
        model.mean.normal_()
        model.var.uniform_(0.5, 2)
    x = torch.randn(5, 3).double()
    applied = FoldBatchNorm().apply(model, x)
    assert applied.verification.max_abs_logit_diff < 1e-12
    assert applied.detail["folded"] == {"mean": "a"}
    z = torch.randn(2, 4).double()
    gamma = applied.model.gamma
    assert torch.allclose(F.batch_norm(z, applied.model.mean, applied.model.var, gamma), z)
    # a weight that is free again has no counterpart
    assert (applied.action is None) == affine


class Padded(nn.Module):
    """Zeros are inserted between the convolution and its BatchNorm."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x):
        return torch.relu(self.norm(F.pad(self.a(x), (1, 1, 1, 1))))


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, padding=1)), (2, 4, 4),
         "`0`: `1` pads with zeros"),
        (Shared, (3,), "`norm`: the output of `a` goes elsewhere"),
        (Twice, (3,), "used more than once"),
        (Restless, (3, 4, 4), "does something else than normalise"),
        (Padded, (1, 3, 3), "neither the layer before"),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Tanh()), (3,),
         "neither the layer before"),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (3,), "no BatchNorm"),
    ],
)  # fmt: skip
def test_fold_is_refused_where_it_is_not_exact(model, shape, message):
    with pytest.raises(TransformError, match=message):
        FoldBatchNorm()(fill(model()), torch.randn(2, *shape, dtype=torch.float64))


def test_partial_folds_say_what_was_kept_and_strict_refuses():
    layers = [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4), nn.Tanh()]
    model = fill(nn.Sequential(*layers, nn.Linear(4, 2)))
    x = torch.randn(3, 3, dtype=torch.float64)
    applied = FoldBatchNorm().apply(model, x)
    assert applied.detail["folded"] == {"1": "0"}
    assert set(applied.detail["kept"]) == {"3"}
    with pytest.raises(TransformError, match="`3`"):
        FoldBatchNorm(strict=True)(model, x)
    with pytest.raises(TransformError, match="no inverse"):
        FoldBatchNorm().inverse()


def test_scaling_compensates_with_eps():
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, eps=0.1), nn.Linear(4, 2)))
    x = torch.randn(5, 3, dtype=torch.float64)
    moved = BatchNormScaling(3.0)(model, x)
    assert torch.allclose(moved[0].weight, 3 * model[0].weight)
    assert torch.allclose(moved[0].bias, 3 * model[0].bias)
    assert torch.allclose(moved[1].running_mean, 3 * model[1].running_mean)
    assert torch.allclose(moved[1].running_var, 9 * (model[1].running_var + 0.1) - 0.1)
    assert torch.equal(moved[1].weight, model[1].weight)
    assert torch.allclose(moved(x), model(x), rtol=1e-12)


def test_scaling_refuses_a_negative_variance():
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, eps=0.1), nn.Linear(4, 2)))
    with pytest.raises(TransformError, match=r"running_var` would become negative.*eps = 0\.1"):
        BatchNormScaling(0.1)(model)


def test_scaling_refuses_wrong_counts_and_models():
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    with pytest.raises(TransformError, match=r"2 factors.*1 BatchNorms: 1"):
        BatchNormScaling([1.0, 2.0])(model)
    with pytest.raises(TransformError, match="no BatchNorm"):
        BatchNormScaling(2.0)(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(TransformError, match="positive"):
        BatchNormScaling(0.0)
    first = fill(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)))
    with pytest.raises(TransformError, match="no weight before a BatchNorm"):
        BatchNormScaling(2.0)(first)
    with pytest.raises(TransformError, match="Give it the factor 1"):
        BatchNormScaling([2.0])(first)


def test_scaling_a_shared_stream_needs_one_factor():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.n1, self.n2 = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)
            self.b = nn.Linear(4, 2)

        def forward(self, x):
            h = self.a(x)
            return self.b(torch.relu(self.n1(h)) + torch.tanh(self.n2(h)))

    model, x = fill(Model()), torch.randn(5, 3, dtype=torch.float64)
    assert torch.allclose(BatchNormScaling([2.0, 2.0])(model, x)(x), model(x))
    with pytest.raises(TransformError, match="one stream"):
        BatchNormScaling([2.0, 3.0])(model, x)


class Unseen(nn.Module):
    """Residual, convolutions, max-pooling, leaky ReLU, BatchNorm and a linear neck."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.one_norm = nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.two_norm = nn.BatchNorm2d(8, affine=False)
        self.wider = nn.Conv2d(8, 12, 1)
        self.neck = nn.Linear(12 * 9, 16)
        self.neck_norm = nn.BatchNorm1d(16)
        self.mid = nn.Linear(16, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.max_pool2d(F.leaky_relu(self.stem(x), 0.1), 2)
        y = F.leaky_relu(self.one_norm(self.one(x)), 0.2, inplace=True)
        x = F.leaky_relu(x + self.two_norm(self.two(y)))
        x = nn.functional.relu(self.wider(x))
        x = F.max_pool2d(x, 3, stride=1, padding=1).flatten(1)
        return self.head(self.mid(F.relu_(self.neck_norm(self.neck(x)))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_unseen_module_goes_through_everything(dtype):
    from invariance.transforms import Permutation

    model = fill(Unseen()).to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stream = torch.Generator().manual_seed(3)
    x, probe = torch.randn(2, 4, 3, 6, 6, generator=stream).to(dtype)
    parts = [NeuronScaling(10.0, 1), Permutation(2), FoldBatchNorm()]
    with torch.no_grad():
        expected = model(probe)
    for transform in [*parts, Compose(parts), Compose([parts[2], parts[0], parts[1]])]:
        applied = transform.apply(model, x)
        with torch.no_grad():
            difference = (applied.model(probe) - expected).abs().max()
        tolerance = 1e-11 if dtype == torch.float64 else 2e-5
        assert float(difference) <= tolerance * float(expected.abs().max()), transform
        assert not applied.model.training
        assert applied.verification.labels_changed == 0
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    folded = FoldBatchNorm().apply(model, x)
    assert len(folded.detail["folded"]) == 4
    assert folded.detail["kept"] == {}


def test_folding_leaves_no_module_in_train_mode():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    folded = FoldBatchNorm()(model, torch.randn(5, 3))
    assert [type(module) for module in folded][1] is nn.Identity
    assert not any(module.training for module in folded.modules())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_folds_say_how_every_gradient_moves(bias, affine):
    """Against the gradients themselves: after the fold, ``gradient`` times those of before."""
    model = fill(
        nn.Sequential(
            nn.Linear(3, 4, bias=bias), nn.BatchNorm1d(4, affine=affine), nn.Tanh(),
            nn.Linear(4, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 2),
        )
    )  # fmt: skip
    with torch.no_grad():
        model[5].bias.zero_()  # nothing but a scale, so that there is a relation
        model[5].running_mean.zero_()
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    folded = FoldBatchNorm().apply(model, x)
    if not bias and not affine:
        assert folded.action is None  # the new bias has no counterpart
        return
    model(x).square().sum().backward()
    folded.model(x).square().sum().backward()
    old = {name: p.grad for name, p in model.named_parameters()}
    relations = folded.action.parameters
    assert set(relations) == {name for name, _ in folded.model.named_parameters()}
    for name, parameter in folded.model.named_parameters():
        entry = relations[name]
        source = old[entry.source]
        source = source if entry.index is None else source.flatten()[entry.index]
        torch.testing.assert_close(parameter.grad, entry.gradient * source, msg=name)


def test_a_fold_that_takes_a_shift_along_claims_no_law():
    """The next layer's gradient was that of ``s x + t`` and is that of ``x``."""
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert FoldBatchNorm().apply(model, x).action is None
    y = torch.arange(9) % 2
    task = inv.Task("t", 2, x, y, x, y, x[:1], y[:1])
    report = inv.check(model, task, transforms=[FoldBatchNorm()], measures=["hessian_trace"])
    (row,) = report.rows
    assert row.predicted is None
    assert row.verdict == "varies"


class BothWays(nn.Module):
    """What the BatchNorm reads goes elsewhere, and what reads it reads more."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(7, 2)

    def forward(self, x):
        h = self.a(x)
        return self.b(torch.cat([self.norm(h), x], 1)) + h[:, :2]


def test_a_refusal_to_fold_gives_the_reason_of_either_side():
    with pytest.raises(TransformError, match=r"`a` goes elsewhere.*; `b` reads other channels"):
        FoldBatchNorm()(fill(BothWays()), torch.randn(2, 3, dtype=torch.float64))
