"""Can any measure choose the better of many networks that were all trained alike?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from invariance import measures as M
from invariance.core._rng import generator
from invariance.data import Task
from invariance.papers._declared import declared
from invariance.papers.bennett._networks import small_networks
from invariance.papers.bennett.model_selection._findings import analyse, figures
from invariance.papers.recipes._measure_perceptrons import (
    Values,
    curvature_values,
    measure_one,
    measured_task,
    norm_values,
    one_by_one,
    pool_of,
    scale_of,
    widths,
)
from invariance.papers.recipes._perceptrons import PUBLISHED_TRAIN_SEED, train
from invariance.papers.recipes._profile import Profile, profile, regions_of
from invariance.studies._config import Config, Setting
from invariance.studies._study import Context, Options, Study, Trained
from invariance.transforms import UNITS_RESCALED

HIDDEN = (64, 16)


#: Points in each further draw of unseen points.
DRAWN = 1_000


def grid(options: Options) -> Sequence[Config]:
    """Return the networks of the published subset, and fewer of further subsets."""
    configs = small_networks(options, HIDDEN, options.task, options.networks, PUBLISHED_TRAIN_SEED)
    fewer = min(options.networks, scale_of(options, "subset_networks"))
    for train_seed in range(1, scale_of(options, "subsets") + 1):
        configs += small_networks(options, HIDDEN, options.task, fewer, train_seed)
    return configs


def measure(
    configs: Sequence[Config], trained: Sequence[Trained], context: Context
) -> Sequence[Mapping[str, Any]]:
    """Measure curvature, norms and regions over the unseen points, and pairs on a few."""
    return one_by_one(_measure, configs, trained, context)


def _measure(config: Config, weights: Trained, context: Context) -> Mapping[str, Any]:
    pool, _ = pool_of(config, context.options.n_unseen)
    task = measured_task(config, context, n_unseen=scale_of(context.options, "pair_points"))
    units, classes = widths(config)[-2:]
    seen: list[tuple[Profile, Profile]] = []

    def suite(model: nn.Module, task: Task) -> Values:
        train_points, unseen = profile(model, task.x_train), profile(model, pool)
        seen.append((train_points, unseen))
        regions = regions_of(train_points.bits[-1], unseen.bits[-1], units, classes)
        pairs = M.pair_proxy(model, task.x_train, task.y_train, task.x_unseen)
        separable = pairs.exact and pairs.detail["policy_feasible"]
        return {
            **curvature_values(model, task, eigenvalues=True),
            **norm_values(model),
            "activation_patterns_1": float(unseen.patterns[0]),
            "activation_patterns_2": float(regions.patterns),
            "free_regions": float(regions.free),
            "free_parameters": float(regions.parameters),
            "pair_proxy": float(pairs) if separable else float("nan"),
        }

    entry = measure_one(config, weights, task, suite)
    return {**entry, "draws": _draws(seen[0], units, classes, context.options)}


def _draws(
    seen: tuple[Profile, Profile], units: int, classes: int, options: Options
) -> Mapping[str, Mapping[str, float]]:
    """Count regions on further random draws of unseen points, from patterns read already."""
    import torch

    train_points, unseen = seen
    found = {}
    for seed in range(scale_of(options, "unseen_draws")):
        order = torch.randperm(len(unseen.labels), generator=generator(seed, "unseen draw"))
        rows = unseen.bits[-1][order[:DRAWN].numpy()]
        regions = regions_of(train_points.bits[-1], rows, units, classes)
        found[str(seed)] = {
            "activation_patterns_2": float(regions.patterns),
            "free_regions": float(regions.free),
            "free_parameters": float(regions.parameters),
        }
    return found


def measurement(options: Options) -> Mapping[str, Setting]:
    """Return what decides the numbers beyond the networks."""
    return {
        "version": 1,
        "n_unseen": options.n_unseen,
        "pair_points": scale_of(options, "pair_points"),
        "unseen_draws": scale_of(options, "unseen_draws"),
    }


def batch_size(config: Config) -> int:
    """Return how many networks train together."""
    return 50


def cost(config: Config) -> float:
    """Return relative work: all networks cost the same."""
    return 1.0


STUDY = Study(
    name="model-selection",
    title="Choosing among networks that were trained alike",
    paper='M. T. Bennett, "Are Flat Minima an Illusion?", arXiv 2605.05209',
    question=(
        "Networks of one architecture, trained in one way on the same points, differ by their "
        "seed alone. Does any measure, computed without test data, tell the better ones from "
        "the worse?"
    ),
    full=Options(
        networks=300,
        n_train=(250,),
        n_unseen=0,
        scale={"subsets": 3, "subset_networks": 50, "pair_points": 100, "unseen_draws": 3},
    ),
    quick=Options(
        task="auto",
        networks=24,
        n_train=(100,),
        n_unseen=1_500,
        quick=True,
        scale={"subsets": 1, "subset_networks": 8, "pair_points": 20, "unseen_draws": 2},
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
    declared=declared("model-selection"),
)
