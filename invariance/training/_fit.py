"""``fit`` and ``fit_ensemble``: the public face of training."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypedDict, Unpack

import torch
from torch import nn

from invariance.core._arguments import as_seed
from invariance.core._errors import ModelError, UsageError, unknown_name
from invariance.core._foreign import foreign
from invariance.core._modules import clone
from invariance.data._given import TaskLike, as_task
from invariance.data._task import Task
from invariance.models._mlp import check_sizes, mlp
from invariance.training._options import Options, ProgressCallback, resolve_device
from invariance.training._result import Fit
from invariance.training._runner import run_all

#: Layer widths of an MLP, one module, or a function from a seed to a module.
ModelSource = Sequence[int] | nn.Module | Callable[[int], nn.Module]

OnDivergence = Literal["raise", "keep"]


class Training(TypedDict, total=False):
    """How to train: the keyword arguments that :func:`fit` explains.

    The defaults are those of :class:`Options`, and of ``_RUN_DEFAULTS`` for what does not decide
    the network.
    """

    lr: float
    batch_size: int | None
    max_epochs: int
    target_accuracy: float | None
    optimizer: str
    momentum: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    lr_drop_at: float | None
    lr_drop_factor: float
    check_every: int
    sam_rho: float
    sam_adaptive: bool
    sam_eta: float
    augmentation: str | Sequence[str] | None
    device: str | torch.device
    dtype: torch.dtype | None
    vectorize: bool | None
    progress: ProgressCallback | None
    on_divergence: OnDivergence


_RUN_DEFAULTS: dict[str, Any] = {
    "device": "cpu",
    "dtype": None,
    "vectorize": None,
    "progress": None,
    "on_divergence": "raise",
}


def fit(
    model: nn.Module,
    task: TaskLike,
    *,
    seed: int = 0,
    **training: Unpack[Training],
) -> Fit:
    """Train a copy of one network by minimising the mean cross-entropy.

    Args:
        model: The network with its starting weights; it is left as it is. The copy is
            trained in train mode and returned in eval mode.
        task: The data: a task, its name, ``(x, y)``, or a DataLoader of such batches. Rows of
            your own that are no vectors are flattened.
        seed: Decides the order of the data, and nothing else.
        lr: Learning rate.
        batch_size: Points a step; ``None`` for all. A last short batch is kept.
        max_epochs: Passes over the training set, at most.
        target_accuracy: Stop once this share of the training points is classified
            correctly; ``None`` to run all epochs. A network that does not get there is
            returned all the same, with ``reached_target`` false.
        optimizer: ``"sgd"`` or ``"adam"``, as ``torch.optim`` defines them.
        momentum: SGD's momentum.
        weight_decay: L2 penalty added to every parameter's gradient.
        betas: Adam's decay rates.
        eps: Adam's addition to the denominator.
        lr_drop_at: Share of ``max_epochs`` after which the rate drops; ``None`` for never.
        lr_drop_factor: What the rate is then multiplied by.
        check_every: Epochs between looks at train loss and accuracy.
        sam_rho: Radius of sharpness-aware minimisation on top of the optimizer (Foret et
            al. 2021, arXiv 2010.01412): each step takes the gradient at
            ``w + sam_rho * g / |g|``, g over all trained parameters of this network; 0 for
            none. Weight decay and momentum see the weights themselves, which come back
            bit for bit; BatchNorm tracks its statistics in the first of the two passes
            alone; random layers draw the same masks in both.
        sam_adaptive: Adaptive SAM (Kwon et al. 2021, arXiv 2102.11600), elementwise: the
            gradient at ``w + sam_rho * T^2 g / |T g|``, ``T = |w| + sam_eta``. Biases and
            BatchNorm's parameters are scaled too.
        sam_eta: With 0 the climb of adaptive SAM is the same in every function-preserving
            rescaling of the network; with more (the paper uses 0.01) it is not.
        augmentation: One or several of ``"shift"``, ``"flip"``, ``"rotate"``: training
            images are changed anew in every epoch, by draws that depend on seed, epoch and
            point alone. Points are flat square images, grey or of three channels.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``, or ``"auto"``. The result comes back on
            the model's own device.
        dtype: Floating-point type to train in; ``None`` for the model's own.
        vectorize: See :func:`fit_ensemble`; of no use for one network.
        progress: Called as ``progress(done_epochs, total_epochs, info)`` after each epoch.
        on_divergence: What to do when loss or weights become NaN or infinite: ``"raise"``,
            or ``"keep"`` the network as it is and mark it ``diverged``.

    Returns:
        The trained network and its record.

    Raises:
        ModelError: If the network does not fit the task, or training diverges.
        UsageError: For an option that is unknown or out of range.

    Example:
        >>> import invariance as inv
        >>> task = inv.load_task("digits", n_train=100)
        >>> found = inv.fit(inv.models.mlp([64, 32, 10]), task)
        >>> found.train_accuracy
        1.0
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"fit needs an nn.Module. Got {type(model).__name__}; "
            "build one with invariance.models.mlp(sizes), or call fit_ensemble(sizes, ...)."
        )
    return fit_ensemble(model, task, seeds=[as_seed(seed)], **training)[0]


