"""Image classifiers of four architectures, trained with or without regularisation.

SGD with momentum for a fixed number of epochs at a constant rate; pixels in [0, 1], not
normalised. On a CPU networks with convolutions or attention train one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import nn

from invariance import models
from invariance.core._errors import unknown_name
from invariance.data import Task, load_task
from invariance.papers.recipes._ensembles import fit_cell, settings_of_cell, trained
from invariance.studies._config import Config
from invariance.studies._study import Context, Trained
from invariance.training._augmentation import image_shape

RECIPE = "image/1"

#: Seed of the training subset.
TRAIN_SEED = 42

#: Features, classes and a seed to a network.
Builder = Callable[[int, int, int], nn.Module]


def _mlp(hidden: Sequence[int]) -> Builder:
    return lambda d, k, seed: models.mlp((d, *hidden, k), seed=seed)


def _vgg(stages: Sequence[Sequence[int]], hidden: int) -> Builder:
    def build(d: int, k: int, seed: int) -> nn.Module:
        channels, side = image_shape(d)
        return models.vgg(
            in_channels=channels,
            image_size=side,
            stages=stages,
            hidden=hidden,
            n_classes=k,
            flat_input=True,
            seed=seed,
        )

    return build


def _resnet(widths: Sequence[int], blocks: Sequence[int]) -> Builder:
    def build(d: int, k: int, seed: int) -> nn.Module:
        channels, side = image_shape(d)
        return models.resnet(
            in_channels=channels,
            image_size=side,
            widths=widths,
            blocks=blocks,
            n_classes=k,
            flat_input=True,
            seed=seed,
        )

    return build


def _vit(patches: int, width: int, depth: int, heads: int, hidden: int) -> Builder:
    """Return a builder of ViTs that cut the side of an image into at least ``patches``."""

    def build(d: int, k: int, seed: int) -> nn.Module:
        channels, side = image_shape(d)
        patch = max(p for p in range(1, side + 1) if side % p == 0 and side // p >= patches)
        return models.vit(
            in_channels=channels,
            image_size=side,
            patch=patch,
            width=width,
            depth=depth,
            heads=heads,
            hidden=hidden,
            n_classes=k,
            flat_input=True,
            seed=seed,
        )

    return build


#: What a name in a configuration builds. To change one, give it another name.
ARCHITECTURES: Mapping[str, Builder] = MappingProxyType(
    {
        "mlp": _mlp((64, 32)),
        "vgg": _vgg(((8,), (16,)), 32),
        "resnet": _resnet((8, 16), (1, 1)),
        "vit": _vit(4, 32, 2, 4, 64),
        "mlp-large": _mlp((512, 256)),
        "vgg-large": _vgg(((64,), (128,), (256, 256), (512, 512)), 512),
        "resnet18": _resnet((64, 128, 256, 512), (2, 2, 2, 2)),
        "vit-large": _vit(7, 192, 6, 3, 768),
    }
)

#: Relative work of one pass over one image, for order and progress.
WORK: Mapping[str, float] = MappingProxyType(
    {
        "mlp": 1.0,
        "vgg": 30.0,
        "resnet": 60.0,
        "vit": 40.0,
        "mlp-large": 10.0,
        "vgg-large": 4_000.0,
        "resnet18": 9_000.0,
        "vit-large": 2_000.0,
    }
)


def image_network(
    seed: int,
    *,
    task: str,
    n_train: int,
    architecture: str,
    lr: float,
    batch_size: int,
    epochs: int,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    augmentation: tuple[str, ...] = (),
    sam_rho: float = 0.0,
    sam_adaptive: bool = False,
    train_seed: int = TRAIN_SEED,
) -> Config:
    """Describe one classifier and how it is trained."""
    if architecture not in ARCHITECTURES:
        raise unknown_name("architecture", architecture, ARCHITECTURES)
    return Config(
        RECIPE,
        {
            "task": task,
            "n_train": n_train,
            "train_seed": train_seed,
            "architecture": architecture,
            "lr": lr,
            "batch_size": batch_size,
            "epochs": epochs,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "augmentation": tuple(augmentation),
            "sam_rho": sam_rho,
            "sam_adaptive": sam_adaptive,
        },
        seed,
    )


def task_of(config: Config) -> Task:
    """Return the data of a configuration; kept, since many networks share it."""
    s = config.settings
    return _task(str(s["task"]), int(s["n_train"]), int(s["train_seed"]))  # type: ignore[arg-type]


@lru_cache(maxsize=2)
def _task(name: str, n_train: int, seed: int) -> Task:
    return load_task(name, n_train=n_train, seed=seed)


@lru_cache(maxsize=2)
def test_task(name: str) -> Task:
    """Return a data set for its test points, with a single training point."""
    return load_task(name, n_train=1)


def build(config: Config) -> nn.Module:
    """Return the network of a configuration before training."""
    task = task_of(config)
    make = ARCHITECTURES[str(config.settings["architecture"])]
    return make(task.n_features, task.n_classes, config.seed)


def train(configs: Sequence[Config], context: Context) -> list[Trained]:
    """Train one batch of networks of one cell."""
    s = settings_of_cell(configs, RECIPE)
    by_seed = {config.seed: config for config in configs}
    fits = fit_cell(
        configs,
        context,
        lambda seed: build(by_seed[seed]),
        task_of(configs[0]),
        max_epochs=s["epochs"],
        check_every=max(1, s["epochs"] // 10),
        batch_size=min(s["batch_size"], s["n_train"]),
        target_accuracy=None,
        lr=s["lr"],
        momentum=s["momentum"],
        weight_decay=s["weight_decay"],
        augmentation=s["augmentation"],
        sam_rho=s["sam_rho"],
        sam_adaptive=s["sam_adaptive"],
    )
    return [
        trained(fit, curve=[[r.epoch, r.train_loss, r.train_accuracy] for r in fit.history])
        for fit in fits
    ]


def network(config: Config, trained: Trained, *, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Rebuild a trained network."""
    model = build(config)
    model.load_state_dict(dict(trained.tensors))
    return model.to(dtype).eval()
