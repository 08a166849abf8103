"""A number with its confidence interval, and how the interval was made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class IntervalEstimate:
    """A number with its uncertainty.

    Attributes:
        value: The number; ``None`` where it is undefined.
        ci_low: Lower end of the confidence interval.
        ci_high: Upper end.
        p_value: Two-sided p-value of the null hypothesis that ``method`` names; ``None`` if
            there is no such test.
        n: Independent units behind the number.
        method: What the interval and the p-value are.
        level: Level of the interval.
    """

    value: float | None
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    n: int
    method: str
    level: float = 0.95
