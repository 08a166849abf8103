"""The words and symbols that every rendering shares."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from invariance.cells import CellRow, FunctionRow
from invariance.reporting._report import Report

#: How a cell of the matrix reads.
LEGEND = (
    "=  invariant    xR law  times R: follows its law    xR  times R: moves, as declared    "
    "(=)  declared to vary, did not move here    xR ?, = ?  moves or stays, not claimed    "
    "!!  CONTRADICTS its declaration    -  not applicable"
)

#: The same in one character a cell, for narrow terminals.
SYMBOLS = {
    "invariant": "=",
    "follows its law": "L",
    "moves, as declared": "~",
    "did not move here": "(",
    "moves, not claimed": "?",
    "stays, not claimed": "_",
    "contradicts": "!",
}

#: Ratios closer to one than this are written with all the digits that tell them from one.
NEAR_ONE = 0.005

#: Rows of the table that stands first: enough to make the point, few enough for one screen.
FIRST_ROWS = 10

#: A decimal number in the text of a map.
_DECIMAL = re.compile(r"\d+\.\d+(?:e[+-]?\d+)?")


def number(value: float | None, digits: int = 4) -> str:
    """Format a number for a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}g}"


def signed(value: float | None) -> str:
    """Format a correlation with its sign; a dash where it is undefined."""
    return "-" if value is None else f"{value:+.2f}"


def readable(label: str) -> str:
    """Write the factors of a map as a reader would: ``1/3`` for ``0.3333333333333333``.

    Examples:
        >>> readable("LayerScaling([3.0, 0.3333333333333333, 1.0])")
        'LayerScaling([3, 1/3, 1])'
        >>> readable("BatchNormScaling(1.2345678)")
        'BatchNormScaling(1.235)'
    """

    def written(found: re.Match[str]) -> str:
        value = float(found.group())
        simple = Fraction(value).limit_denominator(1024)
        if simple and float(simple) == value:
            return str(simple)
        return f"{value:.4g}"

    return _DECIMAL.sub(written, label)


def word(row: CellRow) -> str:
    """Say what happened to a measure under a map: a key of :data:`SYMBOLS`.

    *Invariant* and *follows its law* are claims that held; what nobody claimed is said to be so.
    """
    if row.verdict == "contradicts":
        return "contradicts"
    if row.verdict == "law":
        return "follows its law"
    moved = row.verdict == "varies"
    if not row.claimed:
        return "moves, not claimed" if moved else "stays, not claimed"
    if moved:
        return "moves, as declared"
    return "invariant" if row.declared == "invariant" else "did not move here"


def moved(row: CellRow) -> bool:
    """Whether the value moved by more than float error explains."""
    return abs(row.after - row.before) > row.tolerance or math.isnan(row.after)


def cell(row: CellRow | None) -> str:
    """Say in a few characters what happened to one measure under one map."""
    if row is None:
        return "-"
    if row.verdict == "contradicts":
        return f"!! {change(row)}"
    if row.verdict == "law":
        return f"{change(row)} law"
    if not row.claimed:
        return f"{change(row) if row.verdict == 'varies' else '='} ?"
    if row.verdict == "varies":
        return change(row)
    return "=" if row.declared == "invariant" else "(=)"


def change(row: CellRow) -> str:
    """The factor by which a value moved, or its new value where there is no factor."""
    ratio = row.ratio
    if ratio is None:
        return f"->{row.after:.2g}"
    off = abs(ratio - 1)
    if 0 < off < 1e-6:
        return f"x1{_short(ratio - 1, '+.0e')}"
    if 0 < off < NEAR_ONE:
        return f"x{ratio:.{math.ceil(-math.log10(off))}f}"
    return f"x{_short(ratio, '.3g' if 0.01 <= abs(ratio) < 1e3 else '.1e')}"


def largest_change(rows: Sequence[CellRow]) -> str:
    """The largest factor among cells, or nothing where no value moved."""
    moving = [row for row in rows if moved(row)]
    return change(max(moving, key=_size)) if moving else ""


def _short(value: float, pattern: str) -> str:
    """Format a number, with exponents as ``1e4`` rather than ``1e+04``."""
    mantissa, _, exponent = f"{value:{pattern}}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def models_of(report: Report) -> list[str]:
    """Names of the report's models, in order."""
    return list(report.model)


def maps_of(report: Report, model: str) -> list[FunctionRow]:
    """The maps that were applied to ``model``, in order."""
    return [row for row in report.function if row.model == model]


def titles(maps: Sequence[FunctionRow]) -> list[str]:
    """Short names of maps, told apart by a number where a kind comes more than once."""
    total = Counter(entry.transform for entry in maps)
    seen: Counter[str] = Counter()
    found = []
    for entry in maps:
        seen[entry.transform] += 1
        several = total[entry.transform] > 1
        found.append(f"{entry.transform} {seen[entry.transform]}" if several else entry.transform)
    return found


def matrix(
    report: Report, model: str
) -> tuple[list[FunctionRow], list[tuple[str, list[CellRow | None]]]]:
    """Arrange the rows of one model as measures by maps."""
    maps = maps_of(report, model)
    found = {(row.measure, row.label): row for row in report.rows if row.model == model}
    measures = list(dict.fromkeys(row.measure for row in report.rows if row.model == model))
    return maps, [(name, [found.get((name, entry.label)) for entry in maps]) for name in measures]


