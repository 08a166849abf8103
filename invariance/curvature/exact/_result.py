"""What an exact curvature sweep returns, and the sums that it gathers on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

#: Default memory for a sweep's temporaries, in bytes.
DEFAULT_MEMORY_BUDGET = 256 * 2**20


@dataclass(frozen=True)
class ExactCurvature:
    """Exact diagonal-block curvature of a mean loss, parameter by parameter.

    Attributes:
        traces: Parameter name to the trace of its diagonal Hessian block.
        relative_flatness: Name of each weight layer to its relative flatness (Petzka et
            al. 2021); empty unless asked for.
        diagonal: Parameter name to the Hessian diagonal in the parameter's shape; empty
            unless asked for.
        rows: How many rows of data were swept.
        gauss_newton: True if the network's second derivatives do not enter: the blocks are
            those of the Gauss-Newton matrix.
        method: How it was computed, in one line.
    """

    traces: Mapping[str, float]
    relative_flatness: Mapping[str, float] = field(default_factory=dict)
    diagonal: Mapping[str, Tensor] = field(default_factory=dict)
    rows: int = 0
    gauss_newton: bool = True
    method: str = ""

    def __post_init__(self) -> None:
        for name in ("traces", "relative_flatness", "diagonal"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def trace(self) -> float:
        """Trace of the whole Hessian: the sum over the parameters' blocks."""
        return sum(self.traces.values())


@dataclass(frozen=True)
class Wants:
    """Which quantities a sweep computes besides the traces."""

    relative_flatness: bool = False
    diagonal: bool = False


class Sums:
    """Running sums over chunks of rows, before the division by the loss's total mass.

    Scalars are kept in float64 on the CPU (some devices have none), diagonals where and
    as they were computed. ``lead`` is the shape in front of every sum: ``()`` for one
    model, ``(M,)`` for a stack of M.
    """

    def __init__(self, lead: tuple[int, ...] = ()) -> None:
        self.rows = 0
        self.mass = torch.zeros(lead, dtype=torch.float64)
        self.scalars: dict[tuple[str, str], Tensor] = {}
        self.diagonals: dict[str, Tensor] = {}

    def add_chunk(self, rows: int, mass: Tensor, scalars: Mapping[tuple[str, str], Tensor]) -> None:
        """Add one chunk's scalars with a single transfer from the device.

        Args:
            rows: Number of rows in the chunk.
            mass: Sum of the rows' masses, shape ``lead``.
            scalars: ``(kind, name)`` to a sum of shape ``lead``.
        """
        self.rows += rows
        moved = torch.stack([mass, *scalars.values()]).cpu().double()
        self.mass = self.mass + moved[0]
        for key, value in zip(scalars, moved[1:], strict=True):
            self.scalars[key] = self.scalars[key] + value if key in self.scalars else value

    def add_diagonal(self, name: str, value: Tensor) -> None:
        """Add one chunk's contribution to a parameter's diagonal."""
        if name in self.diagonals:
            self.diagonals[name] += value
        else:
            self.diagonals[name] = value

    def of(self, kind: str) -> dict[str, Tensor]:
        """Return name to mean (sum over mass) for one kind of scalar."""
        return {
            name: value / self.mass for (this, name), value in self.scalars.items() if this == kind
        }


@dataclass(frozen=True)
class DiagonalResult:
    """The diagonal of a Hessian, by parameter.

    Attributes:
        values: Parameter name to its part of the diagonal, in the parameter's shape.
        stderr: Parameter name to the standard errors, same shapes; ``None`` if exact.
        exact: True if exact up to floating-point round-off.
        gauss_newton: True if the diagonal blocks are known to carry no second derivative of
            the network, so that they equal the Gauss-Newton blocks.
        method: How it was computed, in one line.
    """

    values: Mapping[str, Tensor]
    stderr: Mapping[str, Tensor] | None = None
    exact: bool = True
    gauss_newton: bool = True
    method: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    @property
    def trace(self) -> float:
        """The sum of all entries."""
        return float(sum(float(value.cpu().double().sum()) for value in self.values.values()))
