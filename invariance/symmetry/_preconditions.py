"""What every transform checks about its input before it starts."""

from __future__ import annotations

from typing import Any

from torch import nn

from invariance.core._errors import TransformError


def example_or_default(model: nn.Module, example_input: Any, who: str) -> tuple[Any, ...]:
    """Return the inputs to run with, made up for a network that begins with a linear layer."""
    from invariance.symmetry._examples import as_inputs

    try:
        return as_inputs(model, example_input)
    except TransformError as error:
        raise TransformError(f"{who}: {error}") from error


def refuse_train_mode(model: nn.Module, who: str) -> None:
    """Refuse BatchNorm and dropout in train mode, whose function depends on the batch."""
    from invariance.symmetry.analysis._symmetries import refuse_train_mode as refuse

    try:
        refuse(model)
    except TransformError as error:
        raise TransformError(f"{who}: {error}") from error
