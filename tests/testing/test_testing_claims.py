"""Would catch: a gate that passes a wrong measure, blames the wrong layer or cannot replay."""

from __future__ import annotations

import pickle
import re

import planted_measures as planted
import pytest
import torch
from torch import nn

import invariance as inv
from invariance.core._applied import Applied
from invariance.testing import (
    AtSite,
    BrokenTransformError,
    NotInvariantError,
    assert_invariant,
    replay,
)
from invariance.transforms._base import Transform

BETWEEN = [inv.transforms.LayerScaling([3.0, 1 / 3, 1.0])]
SCALINGS = ["layer_scaling", "neuron_scaling"]


@pytest.fixture(scope="module")
def net():
    model = inv.models.mlp((4, 5, 4, 3), seed=1).eval()
    source = torch.Generator().manual_seed(0)
    x = torch.randn(12, 4, generator=source)
    y = torch.randint(0, 3, (12,), generator=source)
    return model, x, y


@pytest.fixture(scope="module")
def norm_net():
    model = inv.models.mlp((4, 6, 3), seed=2, batch_norm=True).eval()
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                for tensor in (module.weight, module.running_var):
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=source))
                for tensor in (module.bias, module.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=source))
    return model, torch.randn(10, 4, generator=source), torch.randint(0, 3, (10,))


def broken(measure, net, **options):
    with pytest.raises(NotInvariantError) as caught:
        assert_invariant(measure, *net, **options)
    return caught.value.findings[0], str(caught.value)


def run_replay(message, measure, net):
    """Run the message's last line as a user would paste it; return what it prints."""
    (line,) = re.findall(r"^  replay     (.*)$", message, re.MULTILINE)
    model, x, y = net
    printed = []
    scope = {"measure": measure, "model": model, "x": x, "y": y, "print": printed.append}
    exec(line, scope)
    return printed[0]


# -- claims that hold ------------------------------------------------------------------


def test_function_of_outputs_passes_every_map(net):
    certificate = assert_invariant(planted.loss, *net)
    applied = {row.transform for row in certificate.rows}
    assert {"LayerScaling", "NeuronScaling", "Permutation", "LogitShift", "SplitUnits"} <= applied
    assert certificate.dtypes == ("float64", "float32")
    # What the model does not admit is listed with its reason, not passed over.
    assert any("FoldBatchNorm" in entry.what for entry in certificate.refused)


def test_adaptive_trace_passes_under_scalings(net):
    assert_invariant(planted.adaptive_trace, *net, groups=SCALINGS, examples=3)


def test_square_of_the_norm_passes_where_the_norm_fails(net):
    right = planted.weight_times_trace("linear2", 2)
    assert_invariant(right, *net, groups=["layer_scaling"], dtype="float64")


def test_registered_measure_is_held_to_its_declaration_only(net):
    assert_invariant("relative_flatness", *net)
    assert_invariant(inv.measures.relative_flatness, *net)
    with pytest.raises(NotInvariantError):
        assert_invariant(
            inv.measures.relative_flatness, *net, transforms=[inv.transforms.NeuronScaling()]
        )


@pytest.mark.parametrize("arguments", [1, 2])
def test_functions_of_fewer_arguments(net, arguments):
    functions = {
        1: lambda model: planted.norm_product(model, None, None),
        2: lambda model, inputs: float(model(inputs).detach().square().sum()),
    }
    assert_invariant(functions[arguments], *net, groups=["layer_scaling"])


# -- claims that break, and what the message says --------------------------------------


def test_missing_square_is_found_with_layer_power_and_hint(net):
    wrong = planted.weight_times_trace("linear2", 1)
    finding, message = broken(wrong, net, groups=["layer_scaling"])
    assert finding.responsible == ("linear2",)
    assert finding.trend.exponent == pytest.approx(1.0, abs=1e-6)
    assert "did you mean |w|^2" in message
    assert "alpha^1.00" in message
    assert finding.smallest.factor == 2.0
    assert finding.smallest.transform == "LayerScaling([2.0, 0.5, 1.0])"
    shown = run_replay(message, wrong, net)
    assert shown.row.after / shown.row.before == pytest.approx(2.0, rel=1e-9)


@pytest.mark.parametrize("layer", ["linear1", "linear3"])
def test_the_layer_at_either_end_is_told_from_its_neighbour(net, layer):
    finding, _ = broken(planted.weight_times_trace(layer, 1), net, groups=["layer_scaling"])
    assert finding.responsible == (layer,)


