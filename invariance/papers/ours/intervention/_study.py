"""Lower sharpness at a fixed train loss, and look at what the function does then."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from invariance import measures as M
from invariance.core._rng import generator
from invariance.data import cast_task
from invariance.outcomes import adversarial_accuracy, expected_calibration_error
from invariance.papers._declared import declared
from invariance.papers.ours.intervention._findings import analyse, figures
from invariance.papers.ours.intervention._objectives import OBJECTIVES, push
from invariance.papers.recipes._ensembles import fit_cell, settings_of_cell
from invariance.papers.recipes._measure_perceptrons import (
    describe_task,
    measured_task,
    outcomes,
    rescaling_seed,
    scale_of,
)
from invariance.papers.recipes._perceptrons import PUBLISHED_TRAIN_SEED, network, task_of
from invariance.studies._config import Config, Setting
from invariance.studies._study import Context, Options, Study, Trained
from invariance.transforms import UNITS_RESCALED, random_rescaling

RECIPE = "intervention/1"

HIDDEN = (64, 16)

#: Points of the test set that are attacked.
ATTACKED = 1_000


def grid(options: Options) -> Sequence[Config]:
    """Return every treatment of every seed's checkpoint."""
    about = describe_task(options.task)
    return [
        Config(
            RECIPE,
            {
                "task": about.name,
                "n_train": n_train,
                "train_seed": PUBLISHED_TRAIN_SEED,
                "sizes": (about.n_features, *HIDDEN, about.n_classes),
                "lr": 0.1,
                "batch_size": 64,
                "max_epochs": 500,
                "check_every": 10,
                "unseen": options.n_unseen,
                "treatment": treatment,
                "steps": scale_of(options, "steps"),
                "rate": float(options.scale["rate"]),  # type: ignore[arg-type]
            },
            options.seed + i,
        )
        for n_train in options.n_train
        for treatment in OBJECTIVES
        for i in range(options.networks)
    ]


def train(configs: Sequence[Config], context: Context) -> list[Trained]:
    """Train the checkpoints of these seeds, then push each along its train loss."""
    s = settings_of_cell(configs, RECIPE)
    fits = fit_cell(
        configs,
        context,
        s["sizes"],
        task_of(configs[0]),
        lr=s["lr"],
        batch_size=s["batch_size"],
        max_epochs=s["max_epochs"],
        target_accuracy=1.0,
        check_every=s["check_every"],
    )
    data = cast_task(task_of(configs[0], n_unseen=s["unseen"]), torch.float64, torch.device("cpu"))
    found = []
    for config, fit in zip(configs, fits, strict=True):
        start = {k: v.detach().double().cpu() for k, v in fit.model.state_dict().items()}
        names = list(start)
        layers = list(
            zip([start[n] for n in names[::2]], [start[n] for n in names[1::2]], strict=True)
        )
        size = sum(tensor.numel() for tensor in start.values())
        direction = torch.randn(size, generator=generator(config.seed, "sham"), dtype=torch.float64)
        moved, before, after = push(
            layers,
            data.x_train,
            data.y_train,
            data.x_unseen,
            OBJECTIVES[s["treatment"]],
            steps=s["steps"],
            rate=s["rate"],
            direction=direction,
        )
        tensors = dict(zip(names, [part for pair in moved for part in pair], strict=True))
        way = sum(float((tensors[n] - start[n]).square().sum()) for n in names)
        facts = {
            "epochs": fit.epochs,
            "diverged": fit.diverged,
            "reached_target": fit.reached_target,
            "loss_before": before,
            "train_loss": after,
            "moved": math.sqrt(way),
        }
        found.append(Trained(tensors, facts))
    return found


def measure(
    configs: Sequence[Config], trained: Sequence[Trained], context: Context
) -> Sequence[Mapping[str, Any]]:
    """Measure what was pushed, and what the function does."""
    found = []
    for place, (config, weights) in enumerate(zip(configs, trained, strict=True)):
        context.tell(place / len(configs))
        task = measured_task(config, context, n_unseen=context.options.n_unseen)
        model = network(config, weights).to(task.x_train.device)
        seed = rescaling_seed(config)
        rescaled = random_rescaling(model, task.x_train[:8], seed)(model, task.x_train[:8])
        targets, _ = outcomes(model, task)
        some, labels = task.x_test[:ATTACKED], task.y_test[:ATTACKED]
        pairs = M.margin_pair_proxy(model, task.x_train, task.y_train, task.x_unseen)
        inputs = (task.x_train, task.y_train)
        found.append(
            {
                "targets": targets
                | {
                    "calibration_error": float(
                        expected_calibration_error(model, task.x_test, task.y_test, bins=15)
                    ),
                    "fgsm_accuracy": float(adversarial_accuracy(model, some, labels, epsilon=0.05)),
                },
                "measures": {
                    "hessian_trace": float(M.hessian_trace(model, *inputs)),
                    "minimum_sharpness": float(M.minimum_sharpness(model, *inputs)),
                    "margin_pair_proxy": float(pairs) if pairs.exact else math.nan,
                    "parameter_norm": float(M.parameter_norm(model)),
                },
                "rescaled": {
                    "hessian_trace": float(M.hessian_trace(rescaled, *inputs)),
                    "minimum_sharpness": float(M.minimum_sharpness(rescaled, *inputs)),
                },
            }
        )
    return found


def measurement(options: Options) -> Mapping[str, Setting]:
    """Return what decides the numbers beyond the networks."""
    return {"version": 1, "n_unseen": options.n_unseen}


def batch_size(config: Config) -> int:
    """Return how many networks train together: few, so that little is lost."""
    return 10


STUDY = Study(
    name="intervention",
    title="Lowering sharpness at a fixed train loss",
    paper=(
        "A question of ours to every paper that correlates sharpness with generalization; "
        "the weakness-based objective is suggested by M. T. Bennett, arXiv 2605.05209"
    ),
    question=(
        "From one checkpoint, along the level set of its train loss and by steps of one length: "
        "lower the Hessian trace, lower the least trace over rescalings (which no rescaling can "
        "do), raise a differentiable stand-in for weakness, or walk in a random direction. What "
        "happens to test accuracy, calibration and robustness?"
    ),
    full=Options(networks=50, n_train=(500,), n_unseen=100, scale={"steps": 200, "rate": 0.002}),
    quick=Options(
        task="auto",
        networks=6,
        n_train=(100,),
        n_unseen=10,
        quick=True,
        scale={"steps": 15, "rate": 0.005},
    ),
    grid=grid,
    train=train,
    measure=measure,
    measurement=measurement,
    analyse=analyse,
    figures=figures,
    batch_size=batch_size,
    rescaling=UNITS_RESCALED,
    declared=declared("intervention"),
)
