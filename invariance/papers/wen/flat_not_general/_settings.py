"""The cells of the study: architecture, algorithm and rates, as published where published.

Rates are those of Table 2 of Wen, Li, Ma (arXiv 2307.11007), whose first letter we keep in
the comments. Explicit trace regularisation and label-noise SGD are discussed there and not
run; ours are as strong as the SAM run beside them, to leading order: at an interpolating
network 1-SAM adds ``rho^2/2 Tr H`` to the loss, label noise of size sigma adds
``lr sigma^2/2 Tr H``. So the weight of the trace is ``rho^2/2`` and sigma is ``rho/sqrt(lr)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from invariance.core._errors import UsageError
from invariance.papers.wen.flat_not_general._training import Phase, Recipe
from invariance.studies._config import Config, Setting
from invariance.studies._study import Options

RECIPE = "two-bit-parity/1"


def _plain(bias: bool, algorithm: str, *phases: Phase, **rest: float) -> Recipe:
    return Recipe("plain", bias, 500, algorithm, phases, **rest)  # type: ignore[arg-type]


def _layer(algorithm: str, *phases: Phase, **rest: float) -> Recipe:
    # "we scale down the initialization of the first layer by a factor of 100"
    return Recipe("layer", True, 500, algorithm, phases, init_scale=0.01, **rest)  # type: ignore[arg-type]


#: Name to recipe. A "*" marks what the paper runs.
CELLS: Mapping[str, Recipe] = {
    "no bias, SAM": _plain(False, "sam", Phase(100_000, 0.01, 0.05)),  # * Figure 1b
    "no bias, GD + decay": _plain(False, "gd", Phase(100_000, 0.01), weight_decay=0.05),  # * 1a
    "no bias, SGD": _plain(False, "sgd", Phase(100_000, 0.01)),
    "no bias, label noise": _plain(False, "label_noise", Phase(100_000, 0.01), noise=0.5),
    "no bias, trace": _plain(False, "trace", Phase(100_000, 0.01), trace_weight=0.00125),
    "bias, SAM": _plain(  # * Figure 4b
        True, "sam", Phase(200_000, 0.01, 0.05), Phase(400_000, 0.01, 0.1)
    ),
    # Figure 2a's rates, which the paper uses with simplified BatchNorm.
    "bias, SAM wide": _plain(True, "sam", Phase(100_000, 0.005, 0.1), Phase(100_000, 0.003, 1.0)),
    "bias, GD + decay": _plain(True, "gd", Phase(100_000, 0.01), weight_decay=0.05),  # * 4a
    "bias, SGD": _plain(True, "sgd", Phase(100_000, 0.01)),
    "bias, label noise": _plain(True, "label_noise", Phase(100_000, 0.01), noise=0.5),
    "bias, trace": _plain(True, "trace", Phase(100_000, 0.01), trace_weight=0.00125),
    "layer, SAM": _layer("sam", Phase(100_000, 0.1, 0.1)),  # * Figure 6a
    "layer, SAM projected": Recipe(  # * Figure 6b: the first layer is kept at norm 10
        "layer",
        True,
        500,
        "sam",
        (Phase(500, 0.01, 0.1), Phase(500, 0.01, 0.5), Phase(500, 0.01, 1.0)),
        radius=10.0,
    ),
    "layer, GD + decay": _layer("gd", Phase(100_000, 0.1), weight_decay=0.05),
    "layer, SGD": _layer("sgd", Phase(100_000, 0.1)),
    "layer, label noise": _layer("label_noise", Phase(100_000, 0.1), noise=0.1**0.5),
    "layer, trace": _layer("trace", Phase(100_000, 0.1), trace_weight=0.005),
    # * The first fiftieth of Figure 2a's first phase, at a fifth of its rate: a step needs the
    # whole training set, and at PyTorch's initial weights with gamma 1 the published 0.005
    # overshoots (2 lr |grad f|^2 is about 5 where 2 is the limit): every network was lost in the
    # first epoch. The second phase, rho 1, sends the output to zero when it comes that early.
    "batch, SAM": Recipe("batch", True, 500, "sam", (Phase(2_000, 0.001, 0.1),)),
}


#: No phase is cut below so many epochs; the short ones are short as published.
FEWEST_EPOCHS = 200


def number(options: Options, name: str, default: float) -> float:
    """Read one of the study's own sizes from ``options.scale``."""
    value = options.scale.get(name, default)
    if not isinstance(value, (int, float)):
        raise UsageError(f"scale[{name!r}] must be a number. Got {value!r}.")
    return value


def at_scale(recipe: Recipe, options: Options) -> Recipe:
    """Return ``recipe`` with the width and the share of epochs that ``options`` ask for.

    Full-batch methods take one step an epoch where the others take n, so their share is an
    option of its own.
    """
    name = "full_batch_epochs" if recipe.algorithm in ("gd", "trace") else "epochs"
    share = number(options, name, 1.0)
    phases = tuple(
        replace(p, epochs=max(round(share * p.epochs), min(p.epochs, FEWEST_EPOCHS)))
        for p in recipe.phases
    )
    width = int(number(options, "width", recipe.width))
    return replace(recipe, phases=phases, width=width)


def config_of(cell: str, recipe: Recipe, options: Options, seed: int) -> Config:
    """Write one network down: the seed draws data, initial weights and order."""
    settings: dict[str, Setting] = {
        "cell": cell,
        "dimension": int(number(options, "dimension", 30)),
        "n_train": options.n_train[0],
        "n_test": int(number(options, "n_test", 10_000)),
        "epochs": tuple(phase.epochs for phase in recipe.phases),
        "lr": tuple(phase.lr for phase in recipe.phases),
        "rho": tuple(phase.rho for phase in recipe.phases),
    }
    for name in ("architecture", "bias", "width", "algorithm", "weight_decay", "trace_weight",
                 "noise", "floor", "init_scale", "radius", "log_points", "dtype"):  # fmt: skip
        settings[name] = getattr(recipe, name)
    return Config(RECIPE, settings, seed)


def recipe_of(config: Config) -> Recipe:
    """Read the recipe of a configuration that :func:`config_of` wrote."""
    s = dict(config.settings)
    columns: Any = (s["epochs"], s["lr"], s["rho"])
    phases = tuple(Phase(*values) for values in zip(*columns, strict=True))
    names = ("architecture", "bias", "width", "algorithm", "weight_decay", "trace_weight",
             "noise", "floor", "init_scale", "radius", "log_points", "dtype")  # fmt: skip
    return Recipe(phases=phases, **{name: s[name] for name in names})  # type: ignore[arg-type]
