"""The report on a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from invariance.checking.correlate import CorrelationStudy
from invariance.checking.report import Report
from invariance.checking.sweep import Sweep
from invariance.reporting.words import (
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


def render(report: Report) -> RenderableType:
    """Arrange the report for a rich console.

    Args:
        report: The report.

    Returns:
        Something that ``rich.console.Console.print`` accepts.
    """
    return Group(*_parts(report))


def render_text(report: Report, width: int = 120) -> str:
    """Return the terminal rendering as plain text of at most ``width`` columns."""
    console = Console(file=io.StringIO(), width=width, no_color=True, legacy_windows=False)
    console.print(render(report))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def _parts(report: Report) -> Iterator[RenderableType]:
    task, env = report.task, report.environment
    title = (
        f"{task['name']}: {task['n_train']:,} training, {task['n_unseen']:,} unseen, "
        f"{task['n_test']:,} test points ({task['source'] or 'given'}) | {env['dtype']} | "
        f"torch {env['torch']}"
    )
    yield Panel(Text("\n".join(headline(report))), title="invariance report", subtitle=title)
    for note in report.notes:
        yield Text(note, style="dim")
    for model in models_of(report):
        yield _function_table(report, model)
        yield _matrix_table(report, model)
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
    table = Table(title=f"{model}: is it still the same function?", title_justify="left")
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


def _matrix_table(report: Report, model: str) -> Table:
    maps, rows = matrix(report, model)
    table = Table(
        title=f"{model}: what each measure does under map #", title_justify="left", padding=(0, 1)
    )
    table.add_column("measure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    for index in range(1, len(maps) + 1):
        table.add_column(f"{index}", justify="right", no_wrap=True)
    for name, cells in rows:
        known = next((row for row in cells if row), None)
        table.add_row(
            name,
            number(known.before if known else None),
            *(Text(cell(row), style=_STYLES[row.verdict] if row else "dim") for row in cells),
        )
    return table


def _sweep_table(sweep: Sweep) -> Table:
    table = Table(
        title=(
            "Hessian trace when the first layer is scaled by alpha and the second by 1/alpha: "
            f"{sweep.a:.4g}/alpha^2 + {sweep.c:.4g} + {sweep.b:.4g} alpha^2 "
            f"(worst relative error {sweep.worst_relative_error:.1e}; outputs "
            f"{'bitwise equal' if sweep.bitwise else 'equal to round-off'})"
        ),
        title_justify="left",
    )
    table.add_column("alpha", justify="right")
    for alpha in sweep.alphas:
        table.add_column(f"{alpha:g}", justify="right", no_wrap=True)
    table.add_row("measured", *(number(value) for value in sweep.measured))
    table.add_row("law", *(number(value) for value in sweep.predicted))
    table.add_row("rel. flatness", *(number(value) for value in sweep.relative_flatness))
    return table


def correlation_table(study: CorrelationStudy) -> Table:
    """Arrange correlations, before and after rescaling, as a table."""
    n = len(study.target_values)
    table = Table(
        title=(
            f"Spearman correlation with {study.target} over {n} networks, as trained and after "
            "each network's own random function-preserving rescaling"
        ),
        title_justify="left",
    )
    table.add_column("measure", no_wrap=True)
    for heading in (
        "rho",
        "95 % interval",
        "p (Holm)",
        "rho, layers rescaled",
        "95 % interval",
        "rho, neurons rescaled",
        "largest change",
    ):
        table.add_column(heading, justify="right")
    for row in study.rows:
        same = row.rho == row.rho_after_rescaling
        table.add_row(
            row.measure,
            signed(row.rho),
            f"[{signed(row.ci_low)}, {signed(row.ci_high)}]".replace("[", r"\["),
            number(row.p_holm, 2),
            Text(signed(row.rho_after_rescaling), style="green" if same else "yellow"),
            f"[{signed(row.ci_low_after)}, {signed(row.ci_high_after)}]".replace("[", r"\["),
            signed(row.rho_after_neuron_rescaling),
            f"{row.max_relative_change:.1e}",
        )
    return table
