"""What a user meets: stopping, reporting, refusing, and leaving things as they were."""

from __future__ import annotations

import copy
import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import nn
from training_reference import blobs, same_bits

from invariance.core._errors import DataError, InvarianceError, ModelError, UsageError
from invariance.models import mlp
from invariance.training import Fit, fit, fit_ensemble
from invariance.training._options import Options, resolve_device


def test_stops_at_the_first_look_that_shows_the_target():
    task = blobs(spread=0.3)
    free = fit(mlp((9, 16, 4)), task, target_accuracy=None, max_epochs=80, batch_size=8)
    assert free.epochs == 80
    assert not free.reached_target
    hits = [record.epoch for record in free.history if record.train_accuracy >= 0.9]
    stopped = fit(mlp((9, 16, 4)), task, target_accuracy=0.9, max_epochs=80, batch_size=8)
    assert (stopped.epochs, stopped.reached_target) == (hits[0], True)
    coarse = fit(
        mlp((9, 16, 4)), task, target_accuracy=0.9, max_epochs=80, batch_size=8, check_every=10
    )
    late = next(epoch for epoch in hits if epoch % 10 == 0)
    assert coarse.epochs == late != hits[0]
    assert [record.epoch for record in coarse.history] == list(range(10, late + 1, 10))


def test_a_network_that_does_not_get_there_is_kept_and_reported():
    result = fit(mlp((9, 2, 4)), blobs(), max_epochs=3, check_every=2)
    assert isinstance(result, Fit)
    assert not result.reached_target
    assert result.epochs == 3
    assert [r.epoch for r in result.history] == [2, 3]


@pytest.mark.parametrize("vectorize", [None, False, True])
def test_reported_numbers_are_those_of_the_returned_module(vectorize):
    task = blobs()
    model = mlp((9, 6, 4), batch_norm=True) if vectorize is None else NotSequential()
    result = fit(model, task, max_epochs=5, vectorize=vectorize)
    assert not any(module.training for module in result.model.modules())
    with torch.no_grad():
        logits, test = result.model(task.x_train), result.model(task.x_test)
    loss = float(nn.functional.cross_entropy(logits, task.y_train))
    assert result.train_loss == pytest.approx(loss, rel=1e-6)
    accuracy = float((logits.argmax(1) == task.y_train).double().mean())
    assert result.train_accuracy == pytest.approx(accuracy)
    assert result.history[-1].train_accuracy == result.train_accuracy
    accuracy = float((test.argmax(1) == task.y_test).double().mean())
    assert result.test_accuracy == pytest.approx(accuracy)
    assert result.generalization_gap == result.train_accuracy - result.test_accuracy


