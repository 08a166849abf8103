"""A grid of hyperparameters, every cheap measure, as trained, rescaled and gauge-fixed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from invariance.core._errors import InvarianceError
from invariance.data import Task
from invariance.measures._registry import all_measures, get_measure
from invariance.models import mlp
from invariance.papers._declared import declared
from invariance.papers.ours.fantastic_measures._findings import analyse, figures
from invariance.papers.recipes._ensembles import fit_cell, settings_of_cell, trained
from invariance.papers.recipes._measure_perceptrons import (
    Values,
    describe_task,
    measured_task,
    one_by_one,
    outcomes,
    predicted,
    rescaling_seed,
    scale_of,
    whole,
)
from invariance.papers.recipes._perceptrons import PUBLISHED_TRAIN_SEED, task_of
from invariance.studies._config import Config, Setting
from invariance.studies._study import Context, Options, Study, Trained
from invariance.symmetry import canonicalize
from invariance.transforms import UNITS_RESCALED, random_rescaling

RECIPE = "hyperparameters/1"

#: Hyperparameter to its values; every combination is trained.
GRID: Mapping[str, tuple[Setting, ...]] = {
    "width": (32, 128),
    "depth": (1, 2),
    "lr": (0.05, 0.2),
    "batch_size": (32, 128),
    "weight_decay": (0.0, 1e-3),
    "optimizer": ("sgd", "momentum", "sam", "asam"),
}

#: The grid of the quick version.
QUICK_GRID: Mapping[str, tuple[Setting, ...]] = {
    "width": (16, 32),
    "depth": (1,),
    "lr": (0.1,),
    "batch_size": (32,),
    "weight_decay": (0.0, 1e-3),
    "optimizer": ("sgd", "sam"),
}

#: What an optimizer is, as keyword arguments of ``fit``.
OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "sam": {"sam_rho": 0.05},
    "asam": {"sam_rho": 0.5, "sam_adaptive": True},
}

#: Measured though they solve programs: few pairs.
SOLVED = ("pair_proxy",)


def tasks_of(options: Options) -> tuple[str, ...]:
    """Return the data sets: several may be named with commas between them."""
    return tuple(name.strip() for name in options.task.split(",") if name.strip())


def grid(options: Options) -> Sequence[Config]:
    """Return every combination of hyperparameters, on every data set."""
    chosen = QUICK_GRID if options.quick else GRID
    configs = []
    for task, n_train in itertools.product(tasks_of(options), options.n_train):
        about = describe_task(task)
        for values in itertools.product(*chosen.values()):
            settings = dict(zip(chosen, values, strict=True))
            configs += [
                Config(
                    RECIPE,
                    {
                        "task": about.name,
                        "n_train": n_train,
                        "train_seed": PUBLISHED_TRAIN_SEED,
                        "max_epochs": scale_of(options, "epochs"),
                        **settings,
                    },
                    options.seed + i,
                )
                for i in range(options.networks)
            ]
    return configs


def sizes_of(config: Config) -> tuple[int, ...]:
    """Return the widths of a network's layers."""
    about = describe_task(str(config.settings["task"]))
    hidden = [whole(config, "width")] * whole(config, "depth")
    return (about.n_features, *hidden, about.n_classes)


def train(configs: Sequence[Config], context: Context) -> list[Trained]:
    """Train the networks of one combination until they fit, or the epochs are over."""
    s = settings_of_cell(configs, RECIPE)
    fits = fit_cell(
        configs,
        context,
        sizes_of(configs[0]),
        task_of(configs[0]),
        lr=s["lr"],
        batch_size=s["batch_size"],
        weight_decay=s["weight_decay"],
        max_epochs=s["max_epochs"],
        target_accuracy=1.0,
        check_every=5,
        **OPTIMIZERS[s["optimizer"]],
    )
    return [trained(fit, reached_target=fit.reached_target) for fit in fits]


def names_measured() -> tuple[str, ...]:
    """Return every measure of the registry that is not a sampler or a solver, and a few."""
    cheap = [name for name in all_measures() if get_measure(name).cost == "cheap"]
    return (*cheap, *SOLVED)


def measure(
    configs: Sequence[Config], trained: Sequence[Trained], context: Context
) -> Sequence[Mapping[str, Any]]:
    """Measure every network three times: as trained, rescaled, and gauge-fixed."""
    return one_by_one(_measure, configs, trained, context)


def _measure(config: Config, weights: Trained, context: Context) -> Mapping[str, Any]:
    task = measured_task(config, context, n_unseen=context.options.n_unseen)
    model = mlp(sizes_of(config), seed=config.seed)
    model.load_state_dict(dict(weights.tensors))
    model = model.to(task.x_train).eval()
    targets, labels = outcomes(model, task)
    if weights.facts["diverged"]:
        return {"targets": targets, "measures": {}, "rescaled": {}, "gauge": {}}
    example = task.x_train[:8]
    rescaled = random_rescaling(model, example, rescaling_seed(config))(model, example)
    fixed = canonicalize(model, example)
    return {
        "targets": targets,
        "measures": suite(model, task),
        "rescaled": suite(rescaled, task),
        "gauge": suite(fixed, task),
        "labels_changed": max(
            int((labels != predicted(other, task.x_test)).sum()) for other in (rescaled, fixed)
        ),
    }


def suite(model: nn.Module, task: Task) -> Values:
    """Evaluate the measures; NaN where one is not defined for a network."""
    values: Values = {}
    for name in names_measured():
        chosen = get_measure(name)
        try:
            with torch.random.fork_rng(devices=[]):
                values[name] = float(chosen(model, **chosen.inputs(task)))
        except (InvarianceError, TypeError, ValueError):  # not one number for this network
            values[name] = math.nan
    return values


def measurement(options: Options) -> Mapping[str, Setting]:
    """Return what decides the numbers beyond the networks."""
    return {"version": 1, "n_unseen": options.n_unseen, "measures": names_measured()}


STUDY = Study(
    name="fantastic-measures",
    title="Which famous correlations survive the symmetry group?",
    paper=(
        "A question of ours to Y. Jiang et al. (arXiv 1912.02178) and G. K. Dziugaite et al. "
        "(arXiv 2010.11924)"
    ),
    question=(
        "Over a grid of hyperparameters, many measures go with the generalization gap. Each is "
        "taken three times: as trained, after a random rescaling of every network that changes "
        "no output, and at the balanced representative of its orbit. A correlation that does "
        "not come back is not about the function."
    ),
    full=Options(
        task="mnist,fashion-mnist", networks=2, n_train=(500,), n_unseen=30, scale={"epochs": 300}
    ),
    quick=Options(
        task="auto", networks=2, n_train=(100,), n_unseen=4, quick=True, scale={"epochs": 60}
    ),
    grid=grid,
    train=train,
    measure=measure,
    measurement=measurement,
    analyse=analyse,
    figures=figures,
    rescaling=UNITS_RESCALED,
    declared=declared("fantastic-measures"),
)
