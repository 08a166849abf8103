"""The report as one self-contained HTML page: no scripts, no links, figures inline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from invariance.cells import CellRow
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

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.sub, .legend { color: #666; font-size: .88rem; }
.finding { background: #f3f6fa; border-left: 4px solid #0072b2; padding: .6rem 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e5e5e5;
         white-space: nowrap; }
th:first-child, td:first-child, td.left { text-align: left; }
td.left { white-space: normal; }
.invariant { color: #116b3c; } .law { color: #00558a; } .varies { color: #a34700; }
.contradicts { background: #c00; color: #fff; font-weight: bold; }
code { font-size: .95em; } svg { max-width: 100%; height: auto; }
li { margin: .2rem 0; }
"""


@renders(".html")
def render_html(report: Report) -> str:
    """Render a report as one HTML page that needs no other file."""
    task, env = report.task, report.environment
    body = [
        "<h1>Invariance report</h1>",
        f'<p class="sub">{escape(str(task["name"]))} ({escape(str(task["source"] or "given"))}): '
        f"{task['n_train']:,} training, {task['n_unseen']:,} unseen, {task['n_test']:,} test "
        f"points &middot; {escape(str(env['dtype']))} &middot; torch {escape(str(env['torch']))} "
        f"&middot; invariance {escape(str(env['invariance']))}</p>",
        '<div class="finding">'
        + "".join(f"<p>{escape(line)}</p>" for line in headline(report))
        + "</div>",
        "".join(f'<p class="sub">{escape(note)}</p>' for note in report.notes),
    ]
    if report.sweep:
        body += _sweep(report.sweep)
    if report.correlations:
        body += _correlations(report.correlations)
    for model in models_of(report):
        body += _model(report, model)
    if report.rows:
        body.append(f'<p class="legend">{escape(LEGEND)}</p>')
    if lines := refusals(report):
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        body.append(f'<h2>Not applicable, and why</h2><ul class="sub">{items}</ul>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Invariance report: {escape(str(task['name']))}</title>"
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Build a table; cells are HTML already."""
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    lines = "".join("<tr>" + "".join(cells) + "</tr>" for cells in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _td(text: str, kind: str = "", title: str = "") -> str:
    attributes = f' class="{kind}"' if kind else ""
    attributes += f' title="{escape(title)}"' if title else ""
    return f"<td{attributes}>{escape(text)}</td>"


def _model(report: Report, model: str) -> list[str]:
    maps, rows = matrix(report, model)
    verified = _table(
        ["#", "map", "max difference", "labels changed", "bitwise"],
        (
            [
                _td(str(index)),
                f'<td class="left"><code>{escape(entry.label)}</code></td>',
                _td(
                    f"{entry.max_abs_logit_diff:.1e}"
                    + (f" ({entry.compared})" if entry.compared != "logits" else "")
                ),
                _td(f"{entry.labels_changed} of {entry.rows}"),
                _td("yes" if entry.bitwise else "no"),
            ]
            for index, entry in enumerate(maps, start=1)
        ),
    )
    cells = _table(
        ["measure", "value", *(f"#{index}" for index in range(1, len(maps) + 1))],
        ([_td(name), _td(_value(line)), *(_cell(row) for row in line)] for name, line in rows),
    )
    return [
        f"<h2>{escape(model)}: is it still the same function?</h2>",
        verified,
        f"<h2>{escape(model)}: what each measure does under map #</h2>",
        cells,
    ]


def _value(line: Sequence[CellRow | None]) -> str:
    return number(next((row.before for row in line if row), None))


def _cell(row: CellRow | None) -> str:
    if row is None:
        return _td("-")
    declared = row.declared if row.claimed else "nothing (not claimed)"
    about = (
        f"{row.measure} under {row.label}: {row.before:.10g} to {row.after:.10g}; declared "
        f"{declared}, predicted {number(row.predicted, 10)}, allowed {row.tolerance:.1e}. "
        f"{row.note}"
    )
    return _td(cell(row), row.verdict, about)


def _sweep(sweep: AxisSweep) -> list[str]:
    from invariance.reporting._plots import sweep_figure, to_svg

    return [
        "<h2>The same function, any sharpness</h2>",
        to_svg(sweep_figure(sweep)),
        f'<p class="sub">Points are measured on the transformed networks, the line is the law '
        f"computed from the untransformed one; they differ by at most "
        f"{sweep.worst_relative_error:.1e} of the value.</p>",
    ]


def _correlations(study: CorrelationStudy) -> list[str]:
    table = _table(
        [
            "measure",
            "rho",
            "95 % interval",
            "p (Holm)",
            "rho, layers rescaled",
            "95 % interval",
            "rho, neurons rescaled",
            "largest change",
        ],
        (
            [
                _td(row.measure),
                _td(signed(row.rho)),
                _td(f"[{signed(row.ci_low)}, {signed(row.ci_high)}]"),
                _td(number(row.p_holm, 2)),
                _td(
                    signed(row.rho_after_rescaling),
                    "invariant" if row.rho == row.rho_after_rescaling else "varies",
                ),
                _td(f"[{signed(row.ci_low_after)}, {signed(row.ci_high_after)}]"),
                _td(signed(row.rho_after_neuron_rescaling)),
                _td(f"{row.max_relative_change:.1e}"),
            ]
            for row in study.rows
        ),
    )
    parts = [
        f"<h2>Spearman correlation with the {escape(study.target.replace('_', ' '))}, "
        f"{len(study.target_values)} networks</h2>",
        '<p class="sub">As trained, and after every network was rescaled by its own random '
        f"factors: {escape(study.rescaling)}.</p>",
        table,
    ]
    if study.values:
        from invariance.reporting._plots import scatter_figure, to_svg

        parts.append(to_svg(scatter_figure(study)))
    return parts
