"""Would catch: a law, a covariance or a described cell that is accepted without holding."""

from __future__ import annotations

import pickle

import planted_measures as planted
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import invariance as inv
from invariance.testing import assert_covariant, assert_law, describe
from invariance.testing.gate._assert_covariant import NotCovariantError
from invariance.testing.gate._assert_law import LawBrokenError
from invariance.transforms import BatchNormScaling, LayerScaling, Permutation


@pytest.fixture(scope="module")
def net():
    model = inv.models.mlp((4, 5, 3), seed=1).eval()
    source = torch.Generator().manual_seed(0)
    x = torch.randn(10, 4, generator=source)
    return model, x, torch.randint(0, 3, (10,), generator=source)


def first_norm(model, x, y):
    return float(model.linear1.weight.detach().norm())


# -- laws ------------------------------------------------------------------------------


def test_power_of_a_norm(net):
    result = assert_law(first_norm, LayerScaling([2.0, 0.5]), *net, exponent=1)
    assert result.exponent == 1
    assert_law(first_norm, lambda a: LayerScaling([1 / a, a]), *net, exponent=-1)
    squared = lambda m, x, y: first_norm(m, x, y) ** 2  # noqa: E731
    assert_law(squared, LayerScaling, *net, exponent=2)
    assert_law(planted.loss, LayerScaling, *net, exponent=0)


def test_wrong_power_names_the_right_one(net):
    with pytest.raises(LawBrokenError, match=r"moves as alpha\^1\.00") as caught:
        assert_law(first_norm, LayerScaling([2.0, 0.5]), *net, exponent=2)
    assert "claimed to move as alpha^2" in str(caught.value)
    assert caught.value.trend.exponent == pytest.approx(1.0)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_nearly_right_power_is_not_enough(net):
    with pytest.raises(LawBrokenError):
        assert_law(first_norm, LayerScaling([2.0, 0.5]), *net, exponent=1.00001)


def test_declared_law_of_the_trace(net):
    result = assert_law("hessian_trace", LayerScaling([4.0, 0.25]), *net)
    assert result.rows[0].verdict == "law"
    assert result.rows[0].predicted == pytest.approx(result.rows[0].after, rel=1e-9)


def test_default_network_is_a_small_trained_one():
    assert_law(first_norm, LayerScaling([2.0, 0.5, 1.0]), exponent=1)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((first_norm, LayerScaling([2.0, 0.5])), {}, "declares no law"),
        ((first_norm, Permutation()), {"exponent": 1}, "no single factor"),
        ((first_norm, Permutation), {"exponent": 1}, "no factor of its own"),
        (("hessian_trace", LayerScaling), {}, "one transform object"),
    ],
)
def test_what_has_no_law_is_refused(net, arguments, options, words):
    with pytest.raises(inv.UsageError, match=words):
        assert_law(*arguments, *net, **options)


# -- covariance ------------------------------------------------------------------------


def gradient(model, x, y):
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(named.values()))
    return dict(zip(named, grads, strict=True))


def parameters(model, x, y):
    return {n: p.detach() for n, p in model.named_parameters()}


def saliency(model, x, y):
    named = dict(model.named_parameters())
    return {n: named[n].detach() * g for n, g in gradient(model, x, y).items()}


@pytest.mark.parametrize(
    ("field", "degree"), [(gradient, 1), (planted.blocks, 2), (parameters, -1), (saliency, 0)]
)
def test_fields_move_with_the_parameters(net, field, degree):
    groups = ["layer_scaling", "neuron_scaling", "permutation"]
    tried = assert_covariant(field, *net, degree=degree, groups=groups)
    assert len(tried) >= 3


@pytest.mark.parametrize(
    ("field", "degree"), [(gradient, 2), (planted.blocks, 1), (parameters, 0), (gradient, 0)]
)
def test_wrong_degree_is_found(net, field, degree):
    with pytest.raises(NotCovariantError, match="parameter  `linear") as caught:
        assert_covariant(field, *net, degree=degree, transforms=LayerScaling([2.0, 0.5]))
    assert "replay" in str(caught.value)


def test_field_that_forgets_to_permute_is_found(net):
    def sorted_by_value(model, x, y):
        return {
            n: g.flatten().sort().values.reshape(g.shape) for n, g in gradient(model, x, y).items()
        }

    with pytest.raises(NotCovariantError):
        assert_covariant(sorted_by_value, *net, degree=1, transforms=[Permutation(1)])


def test_field_of_a_wrong_shape_is_refused(net):
    with pytest.raises(inv.MeasureError, match=r"linear1\.weight"):
        assert_covariant(lambda m, x, y: {"linear1.weight": torch.zeros(2)}, *net, degree=1)
    with pytest.raises(inv.MeasureError, match="mapping"):
        assert_covariant(lambda m, x, y: 3.0, *net, degree=1)


# -- descriptions ----------------------------------------------------------------------


def test_row_of_the_master_table_is_found_out(net):
    found = describe(planted.norm_product, *net)
    assert found["layer_scaling"].behaviour == "invariant"
    assert found["permutation"].behaviour == "invariant"
    assert found["neuron_scaling"].behaviour == "moves"
    assert found["batchnorm_fold"].behaviour == "does not apply"
    assert "no BatchNorm" in found["batchnorm_fold"].reason
    assert inv.Group.LAYER_SCALING in found.invariant_under
    text = str(found)
    assert "neuron_scaling" in text
    assert "linear1" in text


def test_power_is_part_of_the_description(net):
    found = describe(first_norm, *net, groups=["layer_scaling"])
    assert found["layer_scaling"].law == "moves as alpha^1.00"
    trace = describe(planted.hessian_trace, *net, groups=["layer_scaling"])
    assert trace["layer_scaling"].law == "moves as a sum of alpha^(-2, +0, +2)"


def test_description_agrees_with_declarations(net):
    for name in ("relative_flatness", "adaptive_trace", "hessian_trace", "fisher_rao_norm"):
        found = describe(name, *net)
        assert not any(cell.contradicts for cell in found.cells.values()), str(found)


def test_scaled_weights_before_batchnorm_are_a_law_of_their_own():
    model = inv.models.mlp((4, 5, 3), seed=1, batch_norm=True).eval()
    x, y = torch.randn(6, 4), torch.zeros(6, dtype=torch.int64)
    assert_law(first_norm, BatchNormScaling(2.0), model, x, y, exponent=1)
    assert not isinstance(model, nn.ReLU)
