"""One function in many parameterisations: what becomes of sharpness, and of weakness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from invariance import measures as M
from invariance import transforms as T
from invariance.data import Task
from invariance.papers._declared import declared
from invariance.papers.bennett._networks import regime_configs, small_networks
from invariance.papers.bennett.reparameterisation._axes import (
    AXES,
    FACTORS,
    NARROW,
    NARROW_SIZE,
    is_narrow,
    law_of,
)
from invariance.papers.bennett.reparameterisation._figures import figures
from invariance.papers.bennett.reparameterisation._findings import analyse
from invariance.papers.recipes._measure_perceptrons import (
    Values,
    curvature_values,
    measure_one,
    measured_task,
    norm_values,
    one_by_one,
    pool_of,
    predicted,
    scale_of,
    whole,
)
from invariance.papers.recipes._perceptrons import PUBLISHED_TRAIN_SEED, network, train
from invariance.papers.recipes._profile import Bits, Profile, pack, profile
from invariance.studies._config import Config, Setting
from invariance.studies._study import Context, Options, Study, Trained
from invariance.transforms import UNITS_RESCALED

#: How many wide networks have their pairs counted: each takes seconds, and says the same.
WIDE_COUNTED = 3


def grid(options: Options) -> Sequence[Config]:
    """Return wide networks of the published kind, and narrow ones."""
    configs = [
        config
        for n_train in options.n_train
        for config in regime_configs(options, n_train, "small")
    ]
    narrow = options.but(n_train=(min(NARROW_SIZE, *options.n_train),))
    count = min(options.networks, scale_of(options, "narrow_networks"))
    return [*configs, *small_networks(narrow, NARROW, options.task, count, PUBLISHED_TRAIN_SEED)]


def measure(
    configs: Sequence[Config], trained: Sequence[Trained], context: Context
) -> Sequence[Mapping[str, Any]]:
    """Move every network along both axes and measure it at each factor."""
    return one_by_one(_measure, configs, trained, context)


def _measure(config: Config, weights: Trained, context: Context) -> Mapping[str, Any]:
    options = context.options
    x, y = pool_of(config, scale_of(options, "pattern_points"))
    task = measured_task(config, context, n_unseen=options.n_unseen)
    narrow = is_narrow(config)
    seen: list[Profile] = []

    def suite(model: nn.Module, task: Task) -> Values:
        seen.append(profile(model, x))
        first, *_, last = seen[-1].patterns
        values = {
            **curvature_values(model, task),
            **norm_values(model),
            "activation_patterns_1": float(first),
            "activation_patterns_2": float(last),
        }
        return values | ({"pair_proxy": _pairs(model, task)} if narrow else {})

    entry = measure_one(config, weights, task, suite)
    base = network(config, weights).to(task.x_train.device)
    before = _Base(
        seen[0],
        seen[0].labels != y.numpy(),
        predicted(base, task.x_test),
        entry["measures"],
        _blocks(base, task),
    )
    moved = seen[1].labels != y.numpy()
    return {
        **entry,
        "points": len(y),
        "mistakes": pack(before.mistakes),
        "moved": np.flatnonzero(before.mistakes != moved).tolist(),
        "axes": {
            axis: [_moved(base, axis, factor, before, task, x, y) for factor in FACTORS]
            for axis in AXES
        },
        **_saturation(base, task, config, options),
    }


class _Base(NamedTuple):
    """The untransformed network."""

    seen: Profile
    mistakes: Bits
    test_labels: Tensor
    measures: Values
    blocks: Mapping[str, float]


def _blocks(model: nn.Module, task: Task) -> Mapping[str, float]:
    return dict(M.hessian_trace(model, task.x_train, task.y_train).parts)


def _moved(
    base: nn.Module, axis: str, factor: float, before: _Base, task: Task, x: Tensor, y: Tensor
) -> Mapping[str, Any]:
    """Scale one layer against the next by a factor, and look at everything again."""
    first = AXES[axis]
    factors = [1.0] * len([name for name in before.blocks if name.endswith("weight")])
    factors[first], factors[first + 1] = factor, 1.0 / factor
    model = T.LayerScaling(factors)(base, task.x_train[:8])
    now = profile(model, x)
    labels = predicted(model, task.x_test)
    right = (labels == task.y_test).double().mean()
    mistakes = now.labels != y.numpy()
    found = {
        "factor": factor,
        "hessian_trace": sum(_blocks(model, task).values()),
        "law": law_of(before.blocks, first)(factor),
        "test_accuracy": float(right),
        "labels_changed": int((labels != before.test_labels).sum())
        + int((now.labels != before.seen.labels).sum()),
        "patterns": list(now.patterns),
        "bits_changed": sum(
            int(np.bitwise_count(one ^ two).sum())
            for one, two in zip(now.bits, before.seen.bits, strict=True)
        ),
        "moved": np.flatnonzero(mistakes != before.mistakes).tolist(),
    }
    pairs = before.measures.get("pair_proxy")
    if pairs is not None:
        found["pairs_changed"] = _pairs(model, task) - pairs
    return found


def _pairs(model: nn.Module, task: Task) -> float:
    found = M.pair_proxy(model, task.x_train, task.y_train, task.x_unseen)
    return float(found) if found.exact and found.detail["policy_feasible"] else float("nan")


def _saturation(base: nn.Module, task: Task, config: Config, options: Options) -> Mapping[str, Any]:
    """Count pairs of a few wide networks on a few points: all of them are feasible."""
    points = scale_of(options, "wide_pair_points")
    if is_narrow(config) or not points or config.seed >= options.seed + WIDE_COUNTED:
        return {}
    found = M.pair_proxy(base, task.x_train, task.y_train, task.x_unseen[:points])
    return {
        "wide_pairs": {
            "feasible": int(found.detail["feasible"]),
            "pairs": int(found.detail["pairs"]),
            "policy_feasible": found.detail["policy_feasible"],
        }
    }


def measurement(options: Options) -> Mapping[str, Setting]:
    """Return what decides the numbers beyond the networks."""
    return {
        "version": 1,
        "n_unseen": options.n_unseen,
        "pattern_points": scale_of(options, "pattern_points"),
        "wide_pair_points": scale_of(options, "wide_pair_points"),
        "first_seed": options.seed,
    }


def batch_size(config: Config) -> int:
    """Return how many networks train together."""
    return 25 if is_narrow(config) else 5


def cost(config: Config) -> float:
    """Return relative work: the wide networks see more points, and longer."""
    return 1.0 if is_narrow(config) else 1.0 + whole(config, "n_train") / 500


STUDY = Study(
    name="reparameterisation",
    title="One function, any sharpness: the trace along rescalings of a network",
    paper='M. T. Bennett, "Are Flat Minima an Illusion?", arXiv 2605.05209',
    question=(
        "Multiply one layer by a factor and divide the next by it: no output changes. How far "
        "does the Hessian trace move, does it follow its exact law, and do test accuracy, "
        "activation patterns, ensemble agreement and the pair proxy stay?"
    ),
    full=Options(
        networks=25,
        n_train=(6_000,),
        n_unseen=100,
        scale={"narrow_networks": 25, "pattern_points": 0, "wide_pair_points": 5},
    ),
    quick=Options(
        task="auto",
        networks=4,
        n_train=(200,),
        n_unseen=20,
        quick=True,
        scale={"narrow_networks": 4, "pattern_points": 1_000, "wide_pair_points": 2},
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
    declared=declared("reparameterisation"),
)
