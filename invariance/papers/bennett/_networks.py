"""The networks of the paper: two regimes of batch size, and small networks trained alike."""

from __future__ import annotations

from typing import NamedTuple

from invariance.papers.recipes._measure_perceptrons import describe_task
from invariance.papers.recipes._perceptrons import PUBLISHED_TRAIN_SEED, perceptron
from invariance.studies._config import Config
from invariance.studies._study import Options, Record

HIDDEN = (256, 128)


class Protocol(NamedTuple):
    """How the networks of one training-set size are trained."""

    small_lr: float
    large_lr: float
    max_epochs: int
    lr_drop_at: float | None
    stop: float


#: Published settings by training-set size; between them the nearest size below is used. The
#: last one is the share of training points right at which training stops. The notebooks look
#: at the first 10,000 points, which up to 6,000 are all of them; the paper's text says 99.5 %,
#: which its networks were not trained by.
PROTOCOLS = {
    500: Protocol(0.05, 0.5, 500, None, 0.9999),
    2_000: Protocol(0.03, 0.5, 500, None, 0.9999),
    6_000: Protocol(0.01, 0.5, 500, None, 0.9999),
    12_000: Protocol(0.01, 0.5, 500, 0.8, 1.0),
    24_000: Protocol(0.01, 0.3, 500, 0.8, 1.0),
    60_000: Protocol(0.01, 0.3, 600, 0.8, 1.0),
}

#: A further treatment: training that stops while the loss is still large.
EARLY_STOP = 0.995

SMALL_BATCH, LARGEST_BATCH = 64, 4_096

#: Large batches have seeds of their own, as published.
LARGE_SEED = 100

SMALL, LARGE = "small batch", "large batch"

TARGETS = ("test_accuracy", "generalization_gap", "loss_gap")

#: What partial correlations hold fixed.
COVARIATES = ("train_loss", "epochs", "parameter_norm")

#: Training points of the small networks.
PUBLISHED_SMALL_SIZE = 250


def regime_configs(
    options: Options,
    n_train: int,
    regime: str,
    train_seed: int = PUBLISHED_TRAIN_SEED,
    *,
    early: bool = False,
) -> list[Config]:
    """Return the networks of one training-set size and one batch size."""
    about = describe_task(options.task)
    known = [size for size in PROTOCOLS if size <= n_train] or [min(PROTOCOLS)]
    rule = PROTOCOLS[max(known)]
    small = regime == "small"
    first = options.seed + (0 if small else max(LARGE_SEED, options.networks))
    return [
        perceptron(
            first + i,
            task=about.name,
            n_train=n_train,
            sizes=(about.n_features, *HIDDEN, about.n_classes),
            lr=rule.small_lr if small else rule.large_lr,
            batch_size=SMALL_BATCH if small else min(n_train, LARGEST_BATCH),
            max_epochs=rule.max_epochs,
            target_accuracy=EARLY_STOP if early else rule.stop,
            lr_drop_at=rule.lr_drop_at,
            train_seed=train_seed,
        )
        for i in range(options.networks)
    ]


def regime_of(record: Record) -> str:
    """Return which batch size a record has: by seeds' settings, not by name."""
    return SMALL if record.config.settings["batch_size"] == SMALL_BATCH else LARGE


def stopped_early(record: Record) -> bool:
    """Return whether a network was to stop at :data:`EARLY_STOP`."""
    return record.config.settings["target_accuracy"] == EARLY_STOP


def small_networks(
    options: Options, hidden: tuple[int, ...], task: str, count: int, train_seed: int
) -> list[Config]:
    """Return small networks that memorise: SGD at 0.1, batches of 64."""
    about = describe_task(task)
    return [
        perceptron(
            options.seed + i,
            task=about.name,
            n_train=n_train,
            sizes=(about.n_features, *hidden, about.n_classes),
            lr=0.1,
            batch_size=64,
            train_seed=train_seed,
        )
        for n_train in options.n_train
        for i in range(count)
    ]
