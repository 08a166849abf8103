"""Small perceptrons on two concentric circles: how tight is the boundary, how random the labels?

The protocol of Mason-Williams et al. (arXiv 2510.12451): scikit-learn's ``make_circles``
without noise, half of the points to train on, an MLP 2-100-100-2, SGD with momentum. What the
text leaves open is decided here: a split is drawn by its own seed and shared by all factors,
and by all networks of that split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.datasets import make_circles

from invariance.core._errors import UsageError
from invariance.core._rng import generator
from invariance.data import Task
from invariance.papers.recipes._ensembles import fit_cell, settings_of_cell, trained
from invariance.studies._config import Config
from invariance.studies._study import Context, Trained

RECIPE = "circles/1"


def circles_config(
    seed: int,
    *,
    factor: float,
    split: int,
    label_share: float = 0.0,
    n_train: int = 50,
    sizes: tuple[int, ...] = (2, 100, 100, 2),
    lr: float = 0.01,
    momentum: float = 0.9,
    batch_size: int = 5,
    epochs: int = 300,
) -> Config:
    """Describe one perceptron on circles."""
    return Config(
        RECIPE,
        {
            "factor": factor,
            "split": split,
            "label_share": label_share,
            "n_train": n_train,
            "sizes": tuple(sizes),
            "lr": lr,
            "momentum": momentum,
            "batch_size": batch_size,
            "epochs": epochs,
        },
        seed,
    )


def circles_task(factor: float, split: int, *, label_share: float = 0.0, n_train: int = 50) -> Task:
    """Return the circles of one factor and split; test labels are never resampled."""
    if not 0 < factor < 1:
        raise UsageError(f"factor must lie between 0 and 1. Got {factor!r}.")
    if not 0 <= label_share <= 1:
        raise UsageError(f"label_share must lie in [0, 1]. Got {label_share!r}.")
    points, labels = make_circles(2 * n_train, factor=factor, noise=None, shuffle=False)
    x = torch.from_numpy(points.astype(np.float32))
    y = torch.from_numpy(labels.astype(np.int64))
    order = torch.randperm(2 * n_train, generator=generator(split, "circles", "split"))
    train, test = order[:n_train], order[n_train:]
    task = Task(
        f"circles-{factor:g}", 2, x[train], y[train], x[test], y[test], x[:0], y[:0],
        source="scikit-learn make_circles without noise",
    )  # fmt: skip
    count = round(label_share * n_train)
    if not count:
        return task
    draws = generator(split, "circles", "labels")
    # One order and one set of labels for all shares: a larger share resamples more of the same.
    chosen = torch.randperm(n_train, generator=draws)
    drawn = torch.randint(0, 2, (n_train,), generator=draws)
    changed = task.y_train.clone()
    changed[chosen[:count]] = drawn[:count]
    return replace(task, y_train=changed)


def task_of(config: Config) -> Task:
    """Return the data of a configuration made by :func:`circles_config`."""
    s = config.settings
    return circles_task(
        s["factor"],  # type: ignore[arg-type]
        s["split"],  # type: ignore[arg-type]
        label_share=s["label_share"],  # type: ignore[arg-type]
        n_train=s["n_train"],  # type: ignore[arg-type]
    )


def train(configs: Sequence[Config], context: Context) -> list[Trained]:
    """Train one batch of one cell, all at once."""
    s = settings_of_cell(configs, RECIPE)
    fits = fit_cell(
        configs,
        context,
        s["sizes"],
        task_of(configs[0]),
        lr=s["lr"],
        momentum=s["momentum"],
        batch_size=s["batch_size"],
        max_epochs=s["epochs"],
        check_every=s["epochs"],
        target_accuracy=None,
    )
    return [trained(fit) for fit in fits]
