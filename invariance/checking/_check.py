"""The check: every measure before and after every transform."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from invariance.checking._default_maps import default_transforms
from invariance.checking._environment import describe_environment, describe_model, describe_task
from invariance.checking._report import Report
from invariance.checking._roundoff import float_error
from invariance.checking._rows import FunctionRow, Refusal, Row
from invariance.checking._verdict import judge
from invariance.core._errors import InvarianceError, MeasureError, UsageError
from invariance.core._estimate import Estimate
from invariance.core._forward import reading
from invariance.core._modules import clone, evaluation_mode, in_train_mode, model_device
from invariance.data import Task
from invariance.measures._registry import (
    Law,
    Measure,
    Setting,
    all_measures,
    as_measure,
    default_measures,
    get_measure,
)
from invariance.transforms._base import Applied, Transform

#: Called as ``progress(done, total, what)`` while a check runs.
Progress = Callable[[int, int, str], None]
AnyMeasure = str | Measure | Callable[..., Any]

#: A move of an estimate counts as one beyond this many standard errors of each side: a
#: false alarm in fewer than one cell in 100,000 if the errors are normal.
DECISIVE = 4.5 * 2**0.5

#: Rows of data that the function's proof is computed on, at most.
PROOF_ROWS = 2_048


def check(
    model: nn.Module | Mapping[str, nn.Module],
    task: Task,
    *,
    transforms: Sequence[Transform] | None = None,
    measures: Sequence[AnyMeasure] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    progress: Progress | None = None,
) -> Report:
    """Measure a model before and after function-preserving maps, and judge each cell.

    Args:
        model: The model, or several by name. Copies are used; nothing is changed.
        task: The data; ``x_train``/``y_train`` for curvature, ``x_unseen`` for weakness.
        transforms: What to apply; by default a member of every kind of map there is.
            One that does not apply to the model is listed under ``refused`` with its reason.
        measures: Registered names, :class:`Measure` objects or plain functions
            ``(model, x, y) -> number``; by default every registered measure.
        seed: Seed of the random transforms and of the round-off probes.
        dtype: Precision to work in. In float32 the tolerances are wider, as measured.
        progress: Called as ``progress(done, total, what)``.

    Returns:
        The report: the proof that each function is unchanged, and one row a cell.

    Raises:
        UsageError: If a measure's name is unknown.
        MeasureError: If a model is in train mode where that changes its function.
    """
    models = dict(model) if isinstance(model, Mapping) else {"model": model}
    chosen = resolve(measures)
    _require_types(models, task, transforms)
    function: list[FunctionRow] = []
    rows: list[Row] = []
    refused: list[Refusal] = []
    for title, original in models.items():
        _require_evaluation_mode(original)
        base = clone(original).to(dtype)
        data = cast_task(task, dtype, model_device(base))
        _require_fit(base, data)
        maps = default_transforms(base, seed=seed) if transforms is None else list(transforms)
        cells = _Cells(title, base, data, chosen, seed, progress, len(maps))
        for item in cells.run(maps):
            if isinstance(item, FunctionRow):
                function.append(item)
            elif isinstance(item, Row):
                rows.append(item)
            else:
                refused.append(item)
    return Report(
        task=describe_task(task),
        model={title: describe_model(entry) for title, entry in models.items()},
        environment=describe_environment(dtype),
        function=tuple(function),
        rows=tuple(rows),
        refused=tuple(refused),
    )


class _Cells:
    """All cells of one model; keeps what several of them share."""

    def __init__(
        self,
        title: str,
        model: nn.Module,
        task: Task,
        measures: Sequence[Measure],
        seed: int,
        progress: Progress | None,
        n_maps: int,
    ) -> None:
        self.title, self.model, self.task, self.seed = title, model, task, seed
        self.measures, self.progress = measures, progress
        self.done, self.total = 0, len(measures) * (n_maps + 1)
        self.shared: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}

    def run(self, maps: Sequence[Transform]) -> Iterator[FunctionRow | Row | Refusal]:
        usable: list[tuple[Measure, dict[str, Any], Estimate, float]] = []
        for measure in self.measures:
            self._tick(f"{self.title}: {measure.name}")
            outcome = self._measure(measure, self.model)
            if isinstance(outcome, str):
                yield Refusal(measure.name, outcome, self.title)
                continue
            inputs, value = outcome
            slack = float_error(measure, self.model, inputs, value, seed=self.seed)
            usable.append((measure, inputs, value, slack))
        for transform in maps:
            try:
                applied = transform.apply(self.model, self.task.x_train[:64])
            except InvarianceError as error:
                self.done += len(self.measures)
                yield Refusal(repr(transform), str(error), self.title)
                continue
            yield prove(transform, self.model, applied.model, self.task.x_test, self.title)
            for measure, inputs, value, slack in usable:
                self._tick(f"{self.title}: {measure.name} under {transform.name}")
                yield self._cell(measure, inputs, value, slack, transform, applied)

    def _cell(
        self,
        measure: Measure,
        inputs: dict[str, Any],
        before: Estimate,
        slack: float,
        transform: Transform,
        applied: Applied,
    ) -> Row | Refusal:
        outcome = self._measure(measure, applied.model)
        if isinstance(outcome, str):
            return Refusal(f"{measure.name} under {transform!r}", outcome, self.title)
        after = outcome[1]
        tolerance = slack + float_error(measure, applied.model, inputs, after, seed=self.seed)
        if reason := _undecidable(before, after, tolerance):
            return Refusal(f"{measure.name} under {transform!r}", reason, self.title)
        declared = measure.declared(transform.groups)
        predicted = None
        if law := _law(measure, transform):
            shared = self.shared.setdefault(tuple(measure.fields.items()), {})
            predicted = law(Setting(self.model, applied, inputs, before, shared))
        verdict, note = judge(
            float(before), float(after), declared=declared, predicted=predicted, tolerance=tolerance
        )
        return Row(
            measure=measure.name,
            transform=transform.name,
            before=float(before),
            after=float(after),
            ratio=float(after) / float(before) if float(before) else None,
            declared=declared,
            predicted=predicted,
            verdict=verdict,
            model=self.title,
            label=repr(transform),
            tolerance=tolerance,
            method=after.method,
            note=note,
        )

    def _measure(self, measure: Measure, model: nn.Module) -> tuple[dict[str, Any], Estimate] | str:
        """Return the inputs and the value, or in words why there is no usable value."""
        inputs = measure.inputs(self.task)
        empty = [name for name, value in inputs.items() if value.shape[0] == 0]
        if empty:
            return f"The task has no rows for {', '.join(empty)}; load it with n_unseen > 0."
        try:
            value = measure(model, **inputs)
            float(value)
        except InvarianceError as error:
            return str(error)
        return inputs, value

    def _tick(self, what: str) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total, what)
        self.done += 1


def prove(
    transform: Transform, before: nn.Module, after: nn.Module, x: Tensor, title: str = "model"
) -> FunctionRow:
    """Compare two models' outputs on ``x``, row by row.

    Args:
        transform: The map between them; one that keeps only the softmax is compared there.
        before: The model before.
        after: The model after.
        x: Inputs; at most the first 2,048 rows are used.
        title: Name of the model in the report.

    Returns:
        The measured differences.
    """
    from invariance.core._groups import KEEP_LOGITS

    logits = all(group in KEEP_LOGITS for group in transform.groups)
    with torch.no_grad(), evaluation_mode(before), evaluation_mode(after):
        old, new = before(x[:PROOF_ROWS]), after(x[:PROOF_ROWS])
    if not logits:
        old, new = old.log_softmax(-1), new.log_softmax(-1)
    return FunctionRow(
        transform=transform.name,
        max_abs_logit_diff=float((old - new).abs().max()),
        labels_changed=int((old.argmax(-1) != new.argmax(-1)).sum()),
        bitwise=bool(torch.equal(old, new)),
        rows=int(old.shape[0]),
        compared="logits" if logits else "log-softmax",
        output_scale=float(old.abs().max()),
        model=title,
        label=repr(transform),
    )


def resolve(measures: Iterable[AnyMeasure] | None) -> list[Measure]:
    """Turn names, measures and plain functions into measures; ``None`` gives the defaults.

    Raises:
        UsageError: If a name is unknown.
    """
    # The registry fills as the measures are imported.
    import invariance.measures  # noqa: F401

    return [_resolve(entry) for entry in (default_measures() if measures is None else measures)]


def _resolve(entry: AnyMeasure) -> Measure:
    if isinstance(entry, Measure):
        return entry
    if isinstance(entry, str):
        return get_measure(entry)
    name = getattr(entry, "__name__", "")
    # A registered function given as itself brings its declarations along.
    if name in all_measures() and get_measure(name).function is entry:
        return get_measure(name)
    return as_measure(entry)


def _undecidable(before: Estimate, after: Estimate, tolerance: float) -> str | None:
    """Say why two estimates with standard errors cannot decide whether the value moved.

    With common random numbers an invariant estimate does not move at all, and a large
    move is a move; between the two, noise and effect cannot be told apart.
    """
    noise = max(before.stderr or 0.0, after.stderr or 0.0)
    if before.exact or before.residual is not None or noise == 0.0:
        return None
    moved = abs(float(after) - float(before))
    if moved <= tolerance or moved > DECISIVE * noise:
        return None
    return (
        f"Undecided: it moved by {moved:.3g}, and the standard error is {noise:.3g} "
        f"({after.method}). Ask for more samples or for an exact measure."
    )


def _law(measure: Measure, transform: Transform) -> Law | None:
    if measure.declared(transform.groups) != "law":
        return None
    return next((measure.laws[group] for group in transform.groups if group in measure.laws), None)


def cast_task(task: Task, dtype: torch.dtype, device: torch.device) -> Task:
    """Return the task with its points in ``dtype`` and everything on ``device``."""
    changes: dict[str, Any] = {}
    for entry in dataclass_fields(task):
        value = getattr(task, entry.name)
        if isinstance(value, Tensor):
            changes[entry.name] = value.to(device, dtype if value.is_floating_point() else None)
    return replace(task, **changes)


def _require_types(
    models: Mapping[str, nn.Module], task: Task, transforms: Sequence[Transform] | None
) -> None:
    for title, entry in models.items():
        if not isinstance(entry, nn.Module):
            raise UsageError(f"check needs an nn.Module as {title}. Got {type(entry).__name__}.")
    if not isinstance(task, Task):
        raise UsageError(
            f"check needs a Task, such as load_task('digits'). Got {type(task).__name__}."
        )
    for number, item in enumerate(transforms or ()):
        if not isinstance(item, Transform):
            raise UsageError(
                f"transforms[{number}] is {item!r}, not a transform. Give instances, such as "
                "invariance.transforms.NeuronScaling()."
            )


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
