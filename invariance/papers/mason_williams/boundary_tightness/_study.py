"""Do tight decision boundaries look sharp, and is that about the function?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from invariance import measures as M
from invariance.data import Task, cast_task
from invariance.outcomes import expected_calibration_error
from invariance.papers._declared import declared
from invariance.papers.mason_williams.boundary_tightness._circles import (
    circles_config,
    task_of,
    train,
)
from invariance.papers.mason_williams.boundary_tightness._figures import figures
from invariance.papers.mason_williams.boundary_tightness._findings import analyse
from invariance.papers.mason_williams.boundary_tightness._temperature import (
    logit_factor_for_loss,
    logit_factor_for_margin,
    with_logits_scaled,
)
from invariance.papers.recipes._measure_perceptrons import (
    Values,
    curvature_values,
    device_of,
    logits_of,
    outcomes,
    predicted,
    rescaling_seed,
)
from invariance.papers.recipes._perceptrons import network
from invariance.studies._config import Config, Setting
from invariance.studies._study import Context, Options, Study, Trained
from invariance.transforms import UNITS_RESCALED, random_rescaling

#: Common values that networks are brought to, fixed before any result was seen.
MATCHED_LOSS, MATCHED_MARGIN = 0.05, 4.0

#: The factor at which labels are resampled.
NOISE_FACTOR = 0.5

FACTORS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LABEL_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)


def _values(options: Options, name: str) -> tuple[float, ...]:
    given = options.scale[name]
    return tuple(float(v) for v in (given if isinstance(given, tuple) else (given,)))  # type: ignore[arg-type]


def grid(options: Options) -> Sequence[Config]:
    """Return every network at every factor, and at one factor with resampled labels.

    Network i starts from the same weights and sees the same angles at every factor, so that
    factors are compared within networks. Network i has split ``i mod splits``.
    """
    splits = min(int(options.scale["splits"]), options.networks)  # type: ignore[arg-type]
    cells = [(factor, 0.0) for factor in _values(options, "factors")]
    cells += [(NOISE_FACTOR, share) for share in _values(options, "label_shares")]
    return [
        circles_config(
            options.seed + i,
            factor=factor,
            split=options.seed + i % splits,
            label_share=share,
            n_train=options.n_train[0],
            epochs=int(options.scale["epochs"]),  # type: ignore[arg-type]
        )
        for factor, share in cells
        for i in range(options.networks)
    ]


def measure(
    configs: Sequence[Config], trained: Sequence[Trained], context: Context
) -> Sequence[Mapping[str, Any]]:
    """Measure each network as trained, at the common loss and at the common margin."""
    found = []
    for place, (config, weights) in enumerate(zip(configs, trained, strict=True)):
        context.tell(place / len(configs))
        device = torch.device(device_of(context))
        found.append(
            measure_network(config, weights, cast_task(task_of(config), torch.float64, device))
        )
    return found


def measure_network(config: Config, weights: Trained, task: Task) -> dict[str, Any]:
    """Measure one network; every version of it also after the same random rescaling."""
    model = network(config, weights).to(task.x_train.device)
    example = task.x_train[:8]
    rescaled = random_rescaling(model, example, rescaling_seed(config))(model, example)
    targets, labels = outcomes(model, task)
    logits = logits_of(model, task.x_train)
    factors = {
        "": 1.0,
        "_matched_loss": logit_factor_for_loss(logits, task.y_train, MATCHED_LOSS),
        "_matched_margin": logit_factor_for_margin(logits, task.y_train, MATCHED_MARGIN),
    }
    values: dict[str, Values] = {"measures": {}, "rescaled": {}}
    for part, version in (("measures", model), ("rescaled", rescaled)):
        for suffix, factor in factors.items():
            measured = _suite(version, factor, task)
            values[part] |= {name + suffix: value for name, value in measured.items()}
    s = config.settings
    return {
        **values,
        "targets": targets
        | {
            "tightness": float(s["factor"]),  # type: ignore[arg-type]
            "label_share": float(s["label_share"]),  # type: ignore[arg-type]
            "calibration_error": float(expected_calibration_error(model, task.x_test, task.y_test)),
        },
        "logit_factors": {name.lstrip("_"): value for name, value in factors.items() if name},
        "labels_changed": int((labels != predicted(rescaled, task.x_test)).sum()),
    }


#: What is measured, in the order of the tables.
MEASURES = (
    "hessian_trace",
    "hessian_eigenvalues",
    "sam_sharpness",
    "parameter_norm",
    "relative_flatness",
    "standardized_relative_flatness",
    "adaptive_trace",
    "minimum_sharpness",
    "fisher_rao_norm",
)


def _suite(model: nn.Module, factor: float, task: Task) -> Values:
    if not math.isfinite(factor):
        return dict.fromkeys(MEASURES, math.nan)
    version = model if factor == 1.0 else with_logits_scaled(model, factor)
    x, y = task.x_train, task.y_train
    values = curvature_values(version, task) | {
        "hessian_eigenvalues": float(M.hessian_eigenvalues(version, x, y)),
        "sam_sharpness": float(M.sam_sharpness(version, x, y)),
        "parameter_norm": float(M.parameter_norm(version)),
        "standardized_relative_flatness": float(M.standardized_relative_flatness(version, x, y)),
    }
    return {name: values[name] for name in MEASURES}


def measurement(options: Options) -> Mapping[str, Setting]:
    """Return what decides the numbers beyond the networks."""
    return {"version": 1, "matched_loss": MATCHED_LOSS, "matched_margin": MATCHED_MARGIN}


def batch_size(config: Config) -> int:
    """All networks of a split and factor train together."""
    return 100


def cost(config: Config) -> float:
    """Steps of training."""
    s = config.settings
    return float(s["epochs"]) * float(s["n_train"]) / float(s["batch_size"])  # type: ignore[arg-type]


STUDY = Study(
    name="boundary-tightness",
    title="Tight decision boundaries and sharpness, on two concentric circles",
    paper=(
        'Mason-Williams et al., "A Function-Centric Perspective on Flat and Sharp Minima", '
        "arXiv:2510.12451"
    ),
    question=(
        "Two circles come closer, and a small network still separates them without a mistake: "
        "does it get sharper? Training loss rises with tightness as well, and the Hessian of "
        "the cross-entropy carries p (1 - p). So networks are also compared at a common "
        "training loss and at a common margin, and all of it again after a random rescaling "
        "that changes no output. Resampled labels are the other way to get sharp."
    ),
    full=Options(
        task="circles",
        networks=100,
        n_train=(50,),
        n_unseen=0,
        scale={"factors": FACTORS, "label_shares": LABEL_SHARES, "epochs": 300, "splits": 10},
    ),
    quick=Options(
        task="circles",
        networks=6,
        n_train=(50,),
        n_unseen=0,
        quick=True,
        scale={"factors": (0.1, 0.3, 0.5, 0.7, 0.9), "label_shares": (0.2, 0.4), "epochs": 300,
               "splits": 3},
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
    declared=declared("boundary-tightness"),
)  # fmt: skip