class NotSequential(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp((9, 6, 4), batch_norm=True)

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("vectorize", [None, False, True])
@pytest.mark.parametrize("kind", ["mlp", "other"])
def test_arguments_are_never_touched(kind, vectorize):
    model = mlp((9, 6, 4), batch_norm=True) if kind == "mlp" else NotSequential()
    model(torch.rand(5, 9)).sum().backward()
    list(model.modules())[-1].eval()
    before = copy.deepcopy(model.state_dict())
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    flags = [module.training for module in model.modules()]
    task = blobs()
    x = task.x_train.clone()
    fits = fit_ensemble(model, task, seeds=[0, 1], max_epochs=3, vectorize=vectorize)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    pairs = zip(grads, model.parameters(), strict=True)
    assert all(torch.equal(grad, parameter.grad) for grad, parameter in pairs)
    assert flags == [module.training for module in model.modules()]
    assert torch.equal(x, task.x_train)
    mine = {entry.data_ptr() for entry in model.parameters()}
    theirs = [entry for result in fits for entry in result.model.parameters()]
    assert len({entry.data_ptr() for entry in theirs} | mine) == len(theirs) + len(mine)
    assert all(entry.requires_grad and entry.grad is None for entry in theirs)


def test_a_fit_is_immutable():
    result = fit(mlp((9, 6, 4)), blobs(), max_epochs=1)
    with pytest.raises(FrozenInstanceError):
        result.epochs = 3
    assert isinstance(result.history, tuple)
    assert result.config == Options(max_epochs=1)


def test_divergence_is_an_error_that_names_the_seed_or_a_marked_fit():
    task = blobs(spread=30.0)
    with pytest.raises(ModelError, match=r"diverged.*seeds 5.*on_divergence='keep'"):
        fit(mlp((9, 16, 16, 4), seed=1), task, seed=5, lr=1e20)
    for model in (mlp((9, 16, 4)), NotSequential()):
        kept = fit(model, task, lr=1e30, momentum=0.5, on_divergence="keep", max_epochs=40)
        assert kept.diverged
        assert not kept.reached_target
        assert math.isnan(kept.test_accuracy)
        assert kept.epochs < 40


def test_one_diverging_network_does_not_take_the_others_along():
    def build(seed):
        model = mlp((9, 6, 4), seed=seed)
        if seed == 1:
            with torch.no_grad():
                model.linear2.weight.mul_(1e37)
        return model

    task = blobs()
    fits = fit_ensemble(build, task, seeds=[0, 1, 2], max_epochs=9, on_divergence="keep")
    assert [result.diverged for result in fits] == [False, True, False]
    clean = fit_ensemble(build, task, seeds=[0, 2], max_epochs=9)
    assert same_bits(clean[1].model, fits[2].model)


def test_progress_ends_at_the_total_and_never_goes_back():
    seen = []
    fits = fit_ensemble(
        (9, 16, 4),
        blobs(spread=0.3),
        seeds=range(5),
        batch_size=8,
        max_epochs=40,
        target_accuracy=0.8,
        progress=lambda done, total, info: seen.append((done, total, info)),
    )
    assert len({result.epochs for result in fits}) > 1
    done = [entry[0] for entry in seen]
    assert done == sorted(done)
    assert done[0] == 5
    assert seen[-1][:2] == (200, 200)
    last = seen[-1][2]
    assert (last.networks, last.finished) == (5, 5)
    assert last.reached == sum(result.reached_target for result in fits)
    mean = sum(result.train_accuracy for result in fits) / 5
    assert last.train_accuracy == pytest.approx(mean)


def test_an_interrupt_passes_through():
    def interrupt(done, total, info):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(mlp((9, 4)), blobs(), progress=interrupt)


def test_nothing_is_printed(capsys):
    fit(mlp((9, 4)), blobs(), max_epochs=2)
    assert capsys.readouterr() == ("", "")


def test_groups_that_fit_memory_give_the_same_networks(monkeypatch):
    task = blobs()
    whole = fit_ensemble((9, 6, 4), task, seeds=range(7), max_epochs=3)
    monkeypatch.setattr("invariance.training._runner.GROUP_BYTES", 1)
    split = fit_ensemble((9, 6, 4), task, seeds=range(7), max_epochs=3)
    for a, b in zip(whole, split, strict=True):
        assert same_bits(a.model, b.model)


def test_results_return_to_the_models_own_type():
    result = fit(mlp((9, 4), dtype=torch.float64), blobs(), max_epochs=1)
    assert result.model.linear1.weight.dtype == torch.float64
    result = fit(mlp((9, 4)), blobs(), max_epochs=1, dtype=torch.float64)
    assert result.model.linear1.weight.dtype == torch.float64


def test_networks_of_different_shapes_share_an_ensemble():
    fits = fit_ensemble(
        lambda seed: mlp((9, 4 + seed, 4), seed=seed), blobs(), seeds=[0, 1], max_epochs=2
    )
    assert fits[1].model.linear1.out_features == 5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lr": 0.0}, UsageError, r"lr must be positive.*Got 0\.0"),
        ({"lr": float("nan")}, UsageError, "lr must be positive and finite"),
        ({"momentum": 1.0}, UsageError, r"momentum must be in \[0, 1\)"),
        ({"weight_decay": -1.0}, UsageError, "weight_decay"),
        ({"optimizer": "sdg"}, UsageError, "Unknown optimizer 'sdg'.*Did you mean 'sgd'"),
        ({"optimizer": "adam", "momentum": 0.9}, UsageError, "momentum = 0.9 belongs to"),
        ({"device": "gpu"}, UsageError, "Unknown device 'gpu'"),
        ({"device": "meta"}, UsageError, "Unknown device 'meta'"),
        ({"batch_size": 0}, UsageError, "batch_size must be a positive integer"),
        ({"max_epochs": 2.5}, UsageError, "max_epochs must be a positive integer"),
        ({"target_accuracy": 95}, UsageError, r"target_accuracy must be in \(0, 1\]"),
        ({"check_every": True}, UsageError, "check_every"),
        ({"lr_drop_at": 80}, UsageError, "lr_drop_at"),
        ({"betas": (0.9, 1.0)}, UsageError, "betas"),
        ({"on_divergence": "ignore"}, UsageError, "on_divergence"),
        ({"dtype": torch.int64}, UsageError, "floating-point"),
        ({"seeds": []}, UsageError, "seeds is empty"),
        ({"seeds": 3}, UsageError, "seeds must be a list of integers"),
        ({"seeds": [0.5]}, UsageError, "seeds must be integers"),
        ({"model_or_sizes": (8, 4)}, ModelError, r"\(8, 4\) do not fit.*9 features"),
        ({"model_or_sizes": (9, 3)}, ModelError, "4 classes"),
        ({"model_or_sizes": (9, 0, 4)}, ModelError, "positive integers"),
        ({"model_or_sizes": nn.Linear(8, 4)}, ModelError, r"does not accept.*\(rows, 9\)"),
        ({"model_or_sizes": nn.Linear(9, 3)}, ModelError, r"shape \(rows, 4\).*Got \(2, 3\)"),
        ({"model_or_sizes": nn.Identity()}, ModelError, "nothing to train"),
        ({"model_or_sizes": lambda seed: seed}, ModelError, "must return an nn.Module"),
        ({"model_or_sizes": mlp((9, 5, 4), batch_norm=True), "batch_size": 5}, ModelError,
         "single point.*BatchNorm"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_by_name(change, error, message):
    arguments = {"model_or_sizes": (9, 5, 4), "seeds": [0], "max_epochs": 2, **change}
    source = arguments.pop("model_or_sizes")
    with pytest.raises(error, match=message) as caught:
        fit_ensemble(source, blobs(), **arguments)
    assert isinstance(caught.value, InvarianceError)


def test_bad_weights_and_bad_data_are_refused():
    model = mlp((9, 4))
    with torch.no_grad():
        model.linear1.bias[2] = float("inf")
    with pytest.raises(ModelError, match=r"'linear1\.bias' of Sequential holds NaN or inf"):
        fit(model, blobs())
    task = blobs()
    x = task.x_train.clone()
    x[4, 2] = float("nan")
    with pytest.raises(DataError, match=r"x_train holds NaN or infinity.*row 4"):
        replace(task, x_train=x)
    task.x_train[4, 2] = float("nan")  # behind the task's back
    with pytest.raises(DataError, match="x_train"):
        fit(mlp((9, 4)), task)
    with pytest.raises(ModelError, match=r"fit needs an nn\.Module"):
        fit((9, 4), blobs())


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else None
    if expected is None and not torch.backends.mps.is_available():
        expected = "cpu"
        with pytest.raises(UsageError, match="'cuda' is not available"):
            resolve_device("cuda")
    assert resolve_device("auto").type == (expected or "mps")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("points", [26, 11])
def test_cuda_agrees_with_the_cpu(points):
    task = blobs(points)
    options = {"seeds": [0, 1], "max_epochs": 4, "dtype": torch.float64}
    for source in ((9, 6, 4), NotSequential()):
        here = fit_ensemble(source, task, **options)
        there = fit_ensemble(source, task, device="cuda", **options)
        for a, b in zip(here, there, strict=True):
            for left, right in zip(a.model.parameters(), b.model.parameters(), strict=True):
                torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-10)