def test_raw_trace_is_a_sum_of_opposite_powers(net):
    finding, message = broken(planted.hessian_trace, net, groups=["layer_scaling"])
    assert set(finding.trend.terms) == {-2, 0, 2}
    assert "Tr H = A / alpha^2 + C + B alpha^2" in message
    assert set(finding.responsible) == {"linear1", "linear2", "linear3"}


def test_unscaled_biases_are_blamed(net):
    finding, message = broken(
        planted.adaptive_trace_without_biases_scaled, net, groups=["neuron_scaling"]
    )
    assert finding.cause == "biases"
    assert "only the biases are to blame" in message
    assert len(re.findall(r"units=\[\d\]", finding.smallest.transform)) == 1
    run_replay(message, planted.adaptive_trace_without_biases_scaled, net)


def test_forgotten_batchnorm_parameters_are_blamed(norm_net):
    def no_norms(model, x, y):
        named = dict(model.named_parameters())
        return float(
            sum(
                (d * (1.0 if "norm" in n else named[n].detach().square())).sum()
                for n, d in planted.blocks(model, x, y).items()
            )
        )

    finding, message = broken(no_norms, norm_net, groups=["neuron_scaling"])
    assert finding.cause == "BatchNorm parameters"
    assert "only BatchNorm parameters are to blame" in message


def test_no_parameter_is_blamed_when_all_are(net):
    finding, _ = broken(planted.squared_norm, net, groups=["neuron_scaling"])
    assert finding.cause == ""


def test_invariant_only_in_float64_gets_told_so(net):
    finding, message = broken(planted.cancels_in_float32, net, transforms=BETWEEN)
    assert finding.dtype == "float32"
    assert finding.cause == "float32 round-off"
    assert "invariant only in float64" in message
    run_replay(message, planted.cancels_in_float32, net)
    # Claiming no more than that passes.
    assert_invariant(planted.cancels_in_float32, *net, transforms=BETWEEN, dtype="float64")


def test_round_off_may_not_excuse_everything_in_float32(net):
    """The measured float error of this measure is as large as its value: no licence to move."""
    maps = [inv.transforms.LayerScaling([f, 1 / f, 1.0]) for f in (1.25, 3.0, 7.0, 11.0)]
    finding, _ = broken(planted.differs_by_ulps, net, transforms=maps)
    assert finding.dtype == "float32"
    assert finding.row.tolerance <= 1.001e-3 * abs(finding.row.before)


def test_float32_inside_a_float64_measure_is_no_excuse_for_a_real_change(net):
    finding, _ = broken(planted.squared_norm, net, groups=["layer_scaling"])
    assert finding.dtype == "float64"


def test_permutation_narrows_to_one_swap(net):
    def ordered(model, x, y):
        weight = model.linear1.weight.detach()
        return float((weight.sum(1) * torch.arange(1, 1 + len(weight), dtype=weight.dtype)).sum())

    finding, message = broken(ordered, net, groups=["permutation"])
    assert "order of hidden units" in message
    assert re.fullmatch(
        r"AtSite\('permutation', 'linear1.weight', units=\[0, \d\]\)", finding.smallest.transform
    )
    run_replay(message, ordered, net)


def test_small_change_is_caught_at_the_default_tolerance(norm_net):
    """A BatchNorm left in place after folding moves values by some 5e-6: less must be seen."""

    def slightly(model, x, y):
        norm = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
        return float(planted.loss(model, x, y)) * (1 + 3e-6 * len(norm))

    with pytest.raises(NotInvariantError):
        assert_invariant(slightly, *norm_net, groups=["batchnorm_fold"])
    assert_invariant(slightly, *norm_net, groups=["batchnorm_fold"], rtol=1e-5)


def test_declared_law_is_left_to_assert_law(net):
    # A logit shift, a permutation: declared invariant.
    assert_invariant("hessian_trace", *net, claims_only=True)


def test_message_survives_pickling(net):
    with pytest.raises(NotInvariantError) as caught:
        assert_invariant(planted.squared_norm, *net, groups=["layer_scaling"])
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


# -- transforms under test -------------------------------------------------------------


class ZippedScaling(Transform):
    """Scales (W1, b1, W2, b2) as if biases were layers: the published mistake."""

    group = inv.Group.LAYER_SCALING

    def __repr__(self):
        return "ZippedScaling()"

    def apply(self, model, example_input=None):
        from invariance.core._modules import clone

        new = clone(model)
        with torch.no_grad():
            for factor, parameter in zip([2.0, 0.5] * 9, new.parameters(), strict=False):
                parameter.mul_(factor)
        return Applied(new, None, None)


