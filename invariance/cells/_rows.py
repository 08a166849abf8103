"""The rows of a report: what was compared, what came out, and what was declared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from invariance.measures._registry import Declaration

CellVerdict = Literal["invariant", "law", "varies", "contradicts"]


@dataclass(frozen=True)
class CellRow:
    """One cell of measures x transforms.

    Attributes:
        measure: The measure's Python name.
        transform: The transform's Python name.
        before: Value before the transform.
        after: Value after it.
        ratio: ``after / before``; ``None`` where ``before`` is zero.
        declared: What theory says: ``invariant``, ``law`` or ``varies``.
        predicted: The value that the law gives; ``None`` where there is no law.
        verdict: What was measured, or ``contradicts`` where that is not what was declared.
        model: Which of the report's models.
        label: The transform with its arguments, as it can be replayed.
        tolerance: Largest difference that is no move: the relative tolerance asked for, or the
            measured float error where that is larger.
        method: How the value was computed.
        note: Anything a reader should know about this cell.
        claimed: False where the measure says nothing about this kind of map: ``declared`` is
            then ``varies`` for want of a claim.
    """

    measure: str
    transform: str
    before: float
    after: float
    ratio: float | None
    declared: Declaration
    predicted: float | None
    verdict: CellVerdict
    model: str = "model"
    label: str = ""
    tolerance: float = 0.0
    method: str = ""
    note: str = ""
    claimed: bool = True

    def __getitem__(self, key: str) -> Any:
        return asdict(self)[key]

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a plain dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class FunctionRow:
    """How far one transform kept the function.

    Attributes:
        transform: The transform's Python name.
        max_abs_logit_diff: Largest absolute difference of an output (of a log-softmax
            where only that is kept).
        labels_changed: Number of rows whose arg-max changed.
        bitwise: True if all outputs are bitwise equal.
        rows: Number of rows compared.
        compared: ``logits``, or ``log-softmax``.
        output_scale: Largest absolute output.
        model: Which of the report's models.
        label: The transform with its arguments.
    """

    transform: str
    max_abs_logit_diff: float
    labels_changed: int
    bitwise: bool
    rows: int
    compared: str
    output_scale: float
    model: str = "model"
    label: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a plain dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Refusal:
    """Something that was not done, and why.

    Attributes:
        what: The transform, or the measure under it.
        reason: The message of the error.
        model: Which of the report's models.
    """

    what: str
    reason: str
    model: str = "model"

    def to_dict(self) -> dict[str, Any]:
        """Return the refusal as a plain dictionary."""
        return asdict(self)
