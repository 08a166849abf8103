"""The words and symbols that every rendering shares."""

from __future__ import annotations

from collections.abc import Sequence

from invariance.cells import CellRow, FunctionRow
from invariance.reporting._report import Report

#: How a cell of the matrix reads.
LEGEND = (
    "=  unchanged, as declared    xR law  moved by the factor R exactly as its law says    "
    "xR  moved by the factor R, as declared    (=)  declared to vary, did not move here    "
    "?  not claimed either way    "
    "!!  CONTRADICTS its declaration    -  not applicable"
)

#: Ratios closer to one than this are shown by their difference from one.
NEAR_ONE = 0.005


def number(value: float | None, digits: int = 4) -> str:
    """Format a number for a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}g}"


def signed(value: float | None) -> str:
    """Format a correlation with its sign; a dash where it is undefined."""
    return "-" if value is None else f"{value:+.2f}"


def cell(row: CellRow | None) -> str:
    """Say in a few characters what happened to one measure under one map."""
    if row is None:
        return "-"
    if row.verdict == "contradicts":
        return f"!! {_moved(row)}"
    if row.verdict == "law":
        return f"{_moved(row)} law"
    if not row.claimed:
        return f"{_moved(row) if row.verdict == 'varies' else '='} ?"
    if row.verdict == "varies":
        return _moved(row)
    return "=" if row.declared == "invariant" else "(=)"


def _moved(row: CellRow) -> str:
    ratio = row.ratio
    if ratio is None:
        return f"->{row.after:.2g}"
    if 0 < abs(ratio - 1) < NEAR_ONE:
        return f"x1{_short(ratio - 1, '+.0e')}"
    return f"x{_short(ratio, '.3g' if 0.01 <= abs(ratio) < 1e3 else '.1e')}"


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


def matrix(
    report: Report, model: str
) -> tuple[list[FunctionRow], list[tuple[str, list[CellRow | None]]]]:
    """Arrange the rows of one model as measures by maps."""
    maps = maps_of(report, model)
    found = {(row.measure, row.label): row for row in report.rows if row.model == model}
    measures = list(dict.fromkeys(row.measure for row in report.rows if row.model == model))
    return maps, [(name, [found.get((name, entry.label)) for entry in maps]) for name in measures]


def headline(report: Report) -> list[str]:
    """The finding, in a few sentences that hold numbers."""
    lines = []
    changed = sum(row.labels_changed for row in report.function)
    bitwise = sum(row.bitwise for row in report.function)
    worst = max(
        (row.max_abs_logit_diff / max(row.output_scale, 1e-300) for row in report.function),
        default=0.0,
    )
    lines.append(
        f"{len(report.function)} maps applied, {changed} predicted labels changed; "
        f"{bitwise} left every output bitwise equal, the others moved it by at most "
        f"{worst:.1e} of its scale (round-off)."
    )
    trace = [row for row in report.rows if row.measure == "hessian_trace" and row.ratio]
    same = [row for row in trace if _is_bitwise(report, row)]
    if same:
        top = max(same, key=lambda row: abs(row.ratio or 0.0))
        lines.append(
            f"{top.transform} multiplied the Hessian trace by {top.ratio:.4g} "
            f"({top.before:.4g} to {top.after:.4g}) with bitwise equal outputs; the law predicted "
            f"{number(top.predicted, 6)}. {_fixed(report, top)}"
        )
    bad = report.contradictions
    unclaimed = dict.fromkeys(row.measure for row in report.rows if not row.claimed)
    if unclaimed:
        lines.append(f"Not declared in every cell: {', '.join(unclaimed)}.")
    lines.append(
        "Nothing was compared: every measure or every map was refused."
        if not report.rows
        else "No cell contradicts its declaration."
        if not bad
        else f"{len(bad)} cells CONTRADICT their declaration: "
        + "; ".join(f"{row.measure} under {row.label}: {row.note}" for row in bad[:5])
    )
    return lines


def _is_bitwise(report: Report, row: CellRow) -> bool:
    return any(
        entry.bitwise and entry.label == row.label and entry.model == row.model
        for entry in report.function
    )


def _fixed(report: Report, top: CellRow) -> str:
    fixed = [
        row.measure
        for row in report.rows
        if row.label == top.label and row.model == top.model and row.verdict == "invariant"
    ]
    return f"Unchanged: {', '.join(fixed)}." if fixed else ""


def refusals(report: Report) -> Sequence[str]:
    """One line for each thing that was not done, with its reason."""
    study = report.correlations
    entries = report.refused + (study.refused if study else ())
    return [f"[{entry.model}] {entry.what}: {entry.reason}" for entry in entries]
