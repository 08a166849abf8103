"""The report on a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from invariance.reporting._report import AxisSweep, CorrelationStudy, Report, renders
from invariance.reporting._words import (
    LEGEND,
    cell,
    headline,
    matrix,
    models_of,
    number,
    refusals,
    signed,
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
    console = Console(file=io.StringIO(), width=width, no_color=True, legacy_windows=False)
    console.print(render(report, width))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def _parts(report: Report, width: int) -> Iterator[RenderableType]:
    task, env = report.task, report.environment
    title = (
        f"{task['name']}: {task['n_train']:,} training, {task['n_unseen']:,} unseen, "
        f"{task['n_test']:,} test points ({task['source'] or 'given'}) | {env['dtype']} | "
        f"torch {env['torch']}"
    )
    yield Panel(Text("\n".join((title, *headline(report)))), title="invariance report")
    for note in report.notes:
        yield Text(note, style="dim")
    for model in models_of(report):
        yield _function_table(report, model)
        yield from _matrix_tables(report, model, width)
    if report.rows:
        yield Text(LEGEND, style="dim")
    if report.sweep:
        yield _sweep_table(report.sweep)
    if report.correlations:
        yield correlation_table(report.correlations)
    if lines := refusals(report):
        yield Text("Not applicable, and why:", style="bold")
        for line in lines:
            yield Text(f"  {line}", style="dim")


def _function_table(report: Report, model: str) -> Table:
    table = Table(
        title=f"{model}: is it still the same function?",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("#", justify="right")
    table.add_column("map", overflow="fold")
    for heading in ("max |difference|", "labels changed", "bitwise"):
        table.add_column(heading, justify="right")
    entries = [row for row in report.function if row.model == model]
    for index, row in enumerate(entries, start=1):
        difference = f"{row.max_abs_logit_diff:.1e}"
        if row.compared != "logits":
            difference += f" ({row.compared})"
        table.add_row(
            str(index),
            row.label,
            difference,
            f"{row.labels_changed} of {row.rows}",
            "yes" if row.bitwise else "no",
        )
    return table


#: Columns that a value takes, and the space around a cell.
_VALUE_WIDTH, _PADDING = 10, 3


def _matrix_tables(report: Report, model: str, width: int) -> Iterator[Table]:
    maps, rows = matrix(report, model)
    texts = [[cell(row) for row in cells] for _, cells in rows]
    names = max((len(name) for name, _ in rows), default=0) + _VALUE_WIDTH + 2 * _PADDING
    widths = [max(len(line[i]) for line in texts) + _PADDING for i in range(len(maps))]
    for position, chosen in enumerate(_packed(widths, width - names)):
        more = " (continued)" if position else ""
        table = Table(
            title=f"{model}: what each measure does under map #{more}",
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        table.add_column("measure", no_wrap=True)
        table.add_column("value", justify="right", no_wrap=True)
        for index in chosen:
            table.add_column(f"{index + 1}", justify="right", no_wrap=True)
        for (name, cells), line in zip(rows, texts, strict=True):
            known = next((row for row in cells if row), None)
            shown = [(line[index], cells[index]) for index in chosen]
            table.add_row(
                name,
                number(known.before if known else None),
                *(Text(text, style=_STYLES[row.verdict] if row else "dim") for text, row in shown),
            )
        yield table


def _packed(widths: Sequence[int], room: int) -> list[list[int]]:
    """Split columns, in order, into groups that fit the room; each holds at least one."""
    groups: list[list[int]] = []
    used = room + 1
    for index, width in enumerate(widths):
        if used + width > room:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += width
    return groups


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


def correlation_table(study: CorrelationStudy) -> Table:
    """Arrange correlations, before and after rescaling, as a table."""
    n = len(study.target_values)
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
    headings = ("as trained", "p (Holm)", "layers rescaled", "neurons too", "largest change")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in study.rows:
        same = row.rho == row.rho_after_rescaling
        table.add_row(
            row.measure,
            Text(_with_interval(row.rho, row.ci_low, row.ci_high)),
            number(row.p_holm, 2),
            Text(
                _with_interval(row.rho_after_rescaling, row.ci_low_after, row.ci_high_after),
                style="green" if same else "yellow",
            ),
            signed(row.rho_after_neuron_rescaling),
            f"{row.max_relative_change:.0e}",
        )
    return table


def _with_interval(rho: float | None, low: float | None, high: float | None) -> str:
    return "-" if rho is None else f"{signed(rho)} [{signed(low)}, {signed(high)}]"
