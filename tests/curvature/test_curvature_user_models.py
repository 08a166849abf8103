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
from dense_reference import dense_matrix
from torch import nn
from torch.nn import functional as F
from user_models import CLASSES, FEATURES, ROWS, Skip, agree, built, data, flatness_agrees

import invariance as inv
from invariance.core._errors import MeasureError, ModelError
from invariance.core._modules import clone
from invariance.curvature import (
    HessianOperator,
    resolve_loss,
)
from invariance.curvature.losses._custom import CustomLoss


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