def showcase(report: Report) -> list[CellRow]:
    """The rows that make the point: one map, every measure under it, those that moved first.

    The map is the one with bitwise equal outputs (any map, where there is none) under which most
    measures both move and stay; of several, the one that moves the Hessian trace most, or, where
    it was not measured, any measure.
    """
    exact = {(entry.model, entry.label) for entry in report.function if entry.bitwise}
    known: dict[tuple[str, str], list[CellRow]] = {}
    for row in report.rows:
        known.setdefault((row.model, row.label), []).append(row)

    def worth(rows: list[CellRow]) -> tuple[bool, int, float]:
        moving = [row for row in rows if moved(row)]
        trace = [row for row in moving if row.measure == "hessian_trace"]
        return (
            (rows[0].model, rows[0].label) in exact,
            min(len(moving), 1) + min(len(rows) - len(moving), 1),
            max((_size(row) for row in trace or moving), default=0.0),
        )

    rows = max(known.values(), key=worth, default=[])
    return sorted(rows, key=lambda row: (not moved(row), -_size(row) if moved(row) else 0.0))


def first_rows(rows: Sequence[CellRow]) -> list[CellRow]:
    """At most ten of a showcase's rows, half of them moved where there are as many."""
    moving = [row for row in rows if moved(row)]
    still = [row for row in rows if not moved(row)]
    half = FIRST_ROWS // 2
    kept = moving[: max(half, FIRST_ROWS - len(still))]
    return kept + still[: FIRST_ROWS - len(kept)]


def _size(row: CellRow) -> float:
    """How far a value moved, as the logarithm of its factor."""
    if row.ratio is None or row.ratio <= 0 or not math.isfinite(row.ratio):
        return 0.0
    return abs(math.log(row.ratio))


def headline(report: Report) -> list[str]:
    """The finding in at most five sentences that hold numbers, the most important first."""
    rows = showcase(report)
    return [
        *([_point(report, rows)] if rows else []),
        *_moved_and_stayed(rows),
        judgement(report),
        function_kept(report),
    ]


def _point(report: Report, rows: Sequence[CellRow]) -> str:
    """One function, another value: the sentence that everything else supports."""
    top = next((row for row in rows if row.measure == "hessian_trace" and moved(row)), rows[0])
    label = readable(top.label)
    if not moved(top):
        return f"{label}: {top.measure} stayed at {top.before:.4g}, as did every other measure."
    same = "no output bit" if _is_bitwise(report, top) else "the outputs by round-off only"
    by = f"multiplied {top.measure} by {top.ratio:.4g}" if top.ratio else f"moved {top.measure}"
    law = "" if top.predicted is None else f"; its law predicted {number(top.predicted, 6)}"
    return f"{label} changed {same} and {by} ({top.before:.4g} to {top.after:.4g}{law})."


def _moved_and_stayed(rows: Sequence[CellRow]) -> list[str]:
    parts = (
        ("Moved by it", [row.measure for row in rows if moved(row)]),
        ("Stayed", [row.measure for row in rows if not moved(row)]),
    )
    return [f"{what} ({len(names)}): {', '.join(names)}." for what, names in parts if names]


def judgement(report: Report) -> str:
    """Whether anything contradicts its declaration, and what was declared nowhere."""
    unclaimed = dict.fromkeys(row.measure for row in report.rows if not row.claimed)
    note = f" Not declared in every cell: {', '.join(unclaimed)}." if unclaimed else ""
    bad = report.contradictions
    if not report.rows:
        return "Nothing was compared: every measure or every map was refused."
    if not bad:
        return f"No cell contradicts its declaration ({len(report.rows)} cells).{note}"
    listed = "; ".join(f"{row.measure} under {readable(row.label)}: {row.note}" for row in bad[:5])
    more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
    return f"{len(bad)} cells CONTRADICT their declaration: {listed}{more}.{note}"


def function_kept(report: Report) -> str:
    """How many maps were applied, and how far they kept the function."""
    changed = sum(row.labels_changed for row in report.function)
    bitwise = sum(row.bitwise for row in report.function)
    worst = max(
        (row.max_abs_logit_diff / max(row.output_scale, 1e-300) for row in report.function),
        default=0.0,
    )
    return (
        f"{len(report.function)} maps applied, {changed} predicted labels changed; "
        f"{bitwise} left every output bitwise equal, the others moved it by at most "
        f"{worst:.1e} of its scale (round-off)."
    )


def data_of(report: Report) -> str:
    """The data in a few words."""
    task = report.task
    return (
        f"{task['name']}: {task['n_train']:,} training, {task['n_unseen']:,} unseen, "
        f"{task['n_test']:,} test points"
    )


def footnotes(report: Report) -> list[str]:
    """Where the data came from, what was noted on the way, and with what it was computed."""
    env = report.environment
    return [
        f"Data: {report.task['source'] or 'given'}.",
        *report.notes,
        f"Computed in {env['dtype']} with torch {env['torch']}, invariance {env['invariance']}.",
    ]


def _is_bitwise(report: Report, row: CellRow) -> bool:
    return any(
        entry.bitwise and entry.label == row.label and entry.model == row.model
        for entry in report.function
    )


def refusals(report: Report) -> Sequence[str]:
    """One line for each thing that was not done, with its reason."""
    study = report.correlations
    entries = report.refused + (study.refused if study else ())
    return [f"[{entry.model}] {entry.what}: {entry.reason}" for entry in entries]
