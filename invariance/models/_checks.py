"""Validation that the image builders share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from invariance.core._errors import ModelError


def positive(**numbers: int) -> None:
    """Require positive integers."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(f"{name} must be a positive integer. Got {value!r}.")


def positives(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Require a non-empty sequence of positive integers, and return it as a tuple."""
    if not isinstance(values, Sequence) or not values:
        raise ModelError(f"{name} must be a non-empty sequence of integers. Got {values!r}.")
    for value in values:
        positive(**{name: value})
    return tuple(values)


def divisible(name: str, value: int, divisor: int, why: str) -> None:
    """Require ``value`` to be a multiple of ``divisor``."""
    if value % divisor:
        raise ModelError(f"{name} = {value} must be a multiple of {divisor}: {why}.")


def front(flat_input: bool, in_channels: int, image_size: int) -> list[tuple[str, nn.Module]]:
    """Return the named layer that turns a task's flat rows into images, if asked for."""
    if not flat_input:
        return []
    return [("unflatten", nn.Unflatten(1, (in_channels, image_size, image_size)))]
