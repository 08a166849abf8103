"""Measures with chance in them: seeded, so that both sides see the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from invariance.cells._faults import ambient_seed
from invariance.testing.adapters._signatures import PlainMeasure, accepts, named, title
from invariance.testing.gate._assert_equal_in_law import NoisyMeasure


def noisy(
    function: Callable[..., Any], *, seed: str | None = "seed", name: str | None = None
) -> NoisyMeasure:
    """Give a measure with chance in it a seed, so that both sides see the same numbers.

    Args:
        function: ``function(model, x, y)``, with a seed argument or without one.
        seed: Name of its seed argument; ``None`` (or a name that it lacks) if it draws from
            the global generators, which are then seeded around the call and put back.
        name: The measure's name.

    Returns:
        ``noisy(model, x, y, seed) -> number``.
    """
    takes_seed = seed is not None and accepts(function, seed)

    def measure(model: nn.Module, x: Tensor, y: Tensor, number: int) -> Any:
        with ambient_seed(number):
            if takes_seed and seed is not None:
                return function(model, x, y, **{seed: number})
            return function(model, x, y)

    return named(measure, name or title(function))


def averaged(measure: NoisyMeasure, *, seeds: Sequence[int] = range(8)) -> PlainMeasure:
    """Average a noisy measure over fixed seeds: a deterministic measure again.

    Args:
        measure: ``measure(model, x, y, seed)``.
        seeds: The seeds.

    Returns:
        A measure. If each draw is invariant given its seed, so is the average; a measure
        that is invariant in law only is not, and needs ``assert_equal_in_law``.
    """

    def mean(model: nn.Module, x: Tensor, y: Tensor) -> float:
        values = [float(measure(model, x, y, seed)) for seed in seeds]
        return sum(values) / len(values)

    return named(mean, title(measure))
