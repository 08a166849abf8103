"""What an exact curvature sweep returns, and the sums that it gathers on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

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
    #: Parameter name to a factor of every entry: ``sum_i scale_i^2 H_ii`` is wanted too.
    scales: Mapping[str, Tensor] | None = None


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
