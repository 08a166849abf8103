"""How far a correlation moves between random subsets of training and of unseen points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from invariance.papers.recipes._claim_shapes import TableRow, row_of, width_at
from invariance.papers.recipes._perceptrons import PUBLISHED_TRAIN_SEED
from invariance.stats._meta import random_effects
from invariance.stats._rank_correlation import spearman
from invariance.stats._ranks import MINIMUM_POINTS
from invariance.studies._study import Record, Table
from invariance.studies.claims._correlations import column


def size_of(record: Record) -> str:
    """Return the label of a network's training-set size."""
    return f"n={record.config.settings['n_train']}"


def cell_of(record: Record) -> str:
    """Return the label of a network's training points: their number, and which subset."""
    seed = record.config.settings["train_seed"]
    return size_of(record) + ("" if seed == PUBLISHED_TRAIN_SEED else f", subset {seed}")


def cell_with_task(record: Record) -> str:
    """Return the same label behind the name of the data set."""
    return f"{record.config.settings['task']}, {cell_of(record)}"


def is_published(record: Record) -> bool:
    """Return whether a network was trained on the published subset."""
    return record.config.settings["train_seed"] == PUBLISHED_TRAIN_SEED


def subset_table(
    rows: Sequence[TableRow],
    groups: Sequence[str],
    measures: Sequence[str],
    title: str = "Other training subsets",
) -> Table:
    """Set the correlations of several subsets side by side, with their spread."""
    lines: list[tuple[str | float | int | None, ...]] = []
    for name in measures:
        found = [row_of(rows, name, "test_accuracy", group) for group in groups]
        known = [(row["rho"], row["n"]) for row in found if row.get("rho") is not None]
        pooled = random_effects(*zip(*known, strict=True)) if len(known) > 1 else None
        summary: tuple[float | None, ...] = (None,) * 4
        if pooled is not None:
            mean = pooled.mean
            summary = (mean.value, mean.ci_low, mean.ci_high, pooled.heterogeneity_p)
        lines.append((name, *(row.get("rho") for row in found), *summary))
    sizes = ", ".join(
        f"{group}: {max((row['n'] for row in rows if row['group'] == group), default=0)}"
        for group in groups
    )
    return Table(
        title,
        ("measure", *groups, "mean", "low", "high", "p, all equal"),
        tuple(lines),
        "Spearman's rho with test accuracy; the mean over subsets is a random-effects mean of "
        f"Fisher's z with a 95 % interval. Networks ({sizes}).",
    )


def draws_table(records: Sequence[Record], measures: Sequence[str], label: str) -> Table:
    """Show how rho depends on which unseen points a measure is counted on."""
    having = [record for record in records if record.measured.get("draws")]
    seeds = list(having[0].measured["draws"]) if having else []
    lines: list[tuple[str | float | int | None, ...]] = []
    goal = column(having, "targets", "test_accuracy")
    for name in measures:
        values = {seed: _drawn(having, seed, name) for seed in seeds}
        own = [_rho(found, goal) for found in values.values()]
        between = [
            _rho(values[a], values[b])
            for i, a in enumerate(seeds)
            for b in seeds[i + 1 :]
        ]  # fmt: skip
        known = [rho for rho in between if rho is not None]
        lines.append((label, name, *own, float(np.mean(known)) if known else None))
    return Table(
        "Other unseen points",
        ("networks", "measure", *(f"draw {seed}" for seed in seeds), "between draws"),
        tuple(lines),
        "Spearman's rho with test accuracy, the measure counted on different random draws of "
        "unseen points; the last column is the mean rho between two draws of the same measure: "
        "what is below 1 there is noise of the measure itself.",
    )


def _drawn(records: Sequence[Record], seed: str, name: str) -> np.ndarray[Any, Any]:
    values = [record.measured["draws"][seed].get(name) for record in records]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _rho(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float | None:
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < MINIMUM_POINTS:
        return None
    return spearman(a[known], b[known], resamples=50).rho


def width_table(
    rows: Sequence[TableRow], groups: Sequence[str], measures: Sequence[str], sizes: Sequence[int]
) -> Table:
    """Say how wide an interval is with the networks at hand, and with other numbers of them."""
    lines = []
    for group in groups:
        for name in measures:
            row = row_of(rows, name, "test_accuracy", group)
            if row["rho"] is None:
                continue
            lines.append(
                (
                    group,
                    name,
                    row["n"],
                    row["rho"],
                    row["ci_high"] - row["ci_low"],
                    *(width_at(row, size) for size in sizes),
                )
            )
    return Table(
        "How wide the intervals are",
        ("networks", "measure", "n", "rho", "width", *(f"with {size}" for size in sizes)),
        tuple(lines),
        "Width of the 95 % bootstrap interval, and by Bonett and Wright's formula the width "
        "that other numbers of networks would have at the same correlation.",
    )


def with_measures(record: Record, more: Mapping[str, float]) -> Record:
    """Return a copy of a record with further measures as trained."""
    measures = {**record.measured["measures"], **more}
    return replace(record, measured={**record.measured, "measures": measures})
