"""The two-bit parity problem: labels that two of the coordinates decide, the rest is noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invariance.core._errors import UsageError
from invariance.core._rng import generator


@dataclass(frozen=True)
class Problem:
    """A training set and fresh points of the same law.

    Attributes:
        x_train: ``(n, d)`` points of the hypercube {-1, 1}^d, float64.
        y_train: ``(n,)`` their labels ``x_1 x_2``, -1 or 1.
        x_test: ``(n_test, d)``.
        y_test: ``(n_test,)``.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def draw_problem(seed: int, *, dimension: int, n_train: int, n_test: int) -> Problem:
    """Draw a training set and a test set, points independent and uniform.

    Points of the training set are distinct, since a network cannot isolate one of two equal
    points; for 100 points of 30 bits a collision has probability 5e-6 anyway. The test set is
    drawn from the whole cube, as the error is an expectation over it.

    Args:
        seed: Seed of both sets.
        dimension: Number of bits d.
        n_train: Training points.
        n_test: Test points.

    Returns:
        The problem.

    Raises:
        UsageError: If there are fewer than two bits, or more points than the cube has.
    """
    if dimension < 2 or not 1 <= n_train <= 2**dimension or n_test < 1:
        raise UsageError(
            "Two-bit parity needs dimension >= 2, 1 <= n_train <= 2^dimension and n_test >= 1. "
            f"Got dimension {dimension}, n_train {n_train}, n_test {n_test}."
        )
    rng = generator(seed, "parity", "train")
    seen: dict[tuple[float, ...], None] = {}
    while len(seen) < n_train:
        for row in _signs(n_train, dimension, rng).tolist():
            seen.setdefault(tuple(row), None)
    x_train = torch.tensor(list(seen)[:n_train], dtype=torch.float64)
    x_test = _signs(n_test, dimension, generator(seed, "parity", "test"))
    return Problem(x_train, parity(x_train), x_test, parity(x_test))


def parity(x: Tensor) -> Tensor:
    """Return ``x_1 x_2`` for each row of ``x``.

    Args:
        x: ``(n, d)`` signs.

    Returns:
        ``(n,)`` labels.
    """
    return x[:, 0] * x[:, 1]


def _signs(count: int, dimension: int, rng: torch.Generator) -> Tensor:
    bits = torch.randint(0, 2, (count, dimension), generator=rng)
    return (2 * bits - 1).double()
