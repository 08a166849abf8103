"""The main experiment: train, rescale, measure, correlate. ``invariance report`` runs it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from invariance.checking._alpha_sweep import alpha_sweep
from invariance.checking._check import _silent, check
from invariance.checking._correlate import correlate
from invariance.core._errors import UsageError
from invariance.core._progress import TellProgress
from invariance.data import Task, load_task
from invariance.measures._registry import AnyMeasure
from invariance.models import mlp
from invariance.reporting import CorrelationStudy, Report
from invariance.stats._ranks import MINIMUM_POINTS
from invariance.training import Fit, ProgressCallback, fit, fit_ensemble
from invariance.transforms._base import Transform

#: What the report shows, in the order in which it is read: first what moves, then what
#: stays. ``invariance.check`` takes every registered measure.
REPORTED = (
    "hessian_trace",
    "hessian_eigenvalues",
    "parameter_norm",
    "frobenius_norm_product",
    "sam_sharpness",
    "relative_flatness",
    "frobenius_trace",
    "adaptive_trace",
    "fisher_rao_norm",
    "layer_minimum_sharpness",
    "minimum_sharpness",
    "path_norm",
    "activation_patterns",
    "free_regions",
    "pair_proxy",
)

#: Hidden widths of the network whose measures are checked one by one.
HIDDEN = (256, 128)

#: Hidden widths of the ensemble's networks: small, so that many train in seconds.
ENSEMBLE_HIDDEN = (64, 16)


@dataclass(frozen=True)
class Regime:
    """One way to train the ensemble's networks.

    Attributes:
        batch_size: Rows a step; ``None`` for all of them.
        lr: Learning rate.
    """

    batch_size: int | None
    lr: float


#: Half of the ensemble is trained with small batches, half with the whole training set:
#: the published contrast for 500 points of MNIST, in which raw sharpness tracks
#: generalization (Bennett, arXiv 2605.05209, cross-regime table).
PUBLISHED = (Regime(64, 0.05), Regime(None, 0.5))

#: For the other tasks, where networks this narrow do not survive a rate of 0.5.
GENTLE = (Regime(64, 0.05), Regime(None, 0.2))


@dataclass(frozen=True)
class ReportConfig:
    """What to run.

    Attributes:
        task: Name of the task.
        n_train: Training points; ``None`` for the default of 500.
        n_unseen: Unseen points that the weakness measures look at.
        networks: Networks in the ensemble; 0 leaves the correlations out.
        batch_norm: Give the ensemble's networks BatchNorm too.
        device: Where to train: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        seed: Seed of everything.
        max_epochs: When to give up on the target accuracy.
    """

    task: str = "auto"
    n_train: int | None = None
    n_unseen: int = 30
    networks: int = 40
    batch_norm: bool = False
    device: str = "auto"
    seed: int = 0
    max_epochs: int = 1_500

    def __post_init__(self) -> None:
        if self.networks and self.networks < MINIMUM_POINTS:
            raise UsageError(
                f"Expected 0 or at least {MINIMUM_POINTS} networks for a correlation. "
                f"Got {self.networks}."
            )
        if self.n_train is not None and self.n_train < 2:
            raise UsageError(f"Expected at least 2 training points. Got {self.n_train}.")


def run_report(
    config: ReportConfig,
    progress: TellProgress | None = None,
    *,
    parallel: bool = False,
    measures: Sequence[AnyMeasure] | None = None,
    transforms: Sequence[Transform] | None = None,
) -> Report:
    """Run the whole experiment, with the measures and maps asked for."""
    started = time.perf_counter()
    tell = progress or _silent
    task = load_config(config)
    with _ensemble_part(config, task, tell, measures or REPORTED, parallel=parallel) as finish:
        report = _single_networks(config, task, tell, measures or REPORTED, transforms)
        if config.networks:
            study, remarks = finish()
            report = report.extended(correlations=study, notes=tuple(remarks))
    took = f"Took {time.perf_counter() - started:.0f} s on {torch.get_num_threads()} thread(s)"
    return report.extended(notes=(f"{took}{' in each of 2 processes' if parallel else ''}.",))


def _single_networks(
    config: ReportConfig,
    task: Task,
    tell: TellProgress,
    measures: Sequence[AnyMeasure],
    transforms: Sequence[Transform] | None,
) -> Report:
    """Train the network and its BatchNorm twin, check both, and sweep the first."""
    sizes = [task.x_train.shape[1], *HIDDEN, task.n_classes]
    fits: dict[str, Fit] = {}
    for title, batch_norm in (("mlp", False), ("mlp_batch_norm", True)):
        fits[title] = fit(
            mlp(sizes, batch_norm=batch_norm, seed=config.seed),
            task,
            seed=config.seed,
            lr=0.05,
            max_epochs=config.max_epochs,
            device=config.device,
            progress=_epochs(tell, f"training {title}"),
        )
    models = {title: found.model.cpu() for title, found in fits.items()}
    report = check(
        models, task, measures=measures, transforms=transforms, seed=config.seed, progress=tell
    )
    tell(0, 1, "Hessian trace along one scaling")
    return report.extended(
        sweep=alpha_sweep(models["mlp"], task),
        model={title: _fit_facts(found) for title, found in fits.items()},
        notes=tuple(_fit_note(title, found) for title, found in fits.items()),
    )


Correlated = tuple[CorrelationStudy, list[str]]


@contextmanager
def _ensemble_part(
    config: ReportConfig,
    task: Task,
    tell: TellProgress,
    measures: Sequence[AnyMeasure],
    *,
    parallel: bool,
) -> Iterator[Callable[[], Correlated]]:
    """Start the correlation part; yields a function that waits for its result."""
    if not (parallel and config.networks):
        yield lambda: run_correlation(config, task=task, measures=measures, progress=tell)
        return
    # A fresh interpreter: a forked one would inherit locked thread pools. Leaving the
    # block, also by Ctrl-C, ends the process.
    with get_context("spawn").Pool(1, initializer=_ignore_interrupt) as pool:
        pending = pool.apply_async(run_correlation, (config,), {"measures": measures})

        def finish() -> Correlated:
            tell(0, 1, f"waiting for {config.networks} networks and their correlations")
            return pending.get()

        yield finish


def _ignore_interrupt() -> None:
    # Ctrl-C reaches every process of the terminal; the main one decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_correlation(
    config: ReportConfig,
    *,
    task: Task | None = None,
    measures: Sequence[AnyMeasure] | None = None,
    progress: TellProgress | None = None,
) -> tuple[CorrelationStudy, list[str]]:
    """Train the ensemble and correlate every measure with its generalization gap."""
    tell = progress or _silent
    task = task or load_config(config)
    members = _ensemble(config, task, tell)
    study = correlate(
        [member.model.cpu() for member in members],
        [member.generalization_gap for member in members],
        task,
        measures=measures,
        seed=config.seed,
        progress=tell,
    )
    return study, [_ensemble_note(config, members, _regimes(task))]


def load_config(config: ReportConfig) -> Task:
    return load_task(
        config.task,
        n_train=config.n_train if config.n_train is not None else 500,
        n_unseen=config.n_unseen,
        seed=config.seed,
    )


def _ensemble(config: ReportConfig, task: Task, tell: TellProgress) -> list[Fit]:
    sizes = [task.x_train.shape[1], *ENSEMBLE_HIDDEN, task.n_classes]
    members: list[Fit] = []
    regimes = _regimes(task)
    shares = _shares(config.networks, len(regimes))
    for index, (regime, count) in enumerate(zip(regimes, shares, strict=True)):
        what = f"training {count} networks, batch {regime.batch_size or 'all'}"
        members += fit_ensemble(
            lambda seed: mlp(sizes, batch_norm=config.batch_norm, seed=seed),
            task,
            seeds=[config.seed + 100 * (index + 1) + i for i in range(count)],
            lr=regime.lr,
            batch_size=regime.batch_size,
            max_epochs=config.max_epochs,
            device=config.device,
            progress=_epochs(tell, what),
        )
    return members


def _regimes(task: Task) -> tuple[Regime, ...]:
    return PUBLISHED if task.name == "mnist" else GENTLE


def _epochs(tell: TellProgress, what: str) -> ProgressCallback:
    """Pass epochs of a training run on to a progress callback."""

    def forward(done: int, total: int, info: object) -> None:
        tell(done, total, what)

    return forward


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (1 if i < total % parts else 0) for i in range(parts)]


def _fit_facts(found: Fit) -> dict[str, object]:
    return {
        "train_accuracy": found.train_accuracy,
        "test_accuracy": found.test_accuracy,
        "epochs": found.epochs,
        "reached_target": found.reached_target,
    }


def _fit_note(title: str, found: Fit) -> str:
    note = (
        f"{title}: {found.epochs} epochs, train accuracy {found.train_accuracy:.1%}, test "
        f"accuracy {found.test_accuracy:.1%}."
    )
    if not found.reached_target:
        note += " It did NOT reach the asked train accuracy."
    return note


def _ensemble_note(config: ReportConfig, members: Sequence[Fit], used: Sequence[Regime]) -> str:
    late = sum(not member.reached_target for member in members)
    regimes = "; ".join(
        f"batch {regime.batch_size or 'all'}, learning rate {regime.lr:g}" for regime in used
    )
    tests = [member.test_accuracy for member in members]
    note = (
        f"ensemble: {len(members)} networks with hidden widths "
        f"{'-'.join(str(width) for width in ENSEMBLE_HIDDEN)}"
        f"{' and BatchNorm' if config.batch_norm else ''}, half each: {regimes}; test accuracy "
        f"{min(tests):.1%} to {max(tests):.1%}."
    )
    if late:
        note += f" {late} of them did NOT reach the asked train accuracy and are kept."
    return note
