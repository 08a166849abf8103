"""A network depends on its own seed and on nothing else, to the last bit.

Catches: kernels that round differently by batch count, positions in memory, or the
moment at which other networks leave; shared random streams; updates of frozen networks.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_reference import blobs, same_bits

from invariance.models import ACTIVATIONS, mlp
from invariance.training import fit, fit_ensemble
from invariance.training.perceptrons._stacked import Stacked, Workspace


def digits_like(n: int = 150, d: int = 64) -> object:
    return blobs(n, d, 10, n_test=40, spread=1.5)


def ensembles_agree(source, task, seeds=(4, 9, 1), crowd=33, **options):
    options = {"max_epochs": 12, **options}
    alone = [fit_ensemble(source, task, seeds=[seed], **options)[0] for seed in seeds]
    few = fit_ensemble(source, task, seeds=seeds, **options)
    others = list(range(100, 100 + crowd))
    many = fit_ensemble(source, task, seeds=[*others[:7], *seeds, *others[7:]], **options)
    for index in range(len(seeds)):
        fits = (alone[index], few[index], many[7 + index])
        assert len({fit.epochs for fit in fits}) == 1
        assert len({fit.history for fit in fits}) == 1
        assert same_bits(fits[0].model, fits[1].model)
        assert same_bits(fits[0].model, fits[2].model)
    return many


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("points", [60, 150], ids=["gram", "primal"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.01},
        {"momentum": 0.9, "lr": 0.03},
        {"optimizer": "adam", "lr": 0.003},
        {"batch_size": None, "lr": 0.4},
    ],
    ids=str,
)
def test_any_ensemble_gives_the_same_network(options, points, dtype):
    fits = ensembles_agree(
        (64, 33, 9, 10), digits_like(points), dtype=dtype, max_epochs=20, **options
    )
    assert len({fit.epochs for fit in fits}) > 1 or not any(fit.reached_target for fit in fits)


@pytest.mark.parametrize("points", [60, 150], ids=["gram", "primal"])
def test_any_ensemble_gives_the_same_network_through_a_single_unit(points):
    # One network alone would multiply by this layer in a kernel for vectors, which rounds
    # differently: the engine must not hold a single network.
    ensembles_agree((64, 33, 1, 10), digits_like(points), lr=0.02)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_any_ensemble_gives_the_same_network_with_any_activation(activation):
    ensembles_agree(
        lambda seed: mlp((64, 33, 9, 10), activation=activation, batch_norm=True, seed=seed),
        digits_like(60),
        lr=0.02,
    )


def test_any_ensemble_gives_the_same_network_of_another_kind():
    def build(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(),
                nn.Dropout(0.3), nn.Linear(144, 10),
            )  # fmt: skip

    ensembles_agree(build, digits_like(60), crowd=8, max_epochs=3)


def test_networks_that_stop_early_do_not_disturb_the_others():
    task = digits_like()
    fits = fit_ensemble((64, 24, 10), task, seeds=range(20), max_epochs=60)
    epochs = [fit.epochs for fit in fits]
    assert min(epochs) < max(epochs), "the case needs networks that stop at different times"
    # Without a target every network runs on: until it stopped, it must have gone the same way.
    through = fit_ensemble(
        (64, 24, 10), task, seeds=range(20), max_epochs=max(epochs), target_accuracy=None
    )
    for short, long in zip(fits, through, strict=True):
        ran = len(short.history) - 1  # the last record comes from the finished module
        assert short.history[:ran] == long.history[:ran]


def test_fit_is_the_ensemble_of_one():
    task = digits_like()
    one = fit(mlp((64, 20, 10), seed=5), task, seed=5, max_epochs=7)
    many = fit_ensemble((64, 20, 10), task, seeds=[3, 5, 8], max_epochs=7)
    assert same_bits(one.model, many[1].model)
    assert one.history == many[1].history


def test_seeds_make_different_networks_and_repeat():
    task = blobs()
    first = fit_ensemble((9, 5, 4), task, seeds=[0, 1], max_epochs=3)
    again = fit_ensemble((9, 5, 4), task, seeds=[0, 1], max_epochs=3)
    assert same_bits(first[0].model, again[0].model)
    assert not same_bits(first[0].model, first[1].model)


def test_a_module_starts_every_network_and_only_the_order_differs():
    task, start = blobs(), mlp((9, 5, 4), seed=7)
    fits = fit_ensemble(start, task, seeds=[0, 1], max_epochs=3, batch_size=8)
    assert not same_bits(fits[0].model, fits[1].model)
    full = fit_ensemble(start, task, seeds=[0, 1], max_epochs=3, batch_size=None)
    assert same_bits(full[0].model, full[1].model)


def test_global_random_state_is_left_alone():
    task = blobs()
    state = torch.get_rng_state()
    fit_ensemble((9, 5, 4), task, seeds=[0, 1], max_epochs=2)
    dropout = nn.Sequential(nn.Linear(9, 5), nn.Dropout(0.5), nn.Linear(5, 4))
    state_after_build = torch.get_rng_state()
    first = fit(dropout, task, max_epochs=2)
    assert torch.equal(torch.get_rng_state(), state_after_build)
    torch.rand(3)
    assert same_bits(first.model, fit(dropout, task, max_epochs=2).model)
    torch.set_rng_state(state)


def test_dropping_a_network_moves_the_last_one_into_its_place():
    stack = Stacked(torch.arange(12.0).reshape(4, 3))
    stack.move(3, 1)
    stack.narrow(3)
    assert stack.now[:, 0].tolist() == [0.0, 9.0, 6.0]
    work = Workspace(4, stack.now)
    work.take("a", 2)[:] = 1.0
    work.count = 3
    assert work.take("a", 2).shape == (3, 2)
