"""Does the number of labels left open for unseen points predict generalization?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from invariance import measures as M
from invariance.core._errors import UsageError
from invariance.data import Task
from invariance.papers._declared import declared
from invariance.papers.bennett._networks import small_networks
from invariance.papers.bennett.pair_proxy._findings import analyse, figures
from invariance.papers.recipes._measure_perceptrons import (
    Values,
    curvature_values,
    measure_one,
    measured_task,
    norm_values,
    one_by_one,
    pair_values,
    scale_of,
)
from invariance.papers.recipes._perceptrons import (
    PUBLISHED_TRAIN_SEED,
    PUBLISHED_UNSEEN_SEED,
    network,
    train,
)
from invariance.studies._config import Config, Setting
from invariance.studies._study import Context, Options, Study, Trained
from invariance.transforms import UNITS_RESCALED
from invariance.weakness._features import frozen_features

HIDDEN = (64, 8)


def tasks_of(options: Options) -> tuple[str, ...]:
    """Return the data sets: several may be named with commas between them."""
    names = tuple(name.strip() for name in options.task.split(",") if name.strip())
    if not names:
        raise UsageError(f"Expected a data set, or several with commas. Got {options.task!r}.")
    return names


def grid(options: Options) -> Sequence[Config]:
    """Return the networks of every data set, and fewer of further training subsets."""
    fewer = min(options.networks, scale_of(options, "subset_networks"))
    configs: list[Config] = []
    for task in tasks_of(options):
        configs += small_networks(options, HIDDEN, task, options.networks, PUBLISHED_TRAIN_SEED)
        for train_seed in range(1, scale_of(options, "subsets") + 1):
            configs += small_networks(options, HIDDEN, task, fewer, train_seed)
    return configs


def measure(
    configs: Sequence[Config], trained: Sequence[Trained], context: Context
) -> Sequence[Mapping[str, Any]]:
    """Measure curvature, norms and pairs; on the published subset extensions as well."""
    return one_by_one(_measure, configs, trained, context)


def _measure(config: Config, weights: Trained, context: Context) -> Mapping[str, Any]:
    options = context.options
    task = measured_task(config, context, n_unseen=options.n_unseen)

    def suite(model: nn.Module, task: Task) -> Values:
        return {
            **curvature_values(model, task, eigenvalues=True),
            **norm_values(model),
            **pair_values(model, task),
            "dead_units": dead_units(model, task),
        }

    entry = measure_one(config, weights, task, suite)
    if config.settings["train_seed"] != PUBLISHED_TRAIN_SEED:
        return entry
    model = network(config, weights).to(task.x_train.device)
    draws = {str(PUBLISHED_UNSEEN_SEED): {"pair_proxy": entry["measures"]["pair_proxy"]}}
    for seed in range(scale_of(options, "unseen_draws")):
        other = measured_task(config, context, n_unseen=options.n_unseen, unseen_seed=seed)
        counted = M.pair_proxy(model, other.x_train, other.y_train, other.x_unseen)
        usable = counted.exact and counted.detail["policy_feasible"]
        draws[str(seed)] = {"pair_proxy": float(counted) if usable else math.nan}
    return {**entry, "draws": draws, "extension": _extension(model, task, options)}


def dead_units(model: nn.Module, task: Task) -> float:
    """Count the last hidden units that are 0 on every training point: a free probe's door."""
    features = frozen_features(model, task.x_train).values[0]
    return float((features == 0).all(axis=0).sum())


def _extension(model: nn.Module, task: Task, options: Options) -> Mapping[str, Any]:
    """Count the labelings of the first few unseen points, with the count's own doubts."""
    points = scale_of(options, "extension_points")
    found = M.extension_count(
        model,
        task.x_train,
        task.y_train,
        task.x_unseen[:points],
        method="estimate",
        pool=scale_of(options, "extension_pool"),
    )
    return {
        "log_value": found.detail["log_value"],
        "log_complete": found.detail["log_complete"],
        "points": points,
        "exact": found.exact,
        "relative_stderr": found.detail.get("relative_stderr", 0.0),
        "reliable": found.detail.get("reliable", found.exact),
    }


def measurement(options: Options) -> Mapping[str, Setting]:
    """Return what decides the numbers beyond the networks."""
    names = ("unseen_draws", "extension_points", "extension_pool")
    sizes = {name: scale_of(options, name) for name in names}
    return {"version": 2, "n_unseen": options.n_unseen, **sizes}


def batch_size(config: Config) -> int:
    """Return how many networks train together."""
    return 25


def cost(config: Config) -> float:
    """Return relative work: extensions are counted on the published subset alone."""
    return 3.0 if config.settings["train_seed"] == PUBLISHED_TRAIN_SEED else 1.0


STUDY = Study(
    name="pair-proxy",
    title="Labels left open for unseen points, against sharpness and norm",
    paper='M. T. Bennett, "Are Flat Minima an Illusion?", arXiv 2605.05209',
    question=(
        "Freeze a network's last hidden features. For how many pairs of an unseen point and a "
        "class does some classifier on them give every training point its label and that point "
        "that class? Does this count predict test accuracy better than sharpness and norms do, "
        "and does the full number of labelings left open predict it better still?"
    ),
    full=Options(
        task="mnist,fashion-mnist",
        networks=500,
        n_train=(250,),
        n_unseen=100,
        scale={
            "subsets": 5,
            "subset_networks": 100,
            "unseen_draws": 3,
            "extension_points": 6,
            "extension_pool": 25,
        },
    ),
    quick=Options(
        task="auto",
        networks=16,
        n_train=(150,),
        n_unseen=30,
        quick=True,
        scale={
            "subsets": 1,
            "subset_networks": 8,
            "unseen_draws": 1,
            "extension_points": 3,
            "extension_pool": 10,
        },
    ),
    grid=grid,
    train=train,
    measure=measure,
    measurement=measurement,
    analyse=analyse,
    figures=figures,
    batch_size=batch_size,
    cost=cost,
    rescaling=UNITS_RESCALED,
    declared=declared("pair-proxy"),
)
