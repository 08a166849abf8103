"""From validated arguments to finished networks: engines, groups, devices, reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from invariance.core._errors import DataError, ModelError, UsageError
from invariance.core._modules import BATCH_NORMS, clone, floating_dtype, model_device, model_dtype
from invariance.data._task import Task
from invariance.training._augmentation import image_shape
from invariance.training._engine import PerceptronEngine, TrainingEngine
from invariance.training._generic import FunctionalEngine, SingleEngine, stochastic
from invariance.training._loop import EngineMaker, NetworkRun, evaluate, train
from invariance.training._options import Options, ProgressCallback, TrainingProgress
from invariance.training._result import Fit

#: Memory for weights and activations of the networks that train side by side.
GROUP_BYTES = 2 * 1024**3


def run_all(
    models: Sequence[nn.Module],
    seeds: Sequence[int],
    task: Task,
    options: Options,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    vectorize: bool | None,
    progress: ProgressCallback | None,
    keep_diverged: bool,
) -> list[Fit]:
    """Train the networks and report on each."""
    home = model_device(models[0])
    kind = model_dtype(models[0]) if dtype is None else floating_dtype(dtype)
    if device.type == "mps" and kind == torch.float64:
        raise UsageError("MPS has no float64. Use device='cpu', or dtype=torch.float32.")
    if not kind.is_floating_point:
        raise UsageError(f"dtype must be a floating-point type. Got {kind}.")
    started = [model.to(device=device, dtype=kind).train() for model in models]
    x, y = task.x_train.to(device, kind), task.y_train.to(device)
    check_model(started[0], x, task.n_classes, options)

    runs = [NetworkRun(model, seed) for model, seed in zip(started, seeds, strict=True)]
    report = _reporter(runs, options, progress)
    slots = max(2, torch.get_num_threads()) if device.type == "cpu" else 1
    size = max(slots, GROUP_BYTES // _bytes_per_network(started[0], x, options))
    for first in range(0, len(runs), size):
        group = runs[first : first + size]
        maker, least = _choose(group, x, y, options, vectorize, slots)
        train(
            group,
            maker,
            x,
            y,
            options,
            slots=least,
            keep_diverged=keep_diverged,
            after_epoch=report,
        )
    test = (task.x_test.to(device, kind), task.y_test.to(device))
    return [_fit(run, test, home, options) for run in runs]


def check_model(model: nn.Module, x: Tensor, n_classes: int, options: Options) -> None:
    """Refuse a model that cannot be trained on these points, before any work is done.

    Shapes: ``x (n, d)``.
    """
    name = type(model).__name__
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            f"{name} has no parameter with requires_grad=True, so there is nothing to train."
        )
    for label, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(f"Parameter {label!r} of {name} holds NaN or infinity at the start.")
    if options.augmentation:
        image_shape(x.shape[1])  # refuses rows that are no images
    if not bool(torch.isfinite(x).all()):
        raise DataError("task.x_train holds NaN or infinity. Drop or repair those rows.")
    norms = [label for label, module in model.named_modules() if isinstance(module, BATCH_NORMS)]
    last = options.batches(len(x))[-1]
    if norms and last.stop - last.start == 1:
        raise ModelError(
            f"The last batch of {len(x)} points has a single point, and BatchNorm "
            f"({norms[0]!r}) has no statistics of one point. Change batch_size "
            f"({options.batch_size}) or n_train."
        )
    probe = clone(model).eval()
    try:
        with torch.no_grad():
            out = probe(x[:2])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ModelError(
            f"{name} does not accept the task's points of shape (rows, {x.shape[1]}): {error}. "
            "Points are flat; for images put nn.Unflatten(1, (1, 28, 28)) in front."
        ) from error
    expected = (len(x[:2]), n_classes)
    if not isinstance(out, Tensor) or tuple(out.shape) != expected:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ModelError(
            f"{name} must map (rows, {x.shape[1]}) to one logit a class, shape "
            f"(rows, {n_classes}). Got {got} for {expected[0]} rows."
        )


def _choose(
    group: Sequence[NetworkRun],
    x: Tensor,
    y: Tensor,
    options: Options,
    vectorize: bool | None,
    slots: int,
) -> tuple[EngineMaker, int]:
    """Return what builds the engine, and how many slots it needs at least."""
    seeds = [run.seed for run in group]

    def by_hand(models: Sequence[nn.Module]) -> TrainingEngine:
        return PerceptronEngine(models, x, y, options)  # type: ignore[arg-type]

    def functional(models: Sequence[nn.Module]) -> TrainingEngine:
        return FunctionalEngine(models, x, y, options)

    def single(models: Sequence[nn.Module]) -> TrainingEngine:
        return SingleEngine(models, seeds, x, y, options)

    first = group[0].start
    if vectorize is not False and all(PerceptronEngine.accepts(run.start) for run in group):
        shapes = {_signature(run.start) for run in group}
        if len(shapes) == 1:
            return by_hand, slots
    wanted = x.device.type != "cpu" if vectorize is None else vectorize
    if wanted and not stochastic(first):
        return functional, slots
    return single, 1


def _signature(model: nn.Module) -> tuple[object, ...]:
    return tuple(
        (
            type(module),
            # Slopes, momenta and the like: an engine takes them from the first network.
            "" if module._modules else module.extra_repr(),
            tuple(entry.shape for entry in module.parameters(recurse=False)),
        )
        for module in model.modules()
    )


def _bytes_per_network(model: nn.Module, x: Tensor, options: Options) -> int:
    """Estimate what one network keeps in memory while it trains, from above."""
    weights = sum(entry.numel() for entry in (*model.parameters(), *model.buffers()))
    widest = max(entry.shape[0] for entry in model.parameters() if entry.ndim) + x.shape[1]
    states = {"adam": 4, "sgd": 2}[options.optimizer] + (4 if options.sam_rho else 0)
    return int(x.element_size() * (weights * states + 6 * min(len(x), 4096) * widest))


def _fit(run: NetworkRun, test: tuple[Tensor, Tensor], home: torch.device, options: Options) -> Fit:
    assert run.model is not None
    accuracy = float("nan")
    if len(test[1]) and not run.diverged:
        accuracy = evaluate(run.model, *test)[1] / len(test[1])
    last = run.history[-1]
    return Fit(
        model=run.model.to(home),
        seed=run.seed,
        epochs=last.epoch,
        reached_target=run.reached,
        train_accuracy=last.train_accuracy,
        train_loss=last.train_loss,
        test_accuracy=accuracy,
        history=tuple(run.history),
        config=options,
        diverged=run.diverged,
    )


def _reporter(
    runs: Sequence[NetworkRun], options: Options, progress: ProgressCallback | None
) -> Callable[[], None]:
    """Return what tells the user's callback where things stand."""

    def report() -> None:
        if progress is None:
            return
        finished = [run for run in runs if run.model is not None]
        done = sum(options.max_epochs if run.model is not None else run.epochs for run in runs)
        seen = sum(run.history[-1].train_accuracy for run in runs if run.history)
        progress(
            done,
            len(runs) * options.max_epochs,
            TrainingProgress(
                networks=len(runs),
                finished=len(finished),
                reached=sum(run.reached for run in finished),
                train_accuracy=seen / len(runs),
            ),
        )

    return report
