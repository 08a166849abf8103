"""The result of a measurement: a number, how sure it is, and how it was computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from invariance.core._errors import MeasureError
from invariance.core._repr import facts_table

#: Entries of a vector that are printed.
SHOWN = 8


@dataclass(frozen=True)
class Estimate:
    """One measured quantity: a scalar, or a vector such as the top k eigenvalues.

    ``float(estimate)`` is the value of a scalar estimate. A vector estimate can be
    indexed, iterated over and passed to :func:`numpy.asarray`.

    Attributes:
        value: The value: a ``float``, or a read-only ``(k,)`` float64 array.
        stderr: Standard error of ``value``: 0.0 when exact, ``None`` when unknown, which is
            what leaving it out means.
            For a vector estimate, the largest over the entries.
        exact: True if the value is exact up to floating-point round-off; never for NaN, nor for
            a solver that did not converge, whatever is passed.
        method: How it was computed, in one line for a reader.
        parts: Contributions by layer or parameter, name to value.
        residual: For an iterative solver, the certified residual norm.
        iterations: For an iterative solver, how many matrix products it used.
        converged: For an iterative solver, whether it met its tolerance.
        detail: Anything else worth keeping (certificates' counts, budgets, ...).
    """

    value: float | npt.NDArray[np.float64]
    stderr: float | None = None
    exact: bool = True
    method: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    residual: float | None = None
    iterations: int | None = None
    converged: bool | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.exact and self.stderr is None:
            object.__setattr__(self, "stderr", 0.0)
        value = self.value
        if hasattr(value, "detach"):  # a tensor: its graph is not part of the result
            value = value.detach().cpu().numpy()
        if isinstance(value, (np.ndarray, list, tuple)):
            array = np.array(value, dtype=np.float64)
            if array.ndim == 0:
                object.__setattr__(self, "value", float(array))
            else:
                array.setflags(write=False)
                object.__setattr__(self, "value", array)
        else:
            object.__setattr__(self, "value", float(value))
        if self.exact and (self.converged is False or bool(np.isnan(self.values).any())):
            object.__setattr__(self, "exact", False)
            object.__setattr__(self, "stderr", self.stderr or None)
        object.__setattr__(self, "parts", MappingProxyType(dict(self.parts)))
        object.__setattr__(self, "detail", MappingProxyType(dict(self.detail)))

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """The value as a ``(k,)`` array; ``k = 1`` for a scalar estimate."""
        return np.atleast_1d(np.asarray(self.value, dtype=np.float64))

    def __float__(self) -> float:
        if isinstance(self.value, float):
            return self.value
        if self.value.size == 1:
            return float(self.value.reshape(()))
        raise MeasureError(
            f"This estimate holds {self.value.size} values, so float() is ambiguous. "
            "Index it (estimate[0]) or read estimate.values."
        )

    def __len__(self) -> int:
        return int(self.values.size)

    def __getitem__(self, index: int) -> float:
        return float(self.values[index])

    def __iter__(self) -> Iterator[float]:
        return (float(entry) for entry in self.values)

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        return np.array(self.value, dtype=dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        # MappingProxyType does not pickle; rebuild from plain dictionaries.
        return (
            type(self),
            (
                self.value,
                self.stderr,
                self.exact,
                self.method,
                dict(self.parts),
                self.residual,
                self.iterations,
                self.converged,
                dict(self.detail),
            ),
        )

    def __repr__(self) -> str:
        return f"Estimate({self})"

    def _repr_html_(self) -> str:
        facts: dict[str, object] = {"value": str(self)}
        facts |= {f"of which {name}": f"{share:.6g}" for name, share in self.parts.items()}
        for name in ("residual", "iterations", "converged"):
            if getattr(self, name) is not None:
                facts[name] = getattr(self, name)
        return facts_table("Estimate", facts)

    def __str__(self) -> str:
        if self.exact:
            tail = "exact"
        elif self.stderr is None:
            tail = "standard error unknown"
        else:
            tail = f"+- {self.stderr:.2g}"
        if isinstance(self.value, float):
            body = f"{self.value:.6g}"
        else:
            body = "[" + ", ".join(f"{entry:.6g}" for entry in self.values[:SHOWN])
            body += "]" if len(self) <= SHOWN else f", ... {len(self) - SHOWN} more]"
        return f"{body} ({tail}; {self.method})" if self.method else f"{body} ({tail})"
