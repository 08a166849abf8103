"""Would catch: a defect of the measure itself, missed or reported as "not invariant"."""

from __future__ import annotations

import random

import numpy as np
import planted_measures as planted
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import invariance as inv
from invariance.testing import FaultyMeasureError, assert_invariant

DEFAULTS = {"groups": ["layer_scaling"]}


@pytest.fixture
def net():
    model = inv.models.mlp((4, 5, 3), seed=1, batch_norm=True).eval()
    source = torch.Generator().manual_seed(0)
    return (
        model,
        torch.randn(12, 4, generator=source),
        torch.randint(0, 3, (12,), generator=source),
    )


def value(model, x, y):
    return F.cross_entropy(model(x), y)


def changes_weights(model, x, y):
    with torch.no_grad():
        next(model.parameters()).add_(1e-9)
    return value(model, x, y).detach()


def changes_statistics(model, x, y):
    model.norm1.running_mean.add_(1.0)
    return value(model, x, y).detach()


def leaves_gradients(model, x, y):
    loss = value(model, x, y)
    loss.backward()
    return loss.detach()


def leaves_train_mode(model, x, y):
    result = value(model, x, y).detach()
    model.train()
    return result


def freezes(model, x, y):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return value(model, x, y)


def leaves_a_hook(model, x, y):
    model.linear1.register_forward_hook(lambda *_: None)
    return value(model, x, y).detach()


def adds_a_buffer(model, x, y):
    model.register_buffer("scratch", torch.zeros(1), persistent=False)
    return value(model, x, y).detach()


def changes_inputs(model, x, y):
    result = value(model, x, y).detach()
    x.mul_(2)
    return result


def draws_torch(model, x, y):
    return value(model, x, y).detach() + 0 * torch.rand(())


def draws_numpy(model, x, y):
    return value(model, x, y).detach() + 0 * np.random.rand()  # noqa: NPY002


def draws_random(model, x, y):
    return value(model, x, y).detach() + 0 * random.random()


def reseeds(model, x, y):
    torch.manual_seed(0)
    return value(model, x, y).detach()


def hides_its_draws(model, x, y):
    """Puts the state back, so that only the value gives it away."""
    with torch.random.fork_rng(devices=[]):
        return value(model, x, y).detach() + torch.rand(())


def unseeded(model, x, y):
    return value(model, x, y).detach() + float(np.random.default_rng().random())


def counts_calls(state=[0]):  # noqa: B006 - the shared state is the defect
    def measure(model, x, y):
        state[0] += 1
        return value(model, x, y).detach() + state[0]

    return measure


def sets_default_dtype(model, x, y):
    torch.set_default_dtype(torch.float64)
    return value(model, x, y).detach()


FAULTS = [
    (lambda m, x, y: float("nan"), "nan", "NaN"),
    (lambda m, x, y: value(m, x, y).detach() * float("inf"), "infinite", "inf"),
    (lambda m, x, y: 1 + 2j, "complex", "2j"),
    (lambda m, x, y: value(m, x, y).detach() + 0j, "complex", "0j"),
    (lambda m, x, y: m(x).detach(), "non-scalar", r"\(12, 3\)"),
    (lambda m, x, y: np.zeros(3), "non-scalar", r"\(3,\)"),
    (lambda m, x, y: [1.0, 2.0], "non-scalar", "list of 2"),
    (lambda m, x, y: inv.Estimate(np.zeros(2)), "non-scalar", r"\(2,\)"),
    (lambda m, x, y: None, "not a number", "None"),
    (lambda m, x, y: "1.0", "not a number", "str"),
    (changes_weights, "mutates the model", "linear1.weight"),
    (changes_statistics, "mutates the model", "norm1.running_mean"),
    (leaves_gradients, "mutates the model", "linear1.weight.grad"),
    (leaves_train_mode, "mutates the model", "train flag"),
    (freezes, "mutates the model", "requires_grad"),
    (leaves_a_hook, "mutates the model", "hooks of `linear1`"),
    (adds_a_buffer, "mutates the model", "scratch"),
    (changes_inputs, "mutates the data", "`x`"),
    (draws_torch, "draws from the global RNG", "torch"),
    (draws_numpy, "draws from the global RNG", "numpy"),
    (draws_random, "draws from the global RNG", "random"),
    (reseeds, "draws from the global RNG", "reseed"),
    (hides_its_draws, "not deterministic", "Two calls"),
    (unseeded, "not deterministic", "Two calls"),
    (counts_calls(), "not deterministic", "Two calls"),
    (sets_default_dtype, "changes global state", "default dtype"),
    (lambda m, x, y: 3.0, "ignores the model", "copy or a global"),
]


