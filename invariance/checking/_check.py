"""The check: every measure before and after every transform."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from invariance.cells import (
    BrokenTransformError,
    CellEngine,
    CellRow,
    ComparisonPolicy,
    FunctionRow,
    MappedNetwork,
    Refusal,
)
from invariance.cells._mapped_network import COMPARED_ROWS, EXAMPLE_ROWS
from invariance.checking._environment import describe_environment, describe_model, describe_task
from invariance.core._arguments import as_seed, as_tolerance
from invariance.core._errors import InvarianceError, MeasureError, UsageError
from invariance.core._forward import reading
from invariance.core._modules import (
    clone,
    floating_dtype,
    in_train_mode,
    model_device,
    require_module,
)
from invariance.core._progress import TellProgress
from invariance.data import Task, cast_task
from invariance.data._given import TaskLike, as_task
from invariance.measures._registry import AnyMeasure, Measure, resolve
from invariance.reporting import Report
from invariance.transforms._base import Transform, as_transforms
from invariance.transforms._members import default_transforms, resolve_all


def check(
    model: nn.Module | Mapping[str, nn.Module],
    task: TaskLike,
    *,
    transforms: Sequence[Transform] | Transform | None = None,
    measures: Sequence[AnyMeasure] | AnyMeasure | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    rtol: float = 0.0,
    progress: TellProgress | None = None,
) -> Report:
    """Measure a model before and after function-preserving maps, and judge each cell.

    A cell is judged as :func:`invariance.testing.assert_invariant` judges it, by one rule: a
    value may miss its goal by ``rtol`` of it, or by its measured float error where that is
    larger. They differ in what they take ``rtol`` to be when it is not given.

    Args:
        model: The model, or several by name. Copies are used; nothing is changed.
        task: The data; ``x_train``/``y_train`` for curvature, ``x_unseen`` for weakness. Also a
            task's name, ``(x, y)``, or a DataLoader of such batches.
        transforms: What to apply; by default a member of every kind of map there is.
            One that does not apply to the model, or changes its function, is listed under
            ``refused`` with its reason.
        measures: Registered names, :class:`Measure` objects or plain functions
            ``(model, x, y) -> number``; by default every registered measure.
        seed: Seed of the random transforms and of the round-off probes.
        dtype: Precision to work in. In float32 the tolerances are wider, as measured, up to
            a thousandth of the value.
        rtol: Relative change that is not worth mentioning; by default every change is that
            float error does not explain.
        progress: Called as ``progress(done, total, what)``.

    Returns:
        The report: how far each function is unchanged, and one row a cell.

    Raises:
        UsageError: If a measure's name is unknown, or there is no model, measure or map to check.
        MeasureError: If a model is in train mode where that changes its function.

    Example:
        >>> import invariance as inv
        >>> task = inv.load_task("digits", n_train=100)
        >>> model = inv.fit(inv.models.mlp([64, 16, 10]), task).model
        >>> report = inv.check(model, task, measures=["path_norm"])
        >>> report.contradictions
        ()
    """
    models = dict(model) if isinstance(model, Mapping) else {"model": model}
    _require_models(models)
    task = as_task(task, "check", *models.values())
    chosen = resolve(measures)
    given = None if transforms is None else as_transforms(transforms)
    dtype = floating_dtype(dtype)
    policy = ComparisonPolicy(rtol=as_tolerance(rtol), seed=as_seed(seed))
    found: list[FunctionRow | CellRow | Refusal] = []
    for title, original in models.items():
        _require_evaluation_mode(original)
        base = clone(original).to(dtype)
        data = cast_task(task, dtype, model_device(base))
        _require_fit(base, data)
        maps = default_transforms(base, seed=seed) if given is None else resolve_all(given, base)
        points = data.x_test if len(data.x_test) else data.x_train
        network = MappedNetwork(
            base, data.x_train[:EXAMPLE_ROWS], compared=points[:COMPARED_ROWS], title=title
        )
        found += _cells(network, data, chosen, maps, policy, progress or _silent)
    return Report(
        task=describe_task(task),
        model={title: describe_model(entry) for title, entry in models.items()},
        environment=describe_environment(dtype),
        function=tuple(entry for entry in found if isinstance(entry, FunctionRow)),
        rows=tuple(entry for entry in found if isinstance(entry, CellRow)),
        refused=tuple(entry for entry in found if isinstance(entry, Refusal)),
    )


def _cells(
    network: MappedNetwork,
    task: Task,
    measures: Sequence[Measure],
    maps: Sequence[Transform],
    policy: ComparisonPolicy,
    progress: TellProgress,
) -> Iterator[FunctionRow | CellRow | Refusal]:
    """Go through all cells of one network, map by map."""
    title, total = network.title, len(measures) * (len(maps) + 1)
    engines: list[CellEngine] = []
    for done, measure in enumerate(measures):
        progress(done, total, f"{title}: {measure.name}")
        try:
            engines.append(CellEngine(measure, network, measure.inputs(task), policy))
        except InvarianceError as error:
            yield Refusal(measure.name, str(error), title)
    for number, transform in enumerate(maps, start=1):
        try:
            yield network.function_row(transform)
        except InvarianceError as error:
            if isinstance(error, BrokenTransformError) and error.row is not None:
                yield error.row
            yield Refusal(repr(transform), str(error), title)
            continue
        for done, engine in enumerate(engines, start=number * len(measures)):
            progress(done, total, f"{title}: {engine.measure.name} under {transform.name}")
            try:
                yield engine.cell(transform, judged=True).row
            except InvarianceError as error:
                yield Refusal(f"{engine.measure.name} under {transform!r}", str(error), title)


def _silent(done: int, total: int, what: str) -> None:
    """Tell nobody how far the work is."""


def _require_models(models: Mapping[str, Any]) -> None:
    if not models:
        raise UsageError("There is no model to check: the mapping of models is empty.")
    for title, entry in models.items():
        require_module(entry, f"check needs an nn.Module as {title}")


def _require_fit(model: nn.Module, task: Task) -> None:
    """Raise if the model cannot read the task's points: every cell would be refused."""
    rows = task.x_train[:2]
    with torch.no_grad(), reading(model, rows, "the task's x_train"):
        model(rows)


def _require_evaluation_mode(model: nn.Module) -> None:
    if where := in_train_mode(model):
        raise MeasureError(
            f"`{where}` is in train mode, where its output depends on the batch or on chance: "
            "a different function. Call model.eval() first."
        )
