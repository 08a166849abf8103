"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from invariance.core._text import printable, without_html
from invariance.reporting._report import Report, renders
from invariance.reporting._words import (
    LEGEND,
    cell,
    data_of,
    footnotes,
    headline,
    matrix,
    models_of,
    number,
    readable,
    refusals,
    signed,
    titles,
)


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; pipes, line ends and HTML in cells are escaped."""

    def escaped(entry: str) -> str:
        return without_html(" ".join(entry.split("\n")).replace("|", "\\|"))

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(escaped, cells)) + " |"

    return "\n".join([line(headings), line(["---"] * len(headings)), *(line(r) for r in rows)])


@renders(".md")
def render_markdown(report: Report) -> str:
    """Render a report as Markdown text."""
    parts = [
        "# Invariance report",
        _list(headline(report)),
    ]
    for model in models_of(report):
        maps, rows = matrix(report, model)
        names = titles(maps)
        parts.append(f"## {without_html(model)}: is it still the same function?")
        parts.append(
            markdown_table(
                ["map", "arguments", "max difference", "compared", "labels changed", "bitwise"],
                (
                    [
                        name,
                        f"`{readable(entry.label)}`",
                        f"{entry.max_abs_logit_diff:.1e}",
                        entry.compared,
                        f"{entry.labels_changed} of {entry.rows}",
                        "yes" if entry.bitwise else "no",
                    ]
                    for name, entry in zip(names, maps, strict=True)
                ),
            )
        )
        parts.append(f"## {without_html(model)}: what each measure does under each map")
        parts.append(
            markdown_table(
                ["measure", "value", *names],
                (
                    [
                        f"`{name}`",
                        number(next((row.before for row in cells if row), None)),
                        *(cell(row) for row in cells),
                    ]
                    for name, cells in rows
                ),
            )
        )
    if report.rows:
        parts.append(LEGEND)
    parts.extend(_sweep(report))
    parts.extend(_correlations(report))
    if lines := refusals(report):
        parts.append("## Not applicable, and why")
        parts.append(_list(lines))
    parts.append("## About this run")
    parts.append(_list((f"{data_of(report)}.", *footnotes(report))))
    return printable("\n\n".join(parts) + "\n")


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"* {without_html(line)}" for line in lines)


def _sweep(report: Report) -> list[str]:
    sweep = report.sweep
    if sweep is None:
        return []
    table = markdown_table(
        ["alpha", "measured trace", "law", "relative flatness"],
        (
            [f"{alpha:g}", number(m, 6), number(p, 6), number(k, 6)]
            for alpha, m, p, k in zip(
                sweep.alphas, sweep.measured, sweep.predicted, sweep.relative_flatness, strict=True
            )
        ),
    )
    return [
        "## Hessian trace along one scaling",
        f"Law: {sweep.a:.6g} / alpha^2 + {sweep.c:.6g} + {sweep.b:.6g} alpha^2; worst relative "
        f"error {sweep.worst_relative_error:.1e}.",
        table,
    ]


def _correlations(report: Report) -> list[str]:
    study = report.correlations
    if study is None:
        return []
    table = markdown_table(
        [
            "measure",
            "n",
            "rho",
            "95 % interval",
            "p (Holm)",
            "rho, layers rescaled",
            "rho, neurons rescaled",
            "largest change",
        ],
        (
            [
                f"`{row.measure}`",
                str(row.n),
                signed(row.rho),
                f"[{signed(row.ci_low)}, {signed(row.ci_high)}]",
                number(row.p_holm, 2),
                signed(row.rho_after_rescaling),
                signed(row.rho_after_neuron_rescaling),
                f"{row.max_relative_change:.1e}",
            ]
            for row in study.rows
        ),
    )
    how = f"Rescaled at random, each network by its own factors: {study.rescaling}."
    return [f"## Spearman correlation with {study.target}", how, table]
