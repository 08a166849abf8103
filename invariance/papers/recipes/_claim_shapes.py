"""From rows and records to claims: the few shapes that judgements of correlations take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from invariance.core._errors import unknown_name
from invariance.stats._ranks import FloatArray, interval
from invariance.stats._resampled import bootstrap_counts, resampled_correlations
from invariance.studies._study import Record, Table
from invariance.studies.claims._claims import Basis, Claim, Region
from invariance.studies.claims._correlations import column

POSITIVE, NEGATIVE = Region(low=0.0), Region(high=0.0)

#: The one margin within which a measure "no longer ranks networks", in every study.
NO_RANK = Region(-0.2, 0.2)

#: Said of it in every statement that it decides.
NO_RANK_WORDS = "(|rho| < 0.2)"

TableRow = Mapping[str, Any]

#: Value with the ends of its interval; ``None`` where it is undefined.
Triple = tuple[float | None, float | None, float | None]

UNDEFINED: Triple = (None, None, None)


def find_row(rows: Sequence[TableRow], measure: str, target: str, group: str) -> TableRow | None:
    """Return the row of one measure, target and group; ``None`` if there is none."""
    for row in rows:
        if (row["measure"], row["target"], row["group"]) == (measure, target, group):
            return row
    return None


def row_of(rows: Sequence[TableRow], measure: str, target: str, group: str) -> TableRow:
    """Return the row of one measure, target and group; a name that none has is an error."""
    row = find_row(rows, measure, target, group)
    if row is not None:
        return row
    there = rows
    for kind, name in (("group", group), ("target", target), ("measure", measure)):
        known = dict.fromkeys(str(entry[kind]) for entry in there)
        if name not in known:
            raise unknown_name(f"{kind} of correlations", name, known)
        there = [entry for entry in there if entry[kind] == name]
    raise AssertionError("the names above are those of a row")


def rho_claim(
    rows: Sequence[TableRow],
    name: str,
    statement: str,
    *,
    measure: str,
    group: str,
    region: Region,
    paper: float | None,
    target: str = "test_accuracy",
    note: str = "",
    ours: bool = False,
) -> Claim:
    """Judge a rank correlation as trained.

    Where the region ends at zero the p-value is that of the permutation test; elsewhere a test
    of zero says nothing, and it is read off the interval.
    """
    row = row_of(rows, measure, target, group)
    signed = 0.0 in (region.low, region.high)
    return Claim(
        name=name,
        statement=statement,
        quantity=f"Spearman's rho of {measure} and {target} ({group})",
        paper=paper,
        region=region,
        value=row.get("rho"),
        ci_low=row.get("ci_low"),
        ci_high=row.get("ci_high"),
        n=int(row.get("n", 0)),
        p_value=row.get("p_value") if signed else None,
        note=note or str(row.get("note", "")),
        ours=ours,
    )


def rescaled_claim(
    rows: Sequence[TableRow],
    name: str,
    statement: str,
    *,
    measure: str,
    group: str,
    region: Region,
    target: str = "test_accuracy",
    note: str = "",
    ours: bool = True,
) -> Claim:
    """Judge a rank correlation after every network was rescaled at random."""
    row = row_of(rows, measure, target, group)
    return Claim(
        name=name,
        statement=statement,
        quantity=f"rho of {measure} and {target} after random rescaling ({group})",
        paper=None,
        region=region,
        value=row.get("rho_after_rescaling"),
        ci_low=row.get("ci_low_after"),
        ci_high=row.get("ci_high_after"),
        n=int(row.get("n_after_rescaling", 0)),
        note=note,
        ours=ours,
    )


def partial_claim(
    rows: Sequence[TableRow],
    name: str,
    statement: str,
    *,
    measure: str,
    group: str,
    region: Region,
    target: str = "test_accuracy",
) -> Claim:
    """Judge the partial correlation given all covariates jointly."""
    row = row_of(rows, measure, target, group)
    found = (row.get("partial") or {}).get("all") or {}
    given = ", ".join(found.get("given", ())) or "nothing"
    return Claim(
        name=name,
        statement=statement,
        quantity=f"partial rho of {measure} and {target} given {given} ({group})",
        paper=None,
        region=region,
        value=found.get("rho"),
        ci_low=found.get("ci_low"),
        ci_high=found.get("ci_high"),
        n=int(found.get("n", 0)),
        ours=True,
    )


def counted_claim(
    name: str,
    statement: str,
    quantity: str,
    value: float | None,
    *,
    region: Region,
    n: int,
    paper: float | None = None,
    note: str = "",
    basis: Basis = "sample",
    ours: bool = False,
) -> Claim:
    """Judge a number that was counted or computed without sampling."""
    value = None if value is None or math.isnan(value) else float(value)
    return Claim(
        name, statement, quantity, paper, region, value, value, value, n,
        exact=True, note=note, basis=basis, ours=ours,
    )  # fmt: skip


def fixed_claim(
    rows: Sequence[TableRow],
    name: str,
    statement: str,
    *,
    measures: Sequence[str],
    group: str,
    paper: float | None = None,
    ours: bool = False,
) -> Claim:
    """Judge that measures do not change at all when every network is rescaled: a theorem."""
    found = [row_of(rows, measure, "test_accuracy", group) for measure in measures]
    changes = [row.get("max_relative_change") for row in found]
    known = [change for change in changes if change is not None]
    return counted_claim(
        name,
        statement,
        f"largest relative change of {', '.join(measures)} under random rescaling ({group})",
        max(known) if len(known) == len(changes) else None,
        region=Region(-1e-9, 1e-9),
        n=min((int(row.get("n_after_rescaling", 0)) for row in found), default=0),
        paper=paper,
        basis="theorem",
        ours=ours,
    )


def sampled_claim(
    name: str,
    statement: str,
    quantity: str,
    found: Triple,
    *,
    region: Region,
    n: int,
    paper: float | None,
    note: str = "",
    ours: bool = False,
) -> Claim:
    """Judge a number with an interval over networks."""
    value, low, high = found
    return Claim(
        name, statement, quantity, paper, region, value, low, high, n, note=note, ours=ours
    )


def mean_difference(a: FloatArray, b: FloatArray, *, level: float = 0.95) -> Triple:
    """Return ``mean(b) - mean(a)`` of independent samples with Welch's interval."""
    if min(a.size, b.size) < 2:
        return UNDEFINED
    difference = float(b.mean() - a.mean())
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return difference, difference, difference
    ends = stats.ttest_ind(b, a, equal_var=False).confidence_interval(level)
    return difference, float(ends.low), float(ends.high)


