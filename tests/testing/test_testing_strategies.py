"""Would catch: a strategy that does not shrink, touches a global generator or draws wrong maps."""

from __future__ import annotations

import random

import planted_measures as planted
import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings

import invariance as inv
from invariance.testing import strategies
from invariance.testing.strategies import _drawing as drawing

QUICK = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SHRINK = settings(QUICK, max_examples=200, phases=[Phase.generate, Phase.shrink])


def breaks(measure):
    def condition(case):
        try:
            case.assert_invariant(measure)
        except inv.testing.NotInvariantError:
            return True
        return False

    return condition


@given(strategies.cases())
@QUICK
def test_every_drawn_case_keeps_the_function(case):
    case.assert_invariant(planted.loss)


@given(strategies.cases(groups=["layer_scaling", "neuron_scaling", "batchnorm_scaling"]))
@QUICK
def test_powers_of_two_are_bitwise(case):
    batchnorm = "norm" in repr(case.transform)
    applied = case.transform.apply(case.model, case.x)
    if not batchnorm and "batch_norm=False" in repr(case.network):
        assert applied.verification.bitwise


def test_failure_shrinks_to_the_smallest_net_fewest_units_and_smallest_factor():
    case = find(
        strategies.cases(groups=["neuron_scaling"]), breaks(planted.squared_norm), settings=SHRINK
    )
    sizes = [p.shape for n, p in case.model.named_parameters() if n.endswith("weight")]
    assert [tuple(s) for s in sizes] == [(1, 1), (2, 1)]
    (factors,) = case.transform.factors
    assert factors in ([2.0], [0.5])
    assert case.x.shape[0] == 2
    assert "batch_norm=False, bias=False" in repr(case)
    assert "steps=0" in repr(case)


def test_failure_that_needs_two_layers_keeps_two_and_moves_one_unit():
    def two_hidden_layers(model, x, y):
        value = float(planted.loss(model, x, y))
        deep = "linear3" in dict(model.named_modules())
        return value + (float(planted.squared_norm(model, x, y)) if deep else 0.0)

    case = find(
        strategies.cases(groups=["neuron_scaling"]), breaks(two_hidden_layers), settings=SHRINK
    )
    weights = [tuple(p.shape) for n, p in case.model.named_parameters() if n.endswith("weight")]
    assert weights == [(1, 1), (1, 1), (2, 1)]
    moved = [f for group in case.transform.factors for f in group if f != 1.0]
    assert len(moved) == 1
    assert moved[0] in (2.0, 0.5)


def test_failure_of_biases_keeps_the_bias_flag_on():
    case = find(
        strategies.cases(groups=["layer_scaling"], networks=strategies.mlps(batch_norm=False)),
        breaks(planted.adaptive_trace_without_biases_scaled),
        settings=settings(SHRINK, max_examples=60),
    )
    assert "bias=True" in repr(case)


def test_smallest_factor_respects_a_threshold():
    """A measure that only notices large factors: the smallest of those is left."""

    def notices_eightfold(model, x, y):
        largest = max(float(p.detach().abs().max()) for p in model.parameters())
        return float(planted.loss(model, x, y)) + (1.0 if largest > 8 else 0.0)

    network = strategies.mlps(max_hidden=1, max_units=2, batch_norm=False, trained=False)
    case = find(
        strategies.cases(groups=["layer_scaling"], networks=network),
        breaks(notices_eightfold),
        settings=SHRINK,
    )
    log = abs(torch.tensor(case.transform.factors[0]).log2().item())
    weaker = inv.transforms.LayerScaling([2.0 ** (log - 1), 2.0 ** (1 - log)])
    stronger = case.transform.factors[0]
    if stronger < 1:
        weaker = weaker.inverse()
    case.assert_invariant(planted.loss)
    inv.testing.assert_invariant(
        notices_eightfold, case.model, case.x, case.y, transforms=[weaker], dtype="float64"
    )


def test_drawing_touches_no_global_generator():
    before = (torch.get_rng_state(), random.getstate())

    @given(strategies.cases())
    @settings(QUICK, max_examples=5)
    def draw(case):
        assert torch.equal(before[0], torch.get_rng_state())

    draw()
    assert torch.equal(before[0], torch.get_rng_state())


def test_recipe_rebuilds_the_network():
    @given(strategies.mlps(trained=False))
    @settings(QUICK, max_examples=5)
    def same(network):
        built = eval(
            repr(network).replace(", steps=0", ", dtype=torch.float64"),
            {"mlp": inv.models.mlp, "torch": torch},
        )
        drawing.randomize(built, int(repr(network).split("seed=")[1].split(",")[0]))
        for old, new in zip(network.model.parameters(), built.parameters(), strict=True):
            assert torch.equal(old, new)

    same()


@given(strategies.cases(networks=strategies.architectures(max_steps=3)))
@QUICK
def test_other_architectures_are_drawn_with_maps_that_they_admit(case):
    case.assert_invariant(planted.loss)


def test_unknown_group_is_refused():
    with pytest.raises(inv.UsageError, match="neuron_scaling"):
        find(strategies.cases(groups=["neuron_scalin"]), lambda case: True)
