"""From numbers to a verdict."""

from __future__ import annotations

import math

from invariance.cells._rows import Verdict
from invariance.measures._registry import Declaration


def judge(
    before: float,
    after: float,
    *,
    declared: Declaration,
    predicted: float | None,
    tolerance: float,
) -> tuple[Verdict, str]:
    """Compare what was measured with what was declared.

    Args:
        before: Value before the transform.
        after: Value after it.
        declared: What theory says.
        predicted: What the law gives, if there is one.
        tolerance: Absolute difference that float error explains.

    Returns:
        The verdict and a note. A measure declared invariant must not move; one with a
        law must meet it; one declared to vary may do either, and the verdict is then
        what happened. A value that is not finite contradicts every declaration.
    """
    if not (math.isfinite(before) and math.isfinite(after)):
        return "contradicts", "The measure is not finite here."
    still = abs(after - before) <= tolerance
    if declared == "invariant":
        if still:
            return "invariant", ""
        return "contradicts", f"Declared invariant, but it moved by {after - before:.3g}."
    if declared == "law":
        if predicted is None:
            note = "No law for this transform; the value is reported as it came out."
            return ("invariant" if still else "varies"), note
        if abs(after - predicted) <= tolerance:
            return "law", ""
        return "contradicts", f"The law gives {predicted:.6g}, measured {after:.6g}."
    return (
        ("invariant", "Declared to vary in general; it does not move here.")
        if still
        else (
            "varies",
            "",
        )
    )
