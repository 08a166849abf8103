"""How numbers are read off the study's records, and what its networks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

from invariance.studies.regularised.methods import method_of
from invariance.studies.study import Record

Block = tuple[str, str, int]


def block_of(record: Record) -> Block:
    """Return data set, architecture and training points: what is never pooled in a table."""
    s = record.config.settings
    return str(s["task"]), str(s["architecture"]), int(s["n_train"])  # type: ignore[arg-type]


def method(record: Record) -> str:
    """Name a network's method."""
    return method_of(record.config)


def match(record: Record) -> Hashable:
    """Return what a pair shares."""
    s = record.config.settings
    return (*block_of(record), s["batch_size"], s["lr"], s["epochs"], record.config.seed)


def reader(part: str, name: str) -> Callable[[Record], float]:
    """Return what reads one number of a record; NaN where it has none.

    Args:
        part: ``"facts"``, or a part of what was measured.
        name: The number's name.
    """

    def read(record: Record) -> float:
        source = record.facts if part == "facts" else record.measured.get(part) or {}
        value = source.get(name)
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
        return math.nan

    return read
