"""Measuring perceptrons: as trained, and after a random rescaling that keeps the function."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from invariance.data import load_task


class About(NamedTuple):
    """What a grid has to know about a data set before anything is trained."""

    name: str
    n_features: int
    n_classes: int
    n_total: int


@lru_cache(maxsize=8)
def describe_task(name: str) -> About:
    """Return the true name (``auto`` resolved) and the sizes of a data set."""
    task = load_task(name)
    return About(task.name, task.n_features, task.n_classes, task.n_train)
