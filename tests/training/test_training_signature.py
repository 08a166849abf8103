"""Catches: an option of training that one of its two doors lacks, or shows with another default."""

import inspect
from dataclasses import fields

import pytest

import invariance as inv
from invariance.training._fit import _RUN_DEFAULTS, Training
from invariance.training._options import Options

#: What users rely on, in the order in which it is shown.
CONTRACT = {
    "lr": 0.1,
    "batch_size": 64,
    "max_epochs": 500,
    "target_accuracy": 1.0,
    "optimizer": "sgd",
    "momentum": 0.0,
    "weight_decay": 0.0,
}


@pytest.mark.parametrize(
    ("door", "first"),
    [
        (inv.fit, ["model", "task", "seed"]),
        (inv.fit_ensemble, ["model_or_sizes", "task", "seeds"]),
    ],
)
def test_both_doors_show_the_same_options(door, first):
    shown = inspect.signature(door).parameters
    assert list(shown)[:3] == first
    options = {name: p.default for name, p in shown.items() if name not in first}
    assert list(options.items())[: len(CONTRACT)] == list(CONTRACT.items())
    assert list(options) == [*(field.name for field in fields(Options)), *_RUN_DEFAULTS]
    assert set(options) == set(Training.__annotations__)
    assert all(shown[name].kind is inspect.Parameter.KEYWORD_ONLY for name in options)
    assert shown["batch_size"].annotation == "int | None"
    assert all(f"{name}:" in inv.fit.__doc__ for name in options)


def test_an_unknown_option_is_named():
    task = inv.load_task("digits", n_train=20)
    with pytest.raises(TypeError, match=r"'lrr'.*Did you mean 'lr'"):
        inv.fit(inv.models.mlp([64, 10]), task, lrr=0.1)
    with pytest.raises(TypeError, match=r"unexpected keyword argument"):
        inv.fit_ensemble([64, 10], task, seeds=[0], seed=1)


def test_options_reach_the_run():
    task = inv.load_task("digits", n_train=20)
    (found,) = inv.fit_ensemble(
        [64, 10], task, seeds=[0], max_epochs=3, target_accuracy=None, augmentation="shift"
    )
    alone = inv.fit(
        inv.models.mlp([64, 10], seed=0), task, max_epochs=3, target_accuracy=None,
        augmentation=["shift"],
    )  # fmt: skip
    assert found.epochs == alone.epochs == 3
    assert found.train_loss == pytest.approx(alone.train_loss)
    with pytest.raises(inv.UsageError, match="on_divergence"):
        inv.fit_ensemble([64, 10], task, seeds=[0], on_divergence="ignore")