@pytest.mark.parametrize(
    ("measure", "kind", "words"), FAULTS, ids=[f"{k}-{w}" for _, k, w in FAULTS]
)
def test_each_defect_is_reported_as_itself(net, measure, kind, words):
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())  # noqa: NPY002
    state = {k: v.clone() for k, v in net[0].state_dict().items()}
    with pytest.raises(FaultyMeasureError, match=words) as caught:
        assert_invariant(measure, *net, **DEFAULTS)
    assert caught.value.kind == kind
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, inv.InvarianceError)
    assert "not invariant" not in str(caught.value)
    # Whatever the measure did, the caller's model and random states are as before.
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])  # noqa: NPY002
    assert torch.get_default_dtype() == torch.float32
    assert all(torch.equal(state[k], v) for k, v in net[0].state_dict().items())
    assert not any(m.training for m in net[0].modules())
    assert all(p.grad is None and p.requires_grad for p in net[0].parameters())


@pytest.mark.parametrize(
    "wrap",
    [
        float,
        lambda v: v,
        lambda v: v.numpy(),
        lambda v: v.reshape(1),
        np.float64,
        lambda v: inv.Estimate(float(v)),
    ],
)
def test_every_form_of_a_number_is_taken(net, wrap):
    assert_invariant(lambda m, x, y: wrap(value(m, x, y).detach()), *net, **DEFAULTS)


def test_nan_after_a_map_is_no_change_of_value(net):
    """NaN for the transformed network only: still reported as NaN."""
    original = {n: p.detach().clone() for n, p in net[0].named_parameters()}

    def measure(model, x, y):
        same = torch.equal(model.linear2.weight.float(), original["linear2.weight"])
        return value(model, x, y).detach() if same else float("nan")

    with pytest.raises(FaultyMeasureError, match="NaN"):
        assert_invariant(measure, *net, allow_constant=True, **DEFAULTS)


def test_constant_is_accepted_when_meant(net):
    assert_invariant(lambda m, x, y: 3.0, *net, allow_constant=True, **DEFAULTS)


def test_perturbing_another_object_than_the_one_evaluated_is_caught(net):
    """The published mistake: noise goes into a copy, the loss is read off the original."""
    frozen = net[0]

    def measure(model, x, y):
        torch.manual_seed(0)
        return float(F.cross_entropy(frozen(x.float()), y).detach())

    with pytest.raises(FaultyMeasureError):
        assert_invariant(measure, *net, **DEFAULTS)

    def quiet(model, x, y):
        return float(F.cross_entropy(frozen(x.float()), y).detach())

    with pytest.raises(FaultyMeasureError) as caught:
        assert_invariant(quiet, *net, **DEFAULTS)
    assert caught.value.kind == "ignores the model"


def test_estimates_with_a_standard_error_are_sent_to_the_statistical_test(net):
    def estimate(model, x, y):
        return inv.Estimate(float(value(model, x, y).detach()), stderr=0.1, exact=False)

    with pytest.raises(inv.MeasureError, match="assert_equal_in_law"):
        assert_invariant(estimate, *net, **DEFAULTS)


def test_the_users_own_error_comes_through(net):
    def fails(model, x, y):
        raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        assert_invariant(fails, *net, **DEFAULTS)


def test_measure_that_cannot_run_in_float64_is_checked_in_its_own_precision(net):
    def only_float32(model, x, y):
        return float((model(x) @ torch.ones(3, 1, dtype=torch.float32)).detach().square().sum())

    certificate = assert_invariant(only_float32, *net, **DEFAULTS)
    assert certificate.dtypes == ("float32",)
    assert any("cannot run in float64" in note for note in certificate.notes)


def test_overflow_in_float32_is_told_from_nan_everywhere():
    model = inv.models.mlp((4, 5, 3), seed=1).eval()
    x, y = torch.randn(6, 4), torch.zeros(6, dtype=torch.int64)

    def overflows(m, x, y):
        return float((m(x).detach().square().sum() * 1e30) ** 2)

    with pytest.raises(FaultyMeasureError, match="finite in float64"):
        assert_invariant(overflows, model, x, y, **DEFAULTS)


def test_gradients_of_the_caller_survive(net):
    model, x, y = net
    value(model, x, y).backward()
    kept = {n: p.grad.clone() for n, p in model.named_parameters()}
    assert_invariant(planted.loss, *net, **DEFAULTS)
    assert all(torch.equal(p.grad, kept[n]) for n, p in model.named_parameters())


def test_parametrized_module_is_accepted():
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 3)
    ).eval()
    x, y = torch.randn(6, 4), torch.zeros(6, dtype=torch.int64)
    assert_invariant(planted.loss, model, x, y, groups=["logit_shift"])
