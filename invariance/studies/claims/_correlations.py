"""The correlation table of a study: every measure with every target, with all its doubts.

Each row says how a measure ranks networks beside a target: Spearman's rho and Kendall's tau
with intervals, a permutation p-value and its correction for the family of tests, what is
left when other variables are held fixed, and what becomes of it when every network is
rescaled without changing its function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from invariance.core._errors import DataError, UsageError, unknown_name
from invariance.stats import benjamini_yekutieli, holm
from invariance.stats._ranks import FloatArray
from invariance.studies._study import Record
from invariance.studies.claims._rank_jobs import GroupCorrelations

TableRow = dict[str, Any]

#: Which tests are corrected together.
Family = Literal["all", "group", "everything"]
FAMILIES: Mapping[str, str] = {
    "all": "all measures and groups of one target",
    "group": "all measures of one target in one group",
    "everything": "all measures, groups and targets",
}

POOLED = "pooled"


def correlation_rows(
    records: Sequence[Record],
    *,
    measures: Sequence[str] | None = None,
    targets: Sequence[str] = ("test_accuracy", "generalization_gap"),
    given: Sequence[str] = ("train_loss", "epochs", "weight_norm"),
    group: Callable[[Record], str] | None = None,
    pooled: bool = True,
    family: Family = "all",
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> list[TableRow]:
    """Correlate every measure with every target over networks, by ranks.

    Intervals are percentile bootstrap over networks; all measures of a group share the
    resamples. ``p_value`` is a permutation test and never zero; ``p_holm`` and ``p_by``
    adjust it over ``family``. In partial correlations the ranks of the covariates are
    regressed out, and the p-value is that of the t distribution. A covariate is looked up
    in the facts, then in the targets, then in the measures of a record. Networks without a
    finite value are left out and counted.
    """
    if family not in FAMILIES:
        raise unknown_name("family", family, FAMILIES)
    names = names_of(records, "measures", measures)
    wanted = names_of(records, "targets", targets)
    rows: list[TableRow] = []
    groups = split(records, group)
    cells = dict(groups)
    if pooled and len(groups) > 1:
        if POOLED in groups:
            raise UsageError(f"A group must not be called {POOLED!r}: that is the name of all.")
        cells[POOLED] = list(records)
    for cell, members in cells.items():
        block = GroupCorrelations(
            measures={name: column(members, "measures", name) for name in names},
            rescaled={name: column(members, "rescaled", name) for name in names},
            targets={name: column(members, "targets", name) for name in wanted},
            given={name: covariate(members, name) for name in given},
            strata=None if group is None or cell != POOLED else [group(r) for r in members],
            seed=seed,
            resamples=resamples,
            level=level,
        )
        rows += [
            {"measure": name, "target": target, "group": cell} | block.row(name, target)
            for target in wanted
            for name in names
        ]
    rows.sort(key=lambda row: wanted.index(row["target"]))  # stable: groups stay in order
    _adjust(rows, family)
    return rows


def split(
    records: Sequence[Record], group: Callable[[Record], str] | None
) -> dict[str, list[Record]]:
    """Sort records into groups, in order of first appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault("all" if group is None else str(group(record)), []).append(record)
    return groups


def column(records: Sequence[Record], part: str, name: str) -> FloatArray:
    """Read one number of every record.

    Shapes: returns ``(n,)``.
    """
    return np.array([_number((r.measured.get(part) or {}).get(name)) for r in records])


def covariate(records: Sequence[Record], name: str) -> FloatArray:
    """Read a number from the facts, else the targets, else the measures of every record.

    Shapes: returns ``(n,)``.
    """
    values = np.array([_number(r.facts.get(name)) for r in records])
    for part in ("targets", "measures"):
        if np.isnan(values).all():
            values = column(records, part, name)
    return values


def _number(value: object) -> float:
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return math.nan


def names_of(records: Sequence[Record], part: str, wanted: Sequence[str] | None) -> list[str]:
    """List the names that were asked for, or all that any record has."""
    if not records:
        raise DataError("Expected records of trained networks. Got none.")
    known = list(dict.fromkeys(k for r in records for k in (r.measured.get(part) or {})))
    for name in wanted or ():
        if name not in known:
            raise unknown_name(part[:-1], name, known)
    return list(dict.fromkeys(known if wanted is None else wanted))


def _adjust(rows: Sequence[TableRow], family: Family) -> None:
    """Add adjusted p-values over each family of tests."""
    families: dict[tuple[str, ...], list[TableRow]] = {}
    for row in rows:
        key = {
            "all": (row["target"],),
            "group": (row["target"], row["group"]),
            "everything": (),
        }[family]
        families.setdefault(key, []).append(row)
    for members in families.values():
        p_values = [row["p_value"] for row in members]
        tests = sum(p is not None for p in p_values)
        for row, p_holm, p_by in zip(
            members, holm(p_values), benjamini_yekutieli(p_values), strict=True
        ):
            row |= {"p_holm": p_holm, "p_by": p_by}
            row |= {"family": FAMILIES[family], "family_size": tests}