def mean_ratio(a: FloatArray, b: FloatArray, *, level: float = 0.95) -> Triple:
    """Return the ratio ``b / a`` of geometric means with Welch's interval on logarithms."""
    if min(a.size, b.size) < 2 or min(a.min(), b.min()) <= 0:
        return UNDEFINED
    value, low, high = mean_difference(np.log(a), np.log(b), level=level)
    if value is None or low is None or high is None:
        return UNDEFINED
    return math.exp(value), math.exp(low), math.exp(high)


def mean_interval(values: FloatArray, *, level: float = 0.95, logs: bool = False) -> Triple:
    """Return the (geometric) mean of one sample with Student's interval."""
    if values.size < 2 or not np.isfinite(values).all() or (logs and values.min() <= 0):
        return UNDEFINED
    sample = np.log(values) if logs else values
    centre, error = float(sample.mean()), float(stats.sem(sample))
    half = error * float(stats.t.ppf((1 + level) / 2, sample.size - 1))
    ends = (centre, centre - half, centre + half)
    return tuple(math.exp(end) for end in ends) if logs else ends  # type: ignore[return-value]


def bounded_mean(values: FloatArray, otherwise: float, *, level: float = 0.95) -> Triple:
    """Return the mean of numbers in [-1, 1] with an interval that stays in there.

    Student's interval, cut at the bounds. Where all values are one and the same it has no
    width; if they lie on a bound, the other end is that of Clopper and Pearson for the share
    of units on it, the rest taken to be at ``otherwise`` (no relation, no success).

    >>> [round(end, 3) for end in bounded_mean(np.ones(10), 0.0)]
    [1.0, 0.692, 1.0]
    """
    value, low, high = mean_interval(values, level=level)
    if value is None or low is None or high is None:
        return UNDEFINED
    if np.ptp(values) == 0 and abs(value) == 1.0:
        share = ((1 - level) / 2) ** (1 / values.size)
        far = share * value + (1 - share) * otherwise
        return value, min(value, far), max(value, far)
    return value, max(low, -1.0), min(high, 1.0)


