"""The invariance report: data first, renderings elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any, TypeVar

from invariance.cells import CellRow, FunctionRow, Refusal
from invariance.core._errors import UsageError
from invariance.core._files import write_atomically

#: Version of the JSON layout.
SCHEMA = 1


@dataclass(frozen=True)
class CorrelationRow:
    """One measure's rank correlation with one target.

    Attributes:
        measure: The measure's Python name.
        target: What it is correlated with.
        n: Number of networks.
        rho: Spearman's rho; ``None`` where the measure is constant.
        ci_low: Lower end of the bootstrap 95 % interval.
        ci_high: Upper end.
        p_value: Two-sided permutation p-value.
        p_holm: The same, adjusted for the number of measures (Holm).
        rho_after_rescaling: Rho after a random rescaling of every network's layers.
        ci_low_after: Lower end of its interval.
        ci_high_after: Upper end.
        rho_after_neuron_rescaling: Rho after a rescaling of layers and single units.
        max_relative_change: Largest relative change of the measure over the networks
            under the rescaling of layers: zero up to round-off for an invariant measure.
    """

    measure: str
    target: str
    n: int
    rho: float | None
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    p_holm: float | None
    rho_after_rescaling: float | None
    ci_low_after: float | None
    ci_high_after: float | None
    rho_after_neuron_rescaling: float | None
    max_relative_change: float

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a plain dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class CorrelationStudy:
    """All correlations, with the numbers behind them for plots.

    Attributes:
        rows: One row a measure.
        target: Name of the target.
        target_values: ``(n,)`` the target, a value a network.
        values: Measure to ``{"as trained": ..., "layer": ..., "neuron": ...}``, each
            ``(n,)``.
        refused: Measures that could not be computed, with reasons.
        rescaling: How networks were rescaled at random, in words.
    """

    rows: tuple[CorrelationRow, ...]
    target: str
    target_values: tuple[float, ...]
    values: Mapping[str, Mapping[str, tuple[float, ...]]]
    refused: tuple[Refusal, ...] = ()
    rescaling: str = ""


@dataclass(frozen=True)
class AxisSweep:
    """Measured and predicted traces along one axis.

    Attributes:
        alphas: ``(m,)`` factors of the first layer.
        measured: ``(m,)`` Hessian traces, each measured on the transformed network.
        predicted: ``(m,)`` what the law gives from the untransformed network.
        relative_flatness: ``(m,)`` of the last layer: constant.
        a: Coefficient of ``1 / alpha^2``.
        b: Coefficient of ``alpha^2``.
        c: The constant.
        bitwise: True if all outputs at all points are bitwise equal.
    """

    alphas: tuple[float, ...]
    measured: tuple[float, ...]
    predicted: tuple[float, ...]
    relative_flatness: tuple[float, ...]
    a: float
    b: float
    c: float
    bitwise: bool

    def law(self, alpha: float) -> float:
        """Return the predicted trace at ``alpha``."""
        return self.a / alpha**2 + self.c + self.b * alpha**2

    @property
    def worst_relative_error(self) -> float:
        """Largest relative difference between measured and predicted traces."""
        return max(abs(m - p) / p for m, p in zip(self.measured, self.predicted, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return the sweep as a plain dictionary."""
        return asdict(self) | {"worst_relative_error": self.worst_relative_error}


#: Ending of a file's name to what writes a report so; the renderers enter themselves.
RENDERERS: dict[str, Callable[[Report], str]] = {}

R = TypeVar("R", bound="Callable[[Report], str]")


def renders(suffix: str) -> Callable[[R], R]:
    """Register a function from a report to text as what writes files of this ending."""

    def register(function: R) -> R:
        RENDERERS[suffix] = function
        return function

    return register


@dataclass(frozen=True)
class Report:
    """Everything that a check found.

    Attributes:
        task: Name, sizes and origin of the data.
        model: One entry a model: kind, layers, size, and how it was trained.
        environment: Versions, precision and threads.
        function: How far each map kept each model's function.
        rows: One row for every measure under every map of every model.
        refused: Maps and measures that do not apply, each with its reason.
        sweep: The trace along one scaling, with its law.
        correlations: Correlations with the generalization gap, before and after.
        notes: What a reader must know, in sentences.
    """

    task: Mapping[str, Any]
    model: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, Any]
    function: tuple[FunctionRow, ...]
    rows: tuple[CellRow, ...]
    refused: tuple[Refusal, ...] = ()
    sweep: AxisSweep | None = None
    correlations: CorrelationStudy | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def contradictions(self) -> tuple[CellRow, ...]:
        """The rows whose measurement contradicts their declaration."""
        return tuple(row for row in self.rows if row.verdict == "contradicts")

    def extended(
        self,
        *,
        sweep: AxisSweep | None = None,
        correlations: CorrelationStudy | None = None,
        notes: tuple[str, ...] = (),
        model: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Report:
        """Return a copy with further parts."""
        merged = {
            name: {**entry, **(model or {}).get(name, {})} for name, entry in self.model.items()
        }
        return replace(
            self,
            model=merged,
            sweep=sweep or self.sweep,
            correlations=correlations or self.correlations,
            notes=self.notes + notes,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types; values that are not finite become null."""
        study = self.correlations
        plain = {
            "schema": SCHEMA,
            "task": dict(self.task),
            "model": {name: dict(entry) for name, entry in self.model.items()},
            "environment": dict(self.environment),
            "function": [row.to_dict() for row in self.function],
            "rows": [row.to_dict() for row in self.rows],
            "refused": [entry.to_dict() for entry in self.refused]
            + [entry.to_dict() for entry in (study.refused if study else ())],
            "sweep": self.sweep.to_dict() if self.sweep else None,
            "rescaling": study.rescaling if study else None,
            "correlations": [row.to_dict() for row in study.rows] if study else [],
            "notes": list(self.notes),
        }
        cleaned: dict[str, Any] = _finite(plain)
        return cleaned

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        return RENDERERS[".md"](self)

    def to_html(self) -> str:
        """Return the report as one self-contained HTML page with its figures."""
        return RENDERERS[".html"](self)

    def save(self, path: str | Path) -> Path:
        """Write the report to ``path``, whole or not at all.

        Args:
            path: Ends in ``.json``, ``.md``, ``.html`` or ``.txt``.

        Returns:
            The path written.

        Raises:
            UsageError: If the ending is none of these.
        """
        target = Path(path)
        if target.suffix not in RENDERERS:
            known = ", ".join(RENDERERS)
            raise UsageError(f"Expected a path ending in {known}. Got {str(path)!r}.")
        return write_atomically(target, RENDERERS[target.suffix](self))

    def __str__(self) -> str:
        return RENDERERS[".txt"](self)

    def __repr__(self) -> str:
        measures = len({row.measure for row in self.rows})
        return (
            f"Report({self.task['name']!r}: {measures} measures under {len(self.function)} maps, "
            f"{len(self.rows)} cells, {len(self.contradictions)} contradict; "
            "print it, or save it as .html)"
        )

    def _repr_html_(self) -> str:
        # A frame: the page's styles and script stay off the notebook's.
        page = escape(self.to_html())
        style = "width:100%;height:46rem;border:0"
        return f'<iframe title="Invariance report" style="{style}" srcdoc="{page}"></iframe>'


renders(".json")(Report.to_json)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
