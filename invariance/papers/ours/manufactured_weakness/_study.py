"""Can weakness be manufactured, as flatness can?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from invariance import measures as M
from invariance.data import Task
from invariance.papers._declared import declared
from invariance.papers.bennett._networks import small_networks
from invariance.papers.ours.manufactured_weakness._findings import analyse, figures
from invariance.papers.ours.manufactured_weakness._units import FAINT, how_many, with_units
from invariance.papers.recipes._measure_perceptrons import (
    Values,
    logits_of,
    measured_task,
    one_by_one,
    outcomes,
    predicted,
    rescaling_seed,
)
from invariance.papers.recipes._perceptrons import PUBLISHED_TRAIN_SEED, network, train
from invariance.studies._config import Config, Setting
from invariance.studies._study import Context, Options, Study, Trained
from invariance.transforms import UNITS_RESCALED, random_rescaling

HIDDEN = (64, 8)


def grid(options: Options) -> Sequence[Config]:
    """Return the networks of the pair proxy's study, and as many more as are asked for."""
    return small_networks(options, HIDDEN, options.task, options.networks, PUBLISHED_TRAIN_SEED)


def measure(
    configs: Sequence[Config], trained: Sequence[Trained], context: Context
) -> Sequence[Mapping[str, Any]]:
    """Count pairs as trained, with silent units and with faint ones."""
    return one_by_one(_measure, configs, trained, context)


def _measure(config: Config, weights: Trained, context: Context) -> Mapping[str, Any]:
    task = measured_task(config, context, n_unseen=context.options.n_unseen)
    model = network(config, weights).to(task.x_train.device)
    seed = rescaling_seed(config)
    count = how_many(seed)
    silent, faint = (with_units(model, count, seed, size) for size in (0.0, FAINT))
    example = task.x_train[:8]
    rescaled = random_rescaling(model, example, seed)(model, example)
    targets, labels = outcomes(model, task)
    logits = logits_of(model, task.x_test)
    moved = {name: logits_of(other, task.x_test) for name, other in _pair(silent, faint).items()}
    return {
        "targets": targets,
        "measures": {
            "hessian_trace": float(M.hessian_trace(model, task.x_train, task.y_train)),
            **_counts(model, task, "", margin=True),
            **_counts(silent, task, "_silent", margin=False),
            **_counts(faint, task, "_faint", margin=True),
        },
        "rescaled": {
            "hessian_trace": float(M.hessian_trace(rescaled, task.x_train, task.y_train)),
            "pair_proxy": _pairs(M.pair_proxy, rescaled, task),
        },
        "units": count,
        "labels_changed": {
            name: int((labels != other.argmax(dim=1)).sum()) for name, other in moved.items()
        },
        "labels_changed_rescaled": int((labels != predicted(rescaled, task.x_test)).sum()),
        "logits_moved": {
            name: float((other - logits).abs().max()) for name, other in moved.items()
        },
    }


def _pair(silent: nn.Module, faint: nn.Module) -> dict[str, nn.Module]:
    return {"silent": silent, "faint": faint}


def _counts(model: nn.Module, task: Task, suffix: str, *, margin: bool) -> Values:
    """Count pairs of all features, of those that are used, and (a solve a pair) with a margin."""
    values = {
        f"pair_proxy{suffix}": _pairs(M.pair_proxy, model, task),
        f"repaired_pair_proxy{suffix}": _pairs(M.repaired_pair_proxy, model, task),
    }
    if margin:  # a function of the function: silent units need no second look
        found = M.margin_pair_proxy(model, task.x_train, task.y_train, task.x_unseen)
        values[f"margin_pair_proxy{suffix}"] = float(found) if found.exact else math.nan
    return values


def _pairs(measure: Any, model: nn.Module, task: Task) -> float:
    found = measure(model, task.x_train, task.y_train, task.x_unseen)
    return float(found) if found.exact and found.detail["policy_feasible"] else math.nan


def measurement(options: Options) -> Mapping[str, Setting]:
    """Return what decides the numbers beyond the networks."""
    return {"version": 1, "n_unseen": options.n_unseen}


def batch_size(config: Config) -> int:
    """Return how many networks train and are measured together: few, so that little is lost."""
    return 10


STUDY = Study(
    name="manufactured-weakness",
    title="Weakness can be manufactured without touching the function",
    paper=('A question of ours to M. T. Bennett, "Are Flat Minima an Illusion?", arXiv 2605.05209'),
    question=(
        "The paper argues that flatness cannot explain generalization because a rescaling changes "
        "it at will and no prediction. Counts over features can be changed at will, too: give "
        "each network a random number of units that nothing listens to. No label moves. Does the "
        "count still rank networks? And do repairs last, when the units speak at 1e-9?"
    ),
    full=Options(networks=500, n_train=(250,), n_unseen=100),
    quick=Options(task="auto", networks=8, n_train=(250,), n_unseen=10, quick=True),
    grid=grid,
    train=train,
    measure=measure,
    measurement=measurement,
    analyse=analyse,
    figures=figures,
    batch_size=batch_size,
    rescaling=UNITS_RESCALED,
    declared=declared("manufactured-weakness"),
)