def fit_ensemble(
    model_or_sizes: ModelSource,
    task: TaskLike,
    *,
    seeds: Iterable[int],
    **training: Unpack[Training],
) -> list[Fit]:
    """Train many networks at once, each exactly as it would be trained alone.

    The network of seed s depends on s alone, whatever the ensemble around it: every
    network has its own stream of shuffles, drawn on the CPU on every device. A network
    that reaches the target is frozen there. On the CPU the result is the same to the last
    bit in any ensemble where MKL's kernels are reproducible: with ``MKL_CBWR=AUTO`` in the
    environment before torch computes anything, as the command line sets it. Without, on
    CUDA and MPS, and for ``vectorize=True`` with other modules than perceptrons, it is the
    same up to the round-off of differently split sums (about 1e-6 relative a step in
    float32), because libraries choose kernels by batch size and place in memory.

    Args:
        model_or_sizes: What to train. Layer widths ``(features, ..., classes)``: the
            network of seed s starts as ``mlp(sizes, seed=s)``. A module: every network
            starts from its weights, and only the order of the data differs. A function
            ``seed -> module``: the network of seed s starts as ``function(s)``.
        task: The data; see :func:`fit`.
        seeds: One network for each.
        **training: How to train, by the names and defaults of :func:`fit`. With ``sam_rho`` each
            network climbs by its own gradient's norm. ``vectorize``: perceptrons
            (``nn.Sequential`` of linear layers, activations and BatchNorm) are batched over
            networks with derivatives by hand, everywhere. Other modules: ``True`` batches them
            with ``torch.func``, ``False`` trains one after another, ``None`` batches them except
            on the CPU. There, one after another is as reproducible for any module as perceptrons
            are and, for convolutions, faster. Modules with dropout are trained one after
            another.

    Returns:
        One :class:`Fit` for each seed, in the order of ``seeds``.

    Raises:
        ModelError: If the network does not fit the task, or training diverges; names
            the seeds.
        UsageError: For an option that is unknown or out of range.

    Example:
        >>> import invariance as inv
        >>> task = inv.load_task("digits", n_train=100)
        >>> [found.train_accuracy for found in inv.fit_ensemble([64, 32, 10], task, seeds=[0, 1])]
        [1.0, 1.0]
    """
    for name in training:
        if name not in Training.__annotations__:
            known = unknown_name("option", name, Training.__annotations__)
            raise TypeError(f"An unexpected keyword argument. {known}")
    given: dict[str, Any] = {
        **training,
        "augmentation": _augmentations(training.get("augmentation")),
    }
    options = Options(**{name: given[name] for name in given if name not in _RUN_DEFAULTS})
    run: dict[str, Any] = _RUN_DEFAULTS | {k: v for k, v in given.items() if k in _RUN_DEFAULTS}
    where = resolve_device(run["device"])
    numbers = _check_seeds(seeds)
    task = as_task(task, "fit", model_or_sizes)
    if run["on_divergence"] not in ("raise", "keep"):
        raise UsageError(f"on_divergence must be 'raise' or 'keep'. Got {run['on_divergence']!r}.")
    return run_all(
        _starts(model_or_sizes, numbers, task),
        numbers,
        task,
        options,
        device=where,
        dtype=run["dtype"],
        vectorize=run["vectorize"],
        progress=run["progress"],
        keep_diverged=run["on_divergence"] == "keep",
    )


def _shown(function: Callable[..., Any]) -> None:
    """Show a function's training options, with their defaults, wherever its signature is shown."""
    own = inspect.signature(function)
    hints = {name: hint.__forward_arg__ for name, hint in Training.__annotations__.items()}
    fields = {field.name: field.default for field in dataclasses.fields(Options)}
    defaults = fields | {"augmentation": None} | _RUN_DEFAULTS
    options = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=hints[name]
        )
        for name, value in defaults.items()
    ]
    kept = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    function.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]


_shown(fit)
_shown(fit_ensemble)


def _augmentations(given: str | Sequence[str] | None) -> tuple[str, ...]:
    if given is None or isinstance(given, str):
        return () if given is None else (given,)
    if not isinstance(given, Sequence):
        raise UsageError(f"augmentation must be a name or a list of names. Got {given!r}.")
    return tuple(given)


def _check_seeds(seeds: Iterable[int]) -> list[int]:
    if isinstance(seeds, int) or not isinstance(seeds, Iterable):
        raise UsageError(f"seeds must be a list of integers, such as range(10). Got {seeds!r}.")
    numbers = list(seeds)
    if not numbers:
        raise UsageError("seeds is empty. Give one seed for each network, such as range(10).")
    for number in numbers:
        if isinstance(number, bool) or not hasattr(number, "__index__"):
            raise UsageError(f"seeds must be integers. Got {number!r}.")
    return [as_seed(number, "seeds") for number in numbers]


def _starts(source: ModelSource, seeds: list[int], task: Task) -> list[nn.Module]:
    if isinstance(source, nn.Module):
        return [clone(source) for _ in seeds]
    if callable(source):
        with foreign("The function given as a model"):
            models = [source(seed) for seed in seeds]
        for model in models:
            if not isinstance(model, nn.Module):
                raise ModelError(
                    "The function given as a model must return an nn.Module for a seed. "
                    f"Got {type(model).__name__}."
                )
        return [clone(model) for model in models]
    sizes = check_sizes(source)
    if sizes[0] != task.n_features or sizes[-1] != task.n_classes:
        raise ModelError(
            f"sizes {sizes} do not fit the task {task.name!r}: they must start with its "
            f"{task.n_features} features and end with its {task.n_classes} classes."
        )
    return [mlp(sizes, seed=seed) for seed in seeds]