def dependent_difference(
    records: Sequence[Record],
    first: str,
    second: str,
    *,
    signs: tuple[float, float],
    target: str = "test_accuracy",
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> tuple[Triple, int]:
    """Compare two correlations with the same target over the same networks.

    Both correlations are computed in the same bootstrap resamples, so their dependence
    counts: ``signs[0] rho(first) - signs[1] rho(second)``.
    """
    values = np.stack([column(records, "measures", name) for name in (first, second)])
    goal = column(records, "targets", target)
    known = np.isfinite(values).all(axis=0) & np.isfinite(goal)
    n = int(known.sum())
    if n < 4:
        return UNDEFINED, n
    values, goal = values[:, known], goal[None, known]
    counts = np.concatenate([np.ones((1, n)), bootstrap_counts(n, resamples, seed)])
    rho = resampled_correlations(values, goal, counts)[:, :, 0]
    gap = signs[0] * rho[:, 0] - signs[1] * rho[:, 1]
    if not np.isfinite(gap[0]):
        return UNDEFINED, n
    return (float(gap[0]), *interval(gap[1:], level)), n


def width_at(row: TableRow, networks: int) -> float | None:
    """Say how wide a 95 % interval of this correlation is with so many networks.

    From Bonett and Wright's variance of Fisher's z at the observed correlation.
    """
    rho = row.get("rho")
    if rho is None or networks < 4:
        return None
    z = math.atanh(max(min(rho, 1 - 1e-12), -1 + 1e-12))
    half = 1.96 * math.sqrt((1 + rho * rho / 2) / (networks - 3))
    return math.tanh(z + half) - math.tanh(z - half)


def fixed_table(rows: Sequence[TableRow], group: str) -> Table:
    """Tell which measures a random rescaling leaves alone, and what it does to the others."""
    chosen = [row for row in rows if row["group"] == group and row["target"] == "test_accuracy"]
    return Table(
        "Which measures are about the function",
        ("measure", "largest relative change", "stays fixed", "rho before", "rho after"),
        tuple(
            (
                row["measure"],
                row["max_relative_change"],
                {True: "yes", False: "no", None: "-"}[row["stays_fixed"]],
                row["rho"],
                row["rho_after_rescaling"],
            )
            for row in sorted(chosen, key=lambda row: row["max_relative_change"] or 0.0)
        ),
        f"Each network ({group}) was rescaled by its own random factors, layer by layer and "
        "neuron by neuron, which changes no output. Correlations are with test accuracy.",
    )


def partial_table(
    rows: Sequence[TableRow], groups: Sequence[str], measures: Sequence[str]
) -> Table:
    """Set plain correlations beside those with training loss, epochs and norm held fixed."""
    chosen = [
        row
        for row in rows
        if row["group"] in groups
        and row["measure"] in measures
        and row["target"] == "test_accuracy"
    ]  # fmt: skip
    names = list(dict.fromkeys(name for row in chosen for name in row["partial"]))
    return Table(
        "Partial correlations",
        ("networks", "measure", "target", "rho", *(f"given {name}" for name in names)),
        tuple(
            (
                row["group"],
                row["measure"],
                row["target"],
                row["rho"],
                *((row["partial"].get(name) or {}).get("rho") for name in names),
            )
            for row in chosen
        ),
        "Ranks of the covariates are regressed out; 'all' holds them fixed jointly. A measure "
        "given itself has no partial correlation.",
    )
