"""Callables with other signatures: renamed arguments, functions of predictions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from invariance.core._errors import UsageError

_F = TypeVar("_F", bound=Callable[..., Any])


PlainMeasure = Callable[[nn.Module, Tensor, Tensor], Any]


#: Loss of the predictions, as torch's own loss modules are called.
Loss = Callable[[Tensor, Tensor], Tensor]


def adapt(
    function: Callable[..., Any],
    *,
    model: str | None = "model",
    x: str | None = "x",
    y: str | None = "y",
    batch: str | None = None,
    batches: str | None = None,
    loss: str | None = None,
    criterion: Loss | None = None,
    name: str | None = None,
    **fixed: Any,
) -> PlainMeasure:
    """Adapt a callable whose arguments have other names or another order.

    Args:
        function: The callable.
        model: Name of its argument for the network; ``None`` if it takes none.
        x: Name of its argument for the inputs, or ``None``.
        y: Name of its argument for the labels, or ``None``.
        batch: Name of an argument that takes ``(x, y)``.
        batches: Name of an argument that takes a list of batches, as a DataLoader is.
        loss: Name of an argument that takes the loss function.
        criterion: That function; mean cross-entropy by default.
        name: The measure's name; the callable's own by default.
        fixed: Further arguments, passed as they are.

    Returns:
        A measure.

    Raises:
        UsageError: If ``function`` has no argument of one of these names.
    """
    if batch or batches:
        x = y = None
    used = {"model": model, "x": x, "y": y, "batch": batch, "batches": batches, "loss": loss}
    require_arguments(function, [name for name in used.values() if name] + list(fixed))
    objective = criterion or nn.functional.cross_entropy

    def measure(network: nn.Module, inputs: Tensor, labels: Tensor) -> Any:
        values = {
            "model": network,
            "x": inputs,
            "y": labels,
            "batch": (inputs, labels),
            "batches": [(inputs, labels)],
            "loss": objective,
        }
        named = {argument: values[kind] for kind, argument in used.items() if argument}
        return function(**named, **fixed)

    return named(measure, name or title(function))


def of_predictions(
    function: Callable[[Tensor, Tensor], Any], *, name: str | None = None
) -> PlainMeasure:
    """Adapt a function of predictions and labels, such as a loss or a calibration error.

    Args:
        function: ``function(logits, y) -> number``.
        name: The measure's name.

    Returns:
        A measure.
    """

    def measure(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        with torch.no_grad():
            return function(model(x), y)

    return named(measure, name or title(function))


def require_arguments(function: Callable[..., Any], names: Sequence[str]) -> None:
    """Raise unless the function takes arguments of these names."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    missing = [name for name in names if name not in parameters]
    if missing:
        raise UsageError(
            f"{title(function)} has no argument {missing[0]!r}. Its arguments: "
            f"{', '.join(parameters)}. Name them with model=..., x=..., y=..., or None."
        )


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Return whether the function has an argument of this name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def title(function: Any) -> str:
    """Return a callable's name for messages."""
    while isinstance(function, functools.partial):
        function = function.func
    name = str(getattr(function, "__name__", type(function).__name__))
    return "measure" if name == "<lambda>" else name


def named(function: _F, name: str) -> _F:
    """Give a function its name in messages, and return it."""
    function.__name__ = name
    return function
