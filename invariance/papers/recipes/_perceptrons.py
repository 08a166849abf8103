"""Plain perceptrons on images, trained in ensembles until they memorise.

The protocol is that of Bennett, "Are Flat Minima an Illusion?" (arXiv 2605.05209), read
from its public notebooks: pixels divided by 255, plain SGD, the last short batch kept,
train accuracy looked at every ten epochs, training stopped at the first hit, and a network
that does not memorise is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from invariance.data import Task, load_task
from invariance.models import mlp
from invariance.papers.recipes._ensembles import fit_cell, settings_of_cell, trained
from invariance.studies._config import Config
from invariance.studies._study import Context, Trained

RECIPE = "perceptron/1"

#: Seed of the training subset in the published notebooks.
PUBLISHED_TRAIN_SEED = 42

#: Seed of the unseen points in the published notebooks.
PUBLISHED_UNSEEN_SEED = 99


def perceptron(
    seed: int,
    *,
    task: str,
    n_train: int,
    sizes: tuple[int, ...],
    lr: float,
    batch_size: int,
    max_epochs: int = 500,
    target_accuracy: float | None = 1.0,
    check_every: int = 10,
    lr_drop_at: float | None = None,
    train_seed: int = PUBLISHED_TRAIN_SEED,
) -> Config:
    """Describe one perceptron and how it is trained."""
    return Config(
        RECIPE,
        {
            "task": task,
            "n_train": n_train,
            "train_seed": train_seed,
            "sizes": tuple(sizes),
            "lr": lr,
            "batch_size": batch_size,
            "max_epochs": max_epochs,
            "target_accuracy": target_accuracy,
            "check_every": check_every,
            "lr_drop_at": lr_drop_at,
        },
        seed,
    )


def task_of(config: Config, *, n_unseen: int = 0, unseen_seed: int | None = None) -> Task:
    """Load the data of ``config``, with unseen points for measures that want them."""
    s = config.settings
    return load_task(
        str(s["task"]),
        n_train=int(s["n_train"]),  # type: ignore[arg-type]
        n_unseen=n_unseen,
        seed=int(s["train_seed"]),  # type: ignore[arg-type]
        unseen_seed=PUBLISHED_UNSEEN_SEED if unseen_seed is None else unseen_seed,
    )


def train(configs: Sequence[Config], context: Context) -> list[Trained]:
    """Train one batch of perceptrons of one cell, all at once."""
    s = settings_of_cell(configs, RECIPE)
    fits = fit_cell(
        configs,
        context,
        s["sizes"],
        task_of(configs[0]),
        lr=s["lr"],
        batch_size=min(s["batch_size"], s["n_train"]),
        max_epochs=s["max_epochs"],
        target_accuracy=s["target_accuracy"],
        check_every=s["check_every"],
        lr_drop_at=s["lr_drop_at"],
    )
    return [trained(fit, reached_target=fit.reached_target) for fit in fits]


def network(config: Config, trained: Trained, *, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Rebuild a trained perceptron."""
    model = mlp(config.settings["sizes"], seed=config.seed)  # type: ignore[arg-type]
    model.load_state_dict(dict(trained.tensors))
    return model.to(dtype).eval()
