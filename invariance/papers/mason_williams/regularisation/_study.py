"""Are regularised networks sharper and better, and is that about the function?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from invariance.core._errors import UsageError, unknown_name
from invariance.core._rng import generator
from invariance.outcomes import corruption_suite
from invariance.papers._declared import declared
from invariance.papers.mason_williams.regularisation import _images as images
from invariance.papers.mason_williams.regularisation import _sharpness as sharpness
from invariance.papers.mason_williams.regularisation._analysis import analyse
from invariance.papers.mason_williams.regularisation._figures import figures
from invariance.papers.mason_williams.regularisation._methods import (
    AUGMENTATIONS,
    METHODS,
    PUBLISHED_METHODS,
)
from invariance.papers.recipes._measure_perceptrons import rescaling_seed
from invariance.studies._config import Config, Setting
from invariance.studies._study import Context, Options, Study, Trained
from invariance.training._augmentation import image_shape
from invariance.transforms import UNITS_RESCALED, random_rescaling

#: Two tasks in one run; one name, or several joined like this, may be given.
BOTH = "mnist+fashion-mnist"

#: Radius of FGSM and PGD in the max-norm, by number of channels: fixed before any network
#: was looked at.
EPSILON: Mapping[int, float] = MappingProxyType({1: 0.05, 3: 2 / 255})


def tasks_of(options: Options) -> list[str]:
    """Return the data sets that the options name."""
    return [images.test_task(name).name for name in options.task.split("+")]


def grid(options: Options) -> Sequence[Config]:
    """Return every architecture, method, batch size and rate on every data set."""
    scale = options.scale
    methods = _tuple(scale["methods"])
    for name in methods:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    if "baseline" not in methods:
        raise UsageError(f"Every method is compared with 'baseline'. Got methods {methods}.")
    configs: list[Config] = []
    for task in tasks_of(options):
        for n_train in options.n_train:
            for architecture in _tuple(scale["architectures"]):
                for name in methods:
                    settings = METHODS[name].settings(AUGMENTATIONS.get(task, ("shift",)))
                    configs += [
                        images.image_network(
                            options.seed + i,
                            task=task,
                            n_train=n_train,
                            architecture=str(architecture),
                            lr=float(rate),
                            batch_size=int(batch_size),
                            epochs=int(scale["epochs"]),  # type: ignore[arg-type]
                            **settings,
                        )
                        for batch_size in _tuple(scale["batch_sizes"])
                        for rate in _tuple(scale["rates"])
                        for i in range(options.networks)
                    ]
            images.task_of(configs[-1])  # more points than there are are refused here
    return configs


def measurement(options: Options) -> Mapping[str, Setting]:
    """Return what decides the measured numbers beyond the network."""
    return {
        "version": 2,  # 2: random factors as in every other study
        "measures": tuple(sharpness.MEASURES),
        "score_rows": options.scale["score_rows"],
        "test_rows": options.scale["test_rows"],
        "attacked_rows": options.scale["attacked_rows"],
    }


def measure(
    configs: Sequence[Config], trained: Sequence[Trained], context: Context
) -> list[Mapping[str, Any]]:
    """Measure one batch of networks: sharpness twice, and what their functions do.

    Args:
        configs: Their configurations, of one cell.
        trained: Their weights.
        context: Sizes, device and progress.

    Returns:
        For each network measures, rescaled measures, targets, predictions kept for
        comparisons between networks, and what was refused.
    """
    scale = context.options.scale
    score_rows, test_rows, attacked = (
        int(scale[name])  # type: ignore[arg-type]
        for name in ("score_rows", "test_rows", "attacked_rows")
    )
    dtype = torch.float32 if context.device == "mps" else torch.float64
    task = images.task_of(configs[0])
    x = task.x_train.to(context.device, dtype)
    y = task.y_train.to(context.device)
    x_test, y_test, suite = _test_set(str(configs[0].settings["task"]), test_rows, attacked)
    channels = image_shape(task.n_features)[0]
    out: list[Mapping[str, Any]] = []
    for position, (config, network) in enumerate(zip(configs, trained, strict=True)):
        if network.facts["diverged"]:
            out.append({"measures": {}, "rescaled": {}, "targets": {}, "predictions": None})
            continue
        model = images.network(config, network, dtype=dtype).to(context.device)
        other = random_rescaling(model, x[:8], rescaling_seed(config))(model, x[:8])
        values, refused, estimated = sharpness.measure_all(
            [model, other], x, y, score_rows=score_rows
        )
        targets = sharpness.outcomes(
            model, x_test.to(dtype), y_test, rows=attacked, suite=suite, epsilon=EPSILON[channels]
        )
        gap = network.facts["train_accuracy"] - targets["test_accuracy"]
        out.append(
            {
                "measures": values[0],
                "rescaled": values[1],
                "targets": targets | {"generalization_gap": gap},
                "predictions": sharpness.predictions(
                    model, x_test[: sharpness.LABEL_ROWS].to(dtype)
                ),
                "refused": refused,
                "estimated": estimated,
            }
        )
        context.tell((position + 1) / len(configs))
    return out


@lru_cache(maxsize=2)
def _test_set(
    name: str, test_rows: int, attacked: int
) -> tuple[Tensor, Tensor, Mapping[tuple[str, int], Tensor]]:
    """Return test points in one random order, and corrupted copies of the first of them."""
    task = images.test_task(name)
    order = torch.randperm(len(task.y_test), generator=generator(0, "test rows"))[:test_rows]
    x, y = task.x_test[order], task.y_test[order]
    return x, y, corruption_suite(x[:attacked].double())


def batch_size(config: Config) -> int:
    """Networks that train together: all of a cell of ten."""
    return 10


def cost(config: Config) -> float:
    """Passes times points times the work of one, doubled by SAM; measuring is extra."""
    s = config.settings
    epochs, n_train = float(s["epochs"]), float(s["n_train"])  # type: ignore[arg-type]
    passes = epochs * (2 if s["sam_rho"] else 1) * (2 if s["augmentation"] else 1)
    return images.WORK[str(s["architecture"])] * n_train * (passes + 200)


def _tuple(value: Setting) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


_SCALE: Mapping[str, Setting] = {
    "architectures": ("mlp",),
    "methods": PUBLISHED_METHODS,
    "batch_sizes": (128, 256),
    "rates": (1e-3, 1e-2),
    "epochs": 250,
    "score_rows": 4,
    "test_rows": 5_000,
    "attacked_rows": 500,
}

STUDY = Study(
    name="regularisation",
    title="Are regularised networks sharper and better, and is that about the function?",
    paper=(
        "I. Mason-Williams, G. Mason-Williams, H. Yannakoudakis, "
        '"A Function-Centric Perspective on Flat and Sharp Minima", arXiv 2510.12451'
    ),
    question=(
        "Weight decay, augmentation and sharpness-aware minimisation are each compared with no "
        "regularisation, pair by pair at equal seed, batch size and learning rate. Do they "
        "generalise better, and are they sharper? Every sharpness is measured again after a "
        "random rescaling of each network that keeps its function, and at equal train loss, "
        "which regularisation raises and curvature follows. Networks are small and see few "
        'points for two cores\' sake; --set architectures=\'["vgg","resnet","vit"]\', '
        "--n-train and --set epochs make it larger, --task takes any data set that "
        "load_task knows, or several joined by a plus sign."
    ),
    full=Options(task=BOTH, networks=10, n_train=(500,), n_unseen=0, scale=_SCALE),
    quick=Options(
        task="mnist",
        networks=6,
        n_train=(300,),
        n_unseen=0,
        quick=True,
        scale={
            **_SCALE,
            "batch_sizes": (128,),
            "rates": (1e-2,),
            "epochs": 150,
            "score_rows": 4,
            "test_rows": 1_000,
            "attacked_rows": 100,
        },
    ),
    grid=grid,
    train=images.train,
    measure=measure,
    measurement=measurement,
    analyse=analyse,
    figures=figures,
    batch_size=batch_size,
    cost=cost,
    rescaling=UNITS_RESCALED,
    declared=declared("regularisation"),
)
