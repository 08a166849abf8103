"""The report on a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from string import ascii_uppercase

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from invariance.cells import CellRow
from invariance.reporting._report import AxisSweep, CorrelationStudy, Report, renders
from invariance.reporting._words import (
    LEGEND,
    SYMBOLS,
    cell,
    change,
    data_of,
    first_rows,
    footnotes,
    headline,
    largest_change,
    maps_of,
    matrix,
    models_of,
    moved,
    number,
    readable,
    refusals,
    showcase,
    signed,
    titles,
    word,
)

_STYLES = {
    "invariant": "green",
    "law": "cyan",
    "varies": "yellow",
    "contradicts": "bold white on red",
}


def render(report: Report, width: int = 120) -> RenderableType:
    """Arrange the report for a rich console."""
    return Group(*_parts(report, width))


@renders(".txt")
def render_text(report: Report, width: int = 120) -> str:
    """Return the terminal rendering as plain text of at most ``width`` columns."""
    console = Console(
        file=io.StringIO(),
        width=width,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
    )
    console.print(render(report, width))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def _parts(report: Report, width: int) -> Iterator[RenderableType]:
    yield from (Text(f"{line}") for line in headline(report))
    rows = showcase(report)
    if rows:
        yield _first_table(rows)
    for model in models_of(report):
        if any(row.model == model for row in report.rows):
            yield from _matrix(report, model, width)
        yield _function_table(report, model)
    if report.sweep:
        yield _sweep_table(report.sweep)
    if report.correlations:
        yield correlation_table(report.correlations, width)
    if lines := refusals(report):
        yield Text("Not applicable, and why:", style="bold")
        for line in lines:
            yield Text(f"  {line}", style="dim")
    for note in (f"{data_of(report)}.", *footnotes(report)):
        yield Text(note, style="dim")


def _first_table(rows: Sequence[CellRow]) -> Table:
    """The ten rows that make the point: each measure before and after one map."""
    table = Table(
        title=f"Under {readable(rows[0].label)} ({rows[0].model}):",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("measure", no_wrap=True)
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in first_rows(rows):
        style = _STYLES[row.verdict]
        table.add_row(
            row.measure,
            number(row.before),
            number(row.after),
            Text(change(row) if moved(row) else "=", style=style),
            Text(word(row), style=style),
        )
    return table


def _function_table(report: Report, model: str) -> Table:
    table = Table(
        title=f"{model}: is it still the same function?",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("map", overflow="fold")
    for heading in ("difference", "changed", "bitwise"):
        table.add_column(heading, justify="right")
    for letter, row in zip(LETTERS, maps_of(report, model), strict=False):
        difference = f"{row.max_abs_logit_diff:.1e}"
        if row.compared != "logits":
            difference += f" ({row.compared})"
        table.add_row(
            letter,
            readable(row.label),
            difference,
            f"{row.labels_changed} of {row.rows}",
            "yes" if row.bitwise else "no",
        )
    return table


#: Columns that a value takes, and the space around a cell.
_VALUE_WIDTH, _PADDING = 10, 3

#: Names of the columns of the matrix: a map's own name would take a dozen columns of text.
LETTERS = tuple(ascii_uppercase) + tuple(f"A{letter}" for letter in ascii_uppercase)


def _matrix(report: Report, model: str, width: int) -> Iterator[RenderableType]:
    """Measures by maps: with factors where they fit side by side, else a sign a cell."""
    maps, rows = matrix(report, model)
    texts = [[cell(row) for row in cells] for _, cells in rows]
    names = max((len(name) for name, _ in rows), default=0) + _VALUE_WIDTH + 2 * _PADDING
    widths = [max((len(line[i]) for line in texts), default=0) + _PADDING for i in range(len(maps))]
    whole = names + sum(widths) <= width
    legend = LEGEND if whole else _SIGNS
    if not whole:
        texts = [[SYMBOLS[word(row)] if row else "-" for row in cells] for _, cells in rows]
    table = Table(
        title=f"{model}: what each measure does under each map",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1) if whole else 0,
    )
    table.add_column("measure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True, min_width=_VALUE_WIDTH)
    for letter, _ in zip(LETTERS, maps, strict=False):
        table.add_column(letter, justify="right", no_wrap=True, min_width=0 if whole else 1)
    if not whole:
        table.add_column("  largest", no_wrap=True)
    for (name, cells), line in zip(rows, texts, strict=True):
        known = [row for row in cells if row]
        shown = zip(line, cells, strict=True)
        table.add_row(
            name,
            number(known[0].before if known else None),
            *(Text(text, style=_STYLES[row.verdict] if row else "dim") for text, row in shown),
            *([] if whole else [f"  {largest_change(known)}"]),
        )
    yield table
    yield Text(legend, style="dim")
    legend_of_maps = zip(LETTERS, titles(maps), strict=False)
    yield Text("  ".join(f"{letter}={name}" for letter, name in legend_of_maps), style="dim")


_SIGNS = "  ".join(f"{sign} {meaning}" for meaning, sign in SYMBOLS.items()) + "  - not applicable"


def _sweep_table(sweep: AxisSweep) -> Table:
    table = Table(
        title=(
            "Hessian trace when the first layer is scaled by alpha and the second by 1/alpha: "
            f"{sweep.a:.4g}/alpha^2 + {sweep.c:.4g} + {sweep.b:.4g} alpha^2 "
            f"(worst relative error {sweep.worst_relative_error:.1e}; outputs "
            f"{'bitwise equal' if sweep.bitwise else 'equal to round-off'})"
        ),
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("alpha", "measured trace", "law", "relative flatness, last layer"):
        table.add_column(heading, justify="right")
    for alpha, *values in zip(
        sweep.alphas, sweep.measured, sweep.predicted, sweep.relative_flatness, strict=True
    ):
        table.add_row(f"{alpha:g}", *(number(value, 10) for value in values))
    return table


#: Columns that the table of correlations takes with everything in it.
_WIDE = 110


def correlation_table(study: CorrelationStudy, width: int = 120) -> Table:
    """Arrange correlations, before and after rescaling, as a table of at most ``width``."""
    n = len(study.target_values)
    wide = width >= _WIDE
    table = Table(
        title=(
            f"Spearman correlation with the {study.target.replace('_', ' ')} over {n} networks "
            "(95 % bootstrap interval), as trained and after each network's own random rescaling: "
            f"{study.rescaling}"
        ),
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("measure", no_wrap=True)
    headings = ["as trained", "layers rescaled"]
    if wide:
        headings = ["as trained", "p (Holm)", "layers rescaled", "neurons too", "largest change"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in study.rows:
        before = _with_interval(row.rho, row.ci_low, row.ci_high)
        after = Text(
            _with_interval(row.rho_after_rescaling, row.ci_low_after, row.ci_high_after),
            style="green" if row.rho == row.rho_after_rescaling else "yellow",
        )
        if wide:
            table.add_row(
                row.measure,
                before,
                number(row.p_holm, 2),
                after,
                signed(row.rho_after_neuron_rescaling),
                f"{row.max_relative_change:.0e}",
            )
        else:
            table.add_row(row.measure, before, after)
    return table


def _with_interval(rho: float | None, low: float | None, high: float | None) -> str:
    return "-" if rho is None else f"{signed(rho)} [{signed(low)}, {signed(high)}]"
