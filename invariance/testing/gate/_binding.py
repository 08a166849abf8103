"""From what a user hands over to something that can be evaluated: names, data, precision."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from invariance.core._errors import DataError, MeasureError, UsageError, unknown_name
from invariance.core._modules import (
    clone,
    floating_dtype,
    in_train_mode,
    model_device,
    model_dtype,
    require_module,
)
from invariance.measures._registry import AnyMeasure, Measure, as_measure, registered

#: A measure that needs training and unseen points gets this share of the rows as training.
TRAIN_SHARE = 0.75

#: Names of the types that a claim can be checked in.
_DTYPES = ("float64", "float32", "bfloat16", "float16")


def bind_measure(entry: AnyMeasure, name: str | None = None) -> Measure:
    """Turn a registered name, a measure or any function of up to three arguments into a measure."""
    found = registered(entry)
    if found is not None:
        return found
    if not callable(entry) or isinstance(entry, nn.Module):
        raise UsageError(
            f"Expected a measure: a function (model, x, y) -> number, or a registered name. "
            f"Got {entry!r}."
        )
    call: Callable[..., Any] = entry
    title = str(name) if name is not None else _name(call)
    count = _positional(call, title)

    def of_model(model: nn.Module) -> Any:
        return call(model)

    def of_inputs(model: nn.Module, x: Tensor) -> Any:
        return call(model, x)

    def of_data(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        return call(model, x, y)

    function: Callable[..., Any] = (of_model, of_inputs, of_data)[count - 1]
    function.__doc__ = inspect.getdoc(call)
    return as_measure(function, name=title)


def _name(entry: Callable[..., Any]) -> str:
    while isinstance(entry, functools.partial):
        entry = entry.func
    name = getattr(entry, "__name__", type(entry).__name__)
    return "measure" if name == "<lambda>" else str(name)


def _positional(function: Callable[..., Any], title: str) -> int:
    """How many of (model, x, y) to pass by position."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 3  # a builtin or extension function: the contract's own signature
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind in by_position]
    keywords = [p.name for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
    if len(required) > 3 or keywords:
        extra = ", ".join([*required[3:], *keywords])
        raise MeasureError(
            f"Measure {title!r} requires {extra} besides (model, x, y). Bind them first: "
            "functools.partial(measure, name=value), or invariance.testing.adapters.adapt."
        )
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 3
    optional = [p.name for p in parameters if p.default is not p.empty and p.kind in by_position]
    # measure(model, x=None, y=None) wants its data as well.
    named = [name for name in optional if name in ("x", "y")]
    return min(3, max(1, len(required) + len(named)))


def bind_inputs(
    measure: Measure, x: Tensor, y: Tensor, data: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Fill a measure's arguments from ``x``, ``y`` and what else the user gave."""
    check_data(x, y)
    given = dict(data or {})
    wanted = set(measure.fields.values())
    both = any("train" in name for name in wanted) and any("train" not in name for name in wanted)
    rows = int(x.shape[0])
    cut = max(1, int(TRAIN_SHARE * rows)) if both else rows
    if both and cut >= rows and not given:
        raise DataError(f"Measure {measure.name!r} needs training and unseen rows. Got {rows} row.")
    defaults = {"x_train": x[:cut], "y_train": y[:cut]}
    rest = slice(cut, None) if both else slice(None)
    for part in ("test", "unseen"):
        defaults[f"x_{part}"], defaults[f"y_{part}"] = x[rest], y[rest]
    if unknown := [name for name in given if name not in defaults]:
        raise unknown_name("data field", unknown[0], defaults)
    merged = {**defaults, **given}
    return {argument: merged[source] for argument, source in measure.fields.items()}


def check_data(x: Tensor, y: Tensor) -> None:
    """Refuse data on which no measure means anything."""
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise DataError(
                f"{name} must be a tensor. Got {type(value).__name__}; use torch.as_tensor."
            )
        if value.ndim == 0 or value.shape[0] == 0:
            raise DataError(f"{name} is empty, of shape {tuple(value.shape)}. Pass some rows.")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DataError(f"{name} holds NaN or infinity. Drop or repair those rows.")
    if x.shape[0] != y.shape[0]:
        raise DataError(f"x has {x.shape[0]} rows and y has {y.shape[0]}. Pass one label a row.")


def require_evaluation_mode(model: nn.Module) -> None:
    """Refuse a model whose function depends on the batch or on chance."""
    require_module(model, "Expected an nn.Module to check on")
    if where := in_train_mode(model):
        raise MeasureError(
            f"`{where}` is in train mode, where its output depends on the batch or on chance: "
            "a different function. Call model.eval() first."
        )


def resolve_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the dtype for a name such as ``"float64"``; ``None`` stays ``None``."""
    if dtype is None:
        return dtype
    if isinstance(dtype, str) and dtype not in _DTYPES:
        raise unknown_name("dtype", dtype, _DTYPES)
    return floating_dtype(dtype)


def precisions(model: nn.Module, dtype: torch.dtype | str | None) -> tuple[torch.dtype, ...]:
    """Which precisions a claim is checked in: float64 first, then the model's own."""
    only = resolve_dtype(dtype)
    if only is not None:
        return (only,)
    own = model_dtype(model)
    return (torch.float64,) if own == torch.float64 else (torch.float64, own)


def cast(
    model: nn.Module, inputs: Mapping[str, Any], dtype: torch.dtype
) -> tuple[nn.Module, dict[str, Any]]:
    """Copy a model and its data in the given precision, on the model's device."""
    return clone(model).to(dtype), cast_inputs(inputs, model_device(model), dtype)


def cast_inputs(
    inputs: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Copy a measure's arguments to a device, those with a fraction in the given precision."""
    return {
        name: value.detach().clone().to(device, dtype if value.is_floating_point() else None)
        if isinstance(value, Tensor)
        else value
        for name, value in inputs.items()
    }
