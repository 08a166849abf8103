"""How numbers are read off the study's records, and what its networks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

from invariance.papers.mason_williams.regularisation._methods import BASELINE, method_of
from invariance.studies._study import Record
from invariance.studies.claims._paired_treatments import Pair, pairs_of

Block = tuple[str, str, int]

#: Train accuracy from which on an untreated network counts as having found a minimum. It is
#: asked of the untreated one alone: treatments may make fitting harder, and that is theirs.
FITTED = 0.95


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
    """Return what reads one number of a record; NaN where it has none."""

    def read(record: Record) -> float:
        source = record.facts if part == "facts" else record.measured.get(part) or {}
        value = source.get(name)
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
        return math.nan

    return read


def fitted_pairs(records: Sequence[Record]) -> dict[str, list[Pair]]:
    """Pair treated networks with untreated ones that fit their training points.

    Shapes: returns ``(treated, untreated)``.
    """
    accuracy = reader("facts", "train_accuracy")
    every = pairs_of(records, method, match, BASELINE)
    return {
        name: kept
        for name, pairs in every.items()
        if (kept := [pair for pair in pairs if accuracy(pair[1]) >= FITTED])
    }
