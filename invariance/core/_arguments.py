"""Arguments that must be whole numbers: seeds and counts."""

from __future__ import annotations

import operator

from invariance.core._errors import UsageError

#: Python prints integers of up to 4,300 digits, and reports have to show a seed.
MAX_SEED_BITS = 10_000


def as_integer(value: object, name: str, *, low: int | None = None, hint: str = "") -> int:
    """Return an argument as an ``int``, if it is a whole number by its type.

    A float is refused even if it is whole: a value that a calculation made may be 0.9999...
    """
    limit = "" if low is None else f" of at least {low}"
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = None
    if number is None or (low is not None and number < low):
        tail = f" {hint}" if hint else ""
        raise UsageError(f"{name} must be an integer{limit}. Got {value!r}.{tail}")
    return number


def as_seed(value: object, name: str = "seed") -> int:
    """Return a seed as an ``int``; any integer that Python prints is one."""
    number = as_integer(value, name, hint="Results repeat only under a seed that is given.")
    if number.bit_length() > MAX_SEED_BITS:
        raise UsageError(
            f"{name} has {number.bit_length()} bits, expected {MAX_SEED_BITS} at most."
        )
    return number


def as_tolerance(value: object, name: str = "rtol") -> float:
    """Return a relative tolerance: a number in [0, 1)."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < 1:  # type: ignore[operator]
        raise UsageError(f"{name} must be a number in [0, 1). Got {value!r}.")
    return float(value)  # type: ignore[arg-type]


def as_flag(value: object, name: str) -> bool:
    """Return a flag; a word such as ``"no"`` counts as true in Python, and is refused."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be True or False. Got {value!r}.")
    return value
