"""Does the advantage of one batch size vanish as data grows, and that of flatness with it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from invariance.data import Task
from invariance.papers._declared import declared
from invariance.papers.bennett._networks import regime_configs
from invariance.papers.bennett.vanishing_advantage._figures import figures
from invariance.papers.bennett.vanishing_advantage._findings import analyse
from invariance.papers.recipes._measure_perceptrons import (
    Values,
    curvature_values,
    measure_one,
    measured_task,
    norm_values,
    pool_of,
    scale_of,
    whole,
)
from invariance.papers.recipes._perceptrons import train
from invariance.papers.recipes._profile import Profile, pack, profile
from invariance.studies._config import Config, Setting
from invariance.studies._study import Context, Options, Study, Trained
from invariance.transforms import UNITS_RESCALED


def grid(options: Options) -> Sequence[Config]:
    """Return both regimes at every size; further training subsets and an early stop at some."""
    configs = [
        config
        for n_train in options.n_train
        for regime in ("small", "large")
        for config in regime_configs(options, n_train, regime)
    ]
    smallest = min(options.n_train)
    if smallest <= scale_of(options, "subset_n"):  # further subsets are cheap there alone
        fewer = options.but(networks=min(options.networks, scale_of(options, "subset_networks")))
        for train_seed in range(1, scale_of(options, "subsets") + 1):
            for regime in ("small", "large"):
                configs += regime_configs(fewer, smallest, regime, train_seed)
    for n_train in options.n_train if scale_of(options, "early_networks") else ():
        if n_train <= scale_of(options, "early_n"):
            fewer = options.but(networks=min(options.networks, scale_of(options, "early_networks")))
            for regime in ("small", "large"):
                configs += regime_configs(fewer, n_train, regime, early=True)
    return configs


def measure(
    configs: Sequence[Config], trained: Sequence[Trained], context: Context
) -> Sequence[Mapping[str, Any]]:
    """Measure curvature on the training points, patterns and mistakes on the unseen ones."""
    return [
        _measure(config, weights, context, place / len(configs))
        for place, (config, weights) in enumerate(zip(configs, trained, strict=True))
    ]


def _measure(config: Config, weights: Trained, context: Context, share: float) -> Mapping[str, Any]:
    context.tell(share)
    x, y = pool_of(config, context.options.n_unseen)
    seen: list[Profile] = []

    def suite(model: nn.Module, task: Task) -> Values:
        seen.append(profile(model, x))
        first, *_, last = seen[-1].patterns
        return {
            **curvature_values(model, task),
            **norm_values(model),
            "activation_patterns_1": float(first),
            "activation_patterns_2": float(last),
        }

    entry = measure_one(config, weights, measured_task(config, context), suite)
    before, after = (one.labels != y.numpy() for one in seen)
    return {
        **entry,
        "points": len(y),
        "mistakes": pack(before),
        "moved": np.flatnonzero(before != after).tolist(),
    }


def measurement(options: Options) -> Mapping[str, Setting]:
    """Return what decides the numbers beyond the networks."""
    return {"version": 1, "n_unseen": options.n_unseen}


def batch_size(config: Config) -> int:
    """Return how many networks train together: few where one takes long."""
    n = whole(config, "n_train")
    return 25 if n <= 2_000 else 13 if n <= 6_000 else 5 if n <= 24_000 else 3


def cost(config: Config) -> float:
    """Return relative work: points seen, and the unseen points that are measured."""
    return 1.0 + whole(config, "n_train") / 500


STUDY = Study(
    name="vanishing-advantage",
    title="The advantage of one batch size, and of flatness, vanishes as data grows",
    paper='M. T. Bennett, "Are Flat Minima an Illusion?", arXiv 2605.05209',
    question=(
        "Large batches with a high learning rate generalise better than small ones on little "
        "data, and end at flatter points. Does the advantage vanish as the training set grows, "
        "does the correlation of flatness with test accuracy vanish with it, and is that "
        "correlation more than a difference between two ways of training?"
    ),
    full=Options(
        networks=25,
        n_train=(500, 2_000, 6_000, 12_000, 24_000, 60_000),
        n_unseen=0,
        scale={
            "subsets": 2,
            "subset_networks": 25,
            "subset_n": 500,
            "early_networks": 25,
            "early_n": 6_000,
        },
    ),
    quick=Options(
        task="auto",
        networks=6,
        n_train=(100, 400),
        n_unseen=1_000,
        quick=True,
        scale={
            "subsets": 0,
            "subset_networks": 0,
            "subset_n": 0,
            "early_networks": 6,
            "early_n": 100,
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
    declared=declared("vanishing-advantage"),
)
