"""Random networks: whatever the engine calls a symmetry is one, and none is missed.

Would catch: a rule that forgets an operation's constraint, a permutation that mixes up the
addresses behind a flatten, a bias left behind, a shared layer scaled twice.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from symmetry_reference import (
    affine_norm_channels,
    assert_groups_hold,
    diagonal_null_directions,
    enlarge_eps,
    move,
    outputs,
    same_snapshot,
    snapshot,
)

from invariance.core._errors import TransformError
from invariance.symmetry import SCALING_KINDS, SymmetryKind, symmetries
from invariance.symmetry.analysis._symmetries import analyse
from invariance.testing.strategies._architectures import networks
from invariance.transforms import (
    BatchNormScaling,
    Compose,
    FoldBatchNorm,
    NeuronScaling,
    Permutation,
    SignFlip,
)

QUIET = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


def test_every_group_keeps_the_function():
    """At least 2,000 drawn group elements, on inputs that the analysis has not seen."""
    elements = 0

    @settings(max_examples=460, **QUIET)
    @given(network=networks(), seed=st.integers(0, 2**20))
    def check(network, seed):
        nonlocal elements
        found = assert_groups_hold(network, network.batch(0), [network.batch(1)], seed=seed)
        elements += sum(group.kind != "logit_shift" for group in found.groups)

    check()
    assert elements >= 2000, elements


@settings(max_examples=300, **QUIET)
@given(
    network=networks(),
    seed=st.integers(0, 2**20),
    wanted=st.lists(st.integers(0, 4), min_size=1, max_size=2),
)
def test_transforms_keep_the_function_and_the_model(network, seed, wanted):
    known = (
        NeuronScaling(20.0, seed),
        Permutation(seed),
        SignFlip(seed),
        FoldBatchNorm(),
        BatchNormScaling(1.7),
    )
    before = snapshot(network)
    probe = network.batch(1)
    with torch.no_grad():
        expected = outputs(network, probe)
    transform = Compose([known[i] for i in wanted])
    try:
        applied = transform.apply(network, network.batch(0))
    except TransformError as error:
        reason = str(error)
        refused = "does not apply" in reason or "cannot fold" in reason
        assert refused, reason
        return
    finally:
        assert same_snapshot(before, snapshot(network))
    with torch.no_grad():
        error = float((outputs(applied.model, probe) - expected).abs().max())
    assert error <= 1e-10 * float(expected.abs().max())
    originals = {p.data_ptr() for p in network.parameters()}
    assert not originals & {p.data_ptr() for p in applied.model.parameters()}


@settings(max_examples=150, **QUIET)
@given(
    network=networks(activations=("relu", "relu_", "leaky_relu", "identity", "abs")),
    seed=st.integers(0, 2**20),
)
def test_powers_of_two_are_bitwise(network, seed):
    probe = network.batch(1)
    with torch.no_grad():
        expected = outputs(network, probe)
    analysis = analyse(network, probe)
    for number, group in enumerate(analysis.symmetries.groups):
        if group.kind not in (SymmetryKind.SCALING, SymmetryKind.BATCHNORM_AFFINE):
            continue
        moved = move(analysis, number, seed, powers_of_two=True)
        with torch.no_grad():
            assert torch.equal(outputs(moved, probe), expected), group.site


@settings(max_examples=60, **QUIET)
@given(network=networks(max_steps=3, max_width=3))
def test_scaling_degrees_are_the_diagonal_null_directions(network):
    # InstanceNorm-like groups of one channel forget a bias before them: a null direction
    # that is a shift of the bias, not a scaling of units.
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm) and module.num_groups == module.num_channels:
            return
    enlarge_eps(network)
    found = symmetries(network, network.batch(0))
    null = diagonal_null_directions(network, lambda draw: (network.batch(draw, 8),))
    unused = sum(dict(network.named_parameters())[name].numel() for name in found.unused)
    assert found.dof(*SCALING_KINDS) == null - affine_norm_channels(network) - unused


def test_drawn_networks_are_varied():
    """The strategy reaches residual, concatenated, gated, normalised and flattened nets."""
    kinds = set()

    @settings(max_examples=100, **QUIET)
    @given(network=networks())
    def collect(network):
        kinds.update(step[0] for step in network.steps)

    collect()
    assert kinds >= {"layer", "act", "norm", "residual", "concat", "gate", "flatten", "pool"}


@pytest.mark.parametrize("seed", range(3))
def test_snapshot_notices_a_change(seed):
    network = torch.nn.Linear(2, 2)
    before = snapshot(network)
    with torch.no_grad():
        network.weight[0, seed % 2] += 1
    assert not same_snapshot(before, snapshot(network))
