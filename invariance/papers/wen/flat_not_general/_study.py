"""Flattest models that do not generalise: three scenarios of Wen, Li and Ma, and what they show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from invariance.papers._declared import declared
from invariance.papers.recipes._measure_perceptrons import rescaling_seed
from invariance.papers.wen.flat_not_general import _figures as figures
from invariance.papers.wen.flat_not_general import _findings as findings
from invariance.papers.wen.flat_not_general import _measuring as measuring
from invariance.papers.wen.flat_not_general import _networks as networks
from invariance.papers.wen.flat_not_general import _problem as problem
from invariance.papers.wen.flat_not_general import _training as training
from invariance.papers.wen.flat_not_general._settings import CELLS, at_scale, config_of, recipe_of
from invariance.studies._config import Config, Setting
from invariance.studies._study import Context, Options, Study, Trained


def grid(options: Options) -> list[Config]:
    """Return every cell with ``options.networks`` seeds, seed by seed."""
    return [
        config_of(cell, at_scale(recipe, options), options, seed)
        for seed in range(options.seed, options.seed + options.networks)
        for cell, recipe in CELLS.items()
    ]


def problem_of(config: Config) -> problem.Problem:
    """Draw the data of a configuration."""
    s = config.settings
    return problem.draw_problem(
        config.seed,
        dimension=int(s["dimension"]),  # type: ignore[arg-type]
        n_train=int(s["n_train"]),  # type: ignore[arg-type]
        n_test=int(s["n_test"]),  # type: ignore[arg-type]
    )


def train(configs: Sequence[Config], context: Context) -> list[Trained]:
    """Train each network by itself: the compiled loops are as fast alone as together."""
    results = []
    for index, config in enumerate(configs):

        def tell(share: float, index: int = index) -> None:
            context.tell((index + share) / len(configs))

        model, facts = training.train_network(
            recipe_of(config), problem_of(config), seed=config.seed, tell=tell
        )
        tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
        results.append(Trained(tensors, facts))
    return results


def network(config: Config, trained: Trained, data: problem.Problem) -> torch.nn.Module:
    """Rebuild a trained network in float64."""
    recipe = recipe_of(config)
    model = networks.build(
        recipe.architecture,
        dimension=data.x_train.shape[1],
        width=recipe.width,
        bias=recipe.bias,
        floor=recipe.floor,
        x_train=data.x_train,
    )
    model.load_state_dict(dict(trained.tensors))
    return model.eval()


def measure(
    configs: Sequence[Config], trained: Sequence[Trained], context: Context
) -> list[dict[str, Any]]:
    """Evaluate each network in float64, as trained and with its units rescaled."""
    found: list[dict[str, Any]] = []
    for index, (config, one) in enumerate(zip(configs, trained, strict=True)):
        data = problem_of(config)
        model = network(config, one, data)
        found.append(measuring.measured(model, data, recipe_of(config), rescaling_seed(config)))
        context.tell((index + 1) / len(configs))
    return found


def measurement(options: Options) -> dict[str, Setting]:
    """Say how networks are measured."""
    return {"version": 2, "dtype": "float64"}  # 2: random factors as in every other study


def batch_size(config: Config) -> int:
    """One: nothing is shared between networks."""
    return 1


def cost(config: Config) -> float:
    """Epochs times width; a step of simplified BatchNorm costs about a hundred others."""
    s = config.settings
    epochs = sum(int(e) for e in s["epochs"])  # type: ignore[union-attr,arg-type,misc]
    return epochs * int(s["width"]) * (100.0 if s["architecture"] == "batch" else 1.0)  # type: ignore[arg-type]


STUDY = Study(
    name="flat-not-general",
    title="Flattest models that do not generalise",
    paper=(
        "Wen, Li, Ma: Sharpness Minimization Algorithms Do Not Only Minimize Sharpness To "
        "Achieve Better Generalization (arXiv 2307.11007)"
    ),
    question=(
        "On two-bit parity, does the flattest interpolating network generalise, and does "
        "sharpness-aware minimisation? The paper finds three scenarios: without a bias both "
        "do; with a hidden bias neither need; with a simplified LayerNorm the flattest need "
        "not, and SAM does all the same."
    ),
    full=Options(
        task="two-bit parity",
        networks=5,
        n_train=(100,),
        device="cpu",
        scale={
            "dimension": 30,
            "width": 500,
            "n_test": 10_000,
            "epochs": 1.0,
            "full_batch_epochs": 1.0,
        },
    ),
    quick=Options(
        task="two-bit parity",
        networks=3,
        n_train=(100,),
        device="cpu",
        quick=True,
        scale={
            "dimension": 30,
            "width": 100,
            "n_test": 2_000,
            "epochs": 0.02,
            "full_batch_epochs": 0.1,
        },
    ),
    grid=grid,
    train=train,
    measure=measure,
    measurement=measurement,
    analyse=findings.analyse,
    figures=figures.draw,
    batch_size=batch_size,
    cost=cost,
    rescaling=measuring.RESCALING,
    declared=declared("flat-not-general"),
)
