"""The invariance report: data first, renderings elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invariance.cells._rows import FunctionRow, Refusal, Row

if TYPE_CHECKING:
    from invariance.checking._alpha_sweep import Sweep
    from invariance.checking._correlate import CorrelationStudy

#: Version of the JSON layout.
SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """Everything that a check found.

    Attributes:
        task: Name, sizes and origin of the data.
        model: One entry a model: kind, layers, size, and how it was trained.
        environment: Versions, precision and threads.
        function: The proof that each map kept each model's function.
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
    rows: tuple[Row, ...]
    refused: tuple[Refusal, ...] = ()
    sweep: Sweep | None = None
    correlations: CorrelationStudy | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def contradictions(self) -> tuple[Row, ...]:
        """The rows whose measurement contradicts their declaration."""
        return tuple(row for row in self.rows if row.verdict == "contradicts")

    def extended(
        self,
        *,
        sweep: Sweep | None = None,
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
        from invariance.reporting._markdown import render_markdown

        return render_markdown(self)

    def to_html(self) -> str:
        """Return the report as one self-contained HTML page with its figures."""
        from invariance.reporting._html import render_html

        return render_html(self)

    def save(self, path: str | Path) -> Path:
        """Write the report to ``path``, whole or not at all.

        Args:
            path: Ends in ``.json``, ``.md`` or ``.html``.

        Returns:
            The path written.

        Raises:
            UsageError: If the ending is none of these.
        """
        from invariance.core._errors import UsageError
        from invariance.core._files import write_atomically

        target = Path(path)
        writers = {".json": self.to_json, ".md": self.to_markdown, ".html": self.to_html}
        if target.suffix not in writers:
            raise UsageError(f"Expected a path ending in {', '.join(writers)}. Got {str(path)!r}.")
        return write_atomically(target, writers[target.suffix]())

    def __str__(self) -> str:
        from invariance.reporting._terminal import render_text

        return render_text(self)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
