"""Measuring perceptrons: as trained, and after a random rescaling that keeps the function.

Every network is measured by itself, in float64: a result never depends on which networks
were measured beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invariance import measures as M
from invariance.core._modules import weight_layers
from invariance.core._perceptron import read_perceptron
from invariance.curvature import exact_curvature
from invariance.data import Task, cast_task, load_task
from invariance.measures._minimum_sharpness import mlp_design
from invariance.papers.recipes._perceptrons import PUBLISHED_UNSEEN_SEED, network
from invariance.studies._config import Config
from invariance.studies._study import Context, Options, Trained
from invariance.symmetry.balance._scalings import minimise_over_scalings
from invariance.transforms import random_rescaling

#: Name to value; NaN where a measure is not defined for a network.
Values = dict[str, float]

#: Measures one network on one task.
Suite = Callable[[nn.Module, Task], Values]

ROWS_AT_ONCE = 4_096


def one_by_one(
    measure: Callable[[Config, Trained, Context], Mapping[str, Any]],
    configs: Sequence[Config],
    trained: Sequence[Trained],
    context: Context,
) -> list[Mapping[str, Any]]:
    """Measure each network by itself, and tell how far it got."""
    found = []
    for place, (config, weights) in enumerate(zip(configs, trained, strict=True)):
        context.tell(place / len(configs))
        found.append(measure(config, weights, context))
    return found


class About(NamedTuple):
    """What a grid has to know about a data set before anything is trained."""

    name: str
    n_features: int
    n_classes: int
    n_total: int


@lru_cache(maxsize=8)
def describe_task(name: str) -> About:
    """Return the true name (``auto`` resolved) and the sizes of a data set."""
    task = load_task(name)
    return About(task.name, task.n_features, task.n_classes, task.n_train)


@lru_cache(maxsize=4)
def kept_task(
    name: str, n_train: int, train_seed: int, n_unseen: int, unseen_seed: int, device: str
) -> Task:
    """Load a task in float64; the last few are kept, since batches of one cell share theirs."""
    task = load_task(
        name, n_train=n_train, seed=train_seed, n_unseen=n_unseen, unseen_seed=unseen_seed
    )
    return cast_task(task, torch.float64, torch.device(device))


def measured_task(
    config: Config,
    context: Context,
    *,
    n_unseen: int = 0,
    unseen_seed: int = PUBLISHED_UNSEEN_SEED,
) -> Task:
    """Load the data of a perceptron as it is measured: in float64, with unseen points."""
    return kept_task(
        str(config.settings["task"]),
        whole(config, "n_train"),
        whole(config, "train_seed"),
        n_unseen,
        unseen_seed,
        device_of(context),
    )


@lru_cache(maxsize=2)
def unseen_pool(name: str, n_train: int, train_seed: int, n_unseen: int) -> tuple[Tensor, Tensor]:
    """Load many unseen points in float32, and their labels.

    As published, they are the rest of the training set and the test set while the training
    subset is small, the rest of the training set when it is large, and the test set when
    nothing else is left.

    Shapes: returns ``(u, d)``.
    """
    total = describe_task(name).n_total
    source = "rest" if n_train < 0.4 * total else "train" if n_train < total else "test"
    task = load_task(
        name,
        n_train=n_train,
        seed=train_seed,
        n_unseen=n_unseen or None,
        unseen_seed=PUBLISHED_UNSEEN_SEED,
        unseen_from=source,  # type: ignore[arg-type]
    )
    return task.x_unseen, task.y_unseen


def scale_of(options: Options, name: str) -> int:
    """Return a size that only one study has; 0 where it is not given."""
    return int(options.scale.get(name, 0))  # type: ignore[arg-type]


def whole(config: Config, name: str) -> int:
    """Return a setting that is a whole number."""
    return int(config.settings[name])  # type: ignore[arg-type]


def widths(config: Config) -> tuple[int, ...]:
    """Return the widths of a perceptron's layers, input and classes included."""
    return tuple(int(size) for size in config.settings["sizes"])  # type: ignore[union-attr,arg-type]


def pool_of(config: Config, n_unseen: int) -> tuple[Tensor, Tensor]:
    """Return the :func:`unseen_pool` of a network."""
    return unseen_pool(
        str(config.settings["task"]),
        whole(config, "n_train"),
        whole(config, "train_seed"),
        n_unseen,
    )


