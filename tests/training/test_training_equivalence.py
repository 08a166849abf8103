"""The batched trainer against torch.optim, network by network, epoch by epoch.

Catches: a wrong derivative, an update rule that differs from torch's, a network that sees
another one's data, a dropped last batch, statistics of BatchNorm that drift.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from training_reference import assert_same_model, blobs, reference

from invariance.models import ACTIVATIONS, mlp
from invariance.training import fit_ensemble
from invariance.training._engine import PerceptronEngine
from invariance.training._options import Options
from invariance.training.perceptrons._first_layer import GramHead, PrimalHead, make_head
from invariance.training.perceptrons._stacked import Workspace
from invariance.training.perceptrons._update_rules import make_rule

SEEDS = [0, 3, 11]


def compare(build, task, *, epochs=4, drop_after=None, vectorize=None, rtol=1e-9, **options):
    extra = {}
    if drop_after is not None:
        extra = {"lr_drop_at": drop_after / epochs}
    fits = fit_ensemble(
        build,
        task,
        seeds=SEEDS,
        max_epochs=epochs,
        target_accuracy=None,
        dtype=torch.float64,
        vectorize=vectorize,
        **{"batch_size": 8, **options},
        **extra,
    )
    for seed, fit in zip(SEEDS, fits, strict=True):
        model, seen = reference(
            build(seed), task, seed, epochs=epochs, drop_after=drop_after, **options
        )
        assert_same_model(fit.model, model, rtol=rtol)
        for record, (loss, accuracy) in zip(fit.history, seen, strict=True):
            assert record.train_loss == pytest.approx(loss, rel=1e-9)
            assert record.train_accuracy == accuracy
    return fits


RULES = {
    "plain": {},
    "decay": {"weight_decay": 0.05},
    "momentum": {"momentum": 0.9},
    "momentum-decay": {"momentum": 0.7, "weight_decay": 0.02},
    "adam": {"optimizer": "adam", "lr": 0.01},
    "adam-decay": {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.03},
}

#: 26 points of 9 features, 8 of them in use, take the primal head; 11 the Gram head.
POINTS = {"primal": 26, "gram": 11}


@pytest.mark.parametrize("batch_norm", [False, True], ids=["", "batch-norm"])
@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_on_every_head(rule, points, batch_norm):
    # A bias in front of BatchNorm has gradient zero, of which round-off leaves noise, and
    # Adam divides noise by its own size: there is nothing to compare there.
    bias = not (batch_norm and rule.startswith("adam"))
    compare(
        lambda seed: mlp((9, 7, 5, 4), batch_norm=batch_norm, bias=bias, seed=seed),
        blobs(POINTS[points]),
        **RULES[rule],
    )


@pytest.mark.parametrize("batch_size", [1, 5, 25, 26, 1000, None])
@pytest.mark.parametrize("points", [26, 11])
def test_batch_sizes_with_and_without_a_short_last_batch(batch_size, points):
    compare(lambda seed: mlp((9, 6, 4), seed=seed), blobs(points), batch_size=batch_size)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation):
    def build(seed):
        return mlp((9, 7, 6, 4), activation=activation, seed=seed)

    assert PerceptronEngine.accepts(build(0))
    compare(build, blobs(), lr=0.3)
    compare(build, blobs(), lr=0.05, momentum=0.5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LeakyReLU(-0.3),
        nn.LeakyReLU(0.0),
        nn.ELU(0.7),
        nn.GELU(approximate="tanh"),
        nn.Softplus(beta=3.0, threshold=2.0),
        nn.PReLU(7, init=0.1),
        nn.BatchNorm1d(7, affine=False),
        nn.BatchNorm1d(7, momentum=None),
        nn.BatchNorm1d(7, momentum=0.4, eps=0.1),
    ],
    ids=str,
)
def test_layers_with_unusual_arguments(layer):
    def build(seed):
        net = mlp((9, 7, 4), seed=seed)
        return nn.Sequential(net[0], copy.deepcopy(layer), net[2])

    assert PerceptronEngine.accepts(build(0))
    compare(build, blobs(), lr=0.3)


def sequential(*layers):
    def build(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(*[layer() for layer in layers])

    return build


@pytest.mark.parametrize("points", [26, 11])
@pytest.mark.parametrize(
    "build",
    [
        sequential(lambda: nn.Linear(9, 4)),
        sequential(lambda: nn.Linear(9, 4, bias=False)),
        sequential(lambda: nn.Linear(9, 5), lambda: nn.Linear(5, 4)),
        sequential(lambda: nn.Linear(9, 5), nn.Tanh, nn.ReLU, lambda: nn.Linear(5, 4)),
        sequential(
            lambda: nn.Linear(9, 5), nn.Tanh, lambda: nn.LeakyReLU(0.3), lambda: nn.Linear(5, 4)
        ),
        sequential(lambda: nn.Linear(9, 5), nn.ReLU, lambda: nn.Linear(5, 4), nn.Softplus),
        sequential(lambda: nn.Linear(9, 4), lambda: nn.BatchNorm1d(4)),
        sequential(
            nn.Flatten, lambda: nn.Linear(9, 6), lambda: nn.BatchNorm1d(6), nn.ReLU,
            nn.Identity, lambda: nn.Linear(6, 4, bias=False),
        ),
        sequential(
            lambda: nn.Linear(9, 6), nn.ReLU, lambda: nn.BatchNorm1d(6), lambda: nn.Linear(6, 4)
        ),
    ],
    ids=["linear", "no-bias", "deep-linear", "two-activations", "kept-twice", "activation-last",
         "norm-last", "passive-layers", "norm-after-relu"],
)  # fmt: skip
def test_shapes_of_perceptrons(build, points):
    assert PerceptronEngine.accepts(build(0))
    compare(build, blobs(points))
    compare(build, blobs(points), batch_size=None, momentum=0.9)


@pytest.mark.parametrize("points", [26, 11])
def test_learning_rate_drop(points):
    compare(lambda seed: mlp((9, 6, 4), seed=seed), blobs(points), epochs=5, drop_after=3)


class Residual(nn.Module):
    """A module that no fast path knows."""

    def __init__(self, seed=0, norm=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inner = nn.Linear(9, 6)
            self.branch = nn.Linear(6, 6)
            self.outer = nn.Linear(6, 4)
        self.norm = nn.Identity() if norm is None else norm(6)

    def forward(self, x):
        h = torch.relu(self.inner(x))
        return self.outer(self.norm(h + torch.tanh(self.branch(h))))


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("norm", [None, nn.LayerNorm, nn.BatchNorm1d])
@pytest.mark.parametrize("rule", RULES)
def test_other_modules(rule, norm, vectorize):
    compare(lambda seed: Residual(seed, norm), blobs(), vectorize=vectorize, **RULES[rule])


@pytest.mark.parametrize("vectorize", [False, True])
def test_convolutions(vectorize):
    def build(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Unflatten(1, (1, 3, 3)), nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(),
                nn.Flatten(), nn.Linear(12, 4),
            )  # fmt: skip

    compare(build, blobs(), vectorize=vectorize)


def test_frozen_parameters_stay():
    def build(seed):
        model = mlp((9, 6, 4), seed=seed)
        model.linear1.weight.requires_grad_(False)
        return model

    assert not PerceptronEngine.accepts(build(0))
    for vectorize in (False, True):
        fits = compare(build, blobs(), vectorize=vectorize)
        for seed, fit in zip(SEEDS, fits, strict=True):
            assert torch.equal(fit.model.linear1.weight, build(seed).double().linear1.weight)


def test_the_tests_above_reach_both_heads():
    for points, kind in ((26, PrimalHead), (11, GramHead)):
        x = blobs(points).x_train
        options = Options()
        modules = [mlp((9, 4), seed=0)[0]]
        head = make_head(modules, x, make_rule(options), Workspace(1, x), options, last=True)
        assert isinstance(head, kind)


def test_tied_layers_are_left_to_autograd():
    tied = nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 4))
    tied[2].weight = tied[0].weight
    assert not PerceptronEngine.accepts(tied)
    hooked = mlp((9, 4))
    hooked.linear1.register_forward_hook(lambda *_: None)
    assert not PerceptronEngine.accepts(hooked)


def test_weights_of_a_feature_that_is_always_zero_stay_where_they_were():
    for points in (26, 11):
        (fit,) = fit_ensemble((9, 6, 4), blobs(points), seeds=[2], max_epochs=3)
        start = mlp((9, 6, 4), seed=2).linear1.weight
        assert torch.equal(fit.model.linear1.weight[:, 3], start[:, 3])
        assert not torch.equal(fit.model.linear1.weight[:, 2], start[:, 2])