class OwnScaling(ZippedScaling):
    """A correct map of the user's own, which this package knows nothing about."""

    def __repr__(self):
        return "OwnScaling()"

    def apply(self, model, example_input=None):
        return inv.transforms.LayerScaling([4.0, 0.25, 1.0]).apply(model, example_input)


def test_transform_that_changes_the_function_is_reported_as_that(net):
    with pytest.raises(BrokenTransformError, match="does not keep the function") as caught:
        assert_invariant(planted.loss, *net, transforms=[ZippedScaling()])
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, inv.TransformError)


def test_own_transform_is_narrowed_by_its_group_and_replayable(net):
    finding, message = broken(planted.squared_norm, net, transforms=[OwnScaling()])
    assert "OwnScaling()" in message
    assert finding.sites  # the graph's own sites stand in for what is inside
    run_replay(message, planted.squared_norm, net)


def test_composition_names_the_part_that_breaks(net):
    both = inv.transforms.Compose([inv.transforms.Permutation(1), inv.transforms.NeuronScaling()])
    finding, message = broken(planted.squared_norm, net, transforms=[both])
    assert finding.smallest.transform.startswith("NeuronScaling")
    run_replay(message, planted.squared_norm, net)


def test_transform_that_does_not_apply_is_an_error_when_named(net):
    with pytest.raises(inv.TransformError, match="BatchNorm"):
        assert_invariant(planted.loss, *net, transforms=[inv.transforms.FoldBatchNorm()])


def test_nothing_checked_is_no_pass(net):
    with pytest.raises(inv.UsageError, match="Nothing was checked"):
        assert_invariant(planted.loss, *net, groups=["batchnorm_fold"])
    with pytest.raises(inv.UsageError, match="empty"):
        assert_invariant(planted.loss, *net, transforms=[])


# -- residual networks, convolutions ---------------------------------------------------


def test_sites_of_a_residual_network_are_found(invariance_networks):
    net = invariance_networks["resnet"]
    with pytest.raises(NotInvariantError) as caught:
        assert_invariant(
            planted.squared_norm,
            net.model,
            net.x,
            net.y,
            groups=["neuron_scaling"],
            dtype="float64",
        )
    finding = caught.value.findings[0]
    assert finding.sites
    assert all("norm" in site.site or site.site == "2" for site in finding.sites)
    run_replay(str(caught.value), planted.squared_norm, (net.model, net.x, net.y))


# -- bad input -------------------------------------------------------------------------


def test_bad_input_is_refused_by_name(net):
    model, x, y = net
    with pytest.raises(inv.DataError, match="x holds NaN"):
        assert_invariant(planted.loss, model, x * float("nan"), y)
    with pytest.raises(inv.DataError, match="12 rows and y has 11"):
        assert_invariant(planted.loss, model, x, y[:-1])
    with pytest.raises(inv.DataError, match="empty"):
        assert_invariant(planted.loss, model, x[:0], y[:0])
    with pytest.raises(inv.UsageError, match="neuron_scaling"):
        assert_invariant(planted.loss, model, x, y, groups=["neuron_scalin"])
    with pytest.raises(inv.UsageError, match="Transform objects"):
        assert_invariant(planted.loss, model, x, y, transforms=[inv.transforms.Permutation])
    with pytest.raises(inv.UsageError, match="rtol"):
        assert_invariant(planted.loss, model, x, y, rtol=-1.0)
    with pytest.raises(inv.MeasureError, match="extra"):
        assert_invariant(lambda m, x, y, extra: 0.0, model, x, y)
    normed = inv.models.mlp((4, 5, 3), batch_norm=True)
    with pytest.raises(inv.MeasureError, match=r"norm1.*train mode"):
        assert_invariant(planted.loss, normed.train(), x, y)


def test_user_is_left_as_found(net):
    model, x, y = net
    state = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    ambient = torch.get_rng_state()
    with pytest.raises(NotInvariantError):
        assert_invariant(planted.squared_norm, model, x, y)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert flags == [m.training for m in model.modules()]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(ambient, torch.get_rng_state())


def test_replay_shows_a_ratio(net):
    shown = replay(planted.squared_norm, *net, AtSite("scaling", "linear1.weight", 4.0))
    assert "moved" in str(shown)
    assert "ratio" in str(shown)