def device_of(context: Context) -> str:
    """Return where to measure in float64, which Apple's GPUs do not have."""
    return "cpu" if context.device == "mps" else context.device


def rescaling_seed(config: Config) -> int:
    """Return the seed of a network's random rescaling: its own, from its name."""
    return int(config.id[:12], 16)


def measure_one(config: Config, trained: Trained, task: Task, suite: Suite) -> dict[str, Any]:
    """Measure one network as trained and rescaled, with its targets.

    The factors of the rescaling are drawn from the network's own seed, the same for all measures.
    """
    model = network(config, trained).to(task.x_train.device)
    example = task.x_train[:8]
    rescaled = random_rescaling(model, example, rescaling_seed(config))(model, example)
    targets, labels = outcomes(model, task)
    return {
        "targets": targets,
        "measures": suite(model, task),
        "rescaled": suite(rescaled, task),
        "labels_changed": int((labels != predicted(rescaled, task.x_test)).sum()),
    }


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Return ``(n, K)`` logits, a few thousand rows at a time."""
    with torch.no_grad():
        return torch.cat([model(part) for part in torch.split(x, ROWS_AT_ONCE)])


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    """Return the arg-max class of every row."""
    return logits_of(model, x).argmax(dim=1)


def outcomes(model: nn.Module, task: Task) -> tuple[Values, Tensor]:
    """Return the targets of a network, and its labels of the test points.

    Returns:
        ``test_accuracy``; ``generalization_gap``, train minus test accuracy; ``test_loss``
        and ``loss_gap``, test minus train loss. And the labels.
    """
    train, test = logits_of(model, task.x_train), logits_of(model, task.x_test)
    labels = test.argmax(dim=1)
    accuracy = float((labels == task.y_test).double().mean())
    train_accuracy = float((train.argmax(dim=1) == task.y_train).double().mean())
    test_loss = float(F.cross_entropy(test, task.y_test))
    return {
        "test_accuracy": accuracy,
        "generalization_gap": train_accuracy - accuracy,
        "test_loss": test_loss,
        "loss_gap": test_loss - float(F.cross_entropy(train, task.y_train)),
    }, labels


def curvature_values(model: nn.Module, task: Task, *, eigenvalues: bool = False) -> Values:
    """Measure curvature on the training points, most of it in a single exact sweep."""
    x, y = task.x_train, task.y_train
    swept = exact_curvature(model, x, y, relative_flatness=True, diagonal=True)
    parameters = dict(model.named_parameters())
    steps = read_perceptron(model)
    assert steps is not None
    values = {
        "hessian_trace": swept.trace,
        "relative_flatness": swept.relative_flatness[weight_layers(model)[-1][0]],
        "adaptive_trace": sum(
            float((parameters[name].detach().square() * entries).sum())
            for name, entries in swept.diagonal.items()
        ),
        "minimum_sharpness": minimise_over_scalings(
            dict(swept.diagonal), mlp_design(steps, "neuron")
        ).value,
        "fisher_rao_norm": float(M.fisher_rao_norm(model, x, y)),
    }
    if eigenvalues:
        values["hessian_eigenvalues"] = float(M.hessian_eigenvalues(model, x, y))
        values["adaptive_eigenvalue"] = float(M.adaptive_eigenvalue(model, x, y))
    return values


def norm_values(model: nn.Module) -> Values:
    """Measure the parameters alone."""
    return {
        "parameter_norm": float(M.parameter_norm(model)),
        "parameter_norm_l1": float(M.parameter_norm(model, p=1.0)),
        "path_norm": float(M.path_norm(model)),
        "spectral_norm_product": float(M.spectral_norm_product(model)),
    }


def pair_values(model: nn.Module, task: Task) -> Values:
    """Count feasible (unseen point, class) pairs, of all and of used features.

    NaN where the training points are not separable or a pair stayed undecided: such a
    network has no count that could be compared.
    """
    found = M.pair_proxy(model, task.x_train, task.y_train, task.x_unseen)
    used = M.repaired_pair_proxy(model, task.x_train, task.y_train, task.x_unseen)
    return {
        name: float(count) if count.exact and count.detail["policy_feasible"] else math.nan
        for name, count in (("pair_proxy", found), ("repaired_pair_proxy", used))
    }
