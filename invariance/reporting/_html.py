"""The report as one self-contained HTML page: the point first, details folded, figures inline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from invariance.cells import CellRow
from invariance.reporting._report import AxisSweep, CorrelationStudy, Report, renders
from invariance.reporting._words import (
    LEGEND,
    cell,
    change,
    data_of,
    first_rows,
    footnotes,
    function_kept,
    judgement,
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

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #59636e; --paper: #fff; --line: #dfe3e8;
        --moves: #a34700; --stays: #00558a; --law: #116b3c; --bad: #b00020; --band: #f3f6fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #a2abb5; --paper: #16191d; --line: #363c44;
          --moves: #ffa057; --stays: #6cb6ff; --law: #57d091; --bad: #ff7b87; --band: #20262d; }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1180px; margin: 1.2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.05rem; margin: 1.2rem 0 .4rem; }
.sub, .legend { color: var(--soft); font-size: .86rem; }
.lead { margin: .2rem 0 .8rem; max-width: 62rem; }
.first { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 6fr); gap: 1.4rem;
         align-items: start; }
.scroll { overflow-x: auto; }
.verdict { background: var(--band); border-left: 4px solid var(--law); padding: .4rem .8rem; }
.verdict.broken { border-color: var(--bad); }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
.first table { width: 100%; } .first th, .first td { overflow-wrap: normal; }
caption { text-align: left; padding-bottom: .3rem; color: var(--soft); }
th, td { padding: .25rem .55rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, .left { text-align: left; }
.wide td, .wide th { white-space: nowrap; } .wide td.left { white-space: normal; }
.wide th { vertical-align: bottom; white-space: normal; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid; }
th[aria-sort] button::after { content: " \\25B4"; }
th[aria-sort=descending] button::after { content: " \\25BE"; }
.invariant, .stays { color: var(--stays); } .law { color: var(--law); }
.varies, .moves { color: var(--moves); } .strong { font-weight: 600; }
td.contradicts { background: #b00020; color: #fff; font-weight: bold; }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
summary { cursor: pointer; font-weight: 600; }
code { font-size: .94em; } svg { max-width: 100%; height: auto; display: block; }
li { margin: .2rem 0; } footer { margin-top: 1.5rem; }
@media (max-width: 760px) {
  .first { grid-template-columns: minmax(0, 1fr); gap: .6rem; } .first .value { display: none; }
  body { font-size: 15px; } h1 { font-size: 1.35rem; } th, td { padding: .25rem .3rem; }
  .first td code { font-size: .8rem; }
}
@media print { details > * { display: block; } }
"""

#: Sorts a table by the column whose heading was pressed: numbers as numbers, the rest as text.
_SCRIPT = """
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0];
  const down = head.getAttribute("aria-sort") === "ascending", column = head.cellIndex;
  head.parentElement.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const before = (a, b) => {
    const x = parseFloat(a), y = parseFloat(b);
    if (Number.isNaN(x) && Number.isNaN(y)) return a.localeCompare(b);
    return Number.isNaN(x) ? 1 : Number.isNaN(y) ? -1 : x - y;
  };
  [...body.rows].sort((a, b) => before(key(a), key(b)) * (down ? -1 : 1))
    .forEach(row => body.append(row));
}));
"""


@renders(".html")
def render_html(report: Report) -> str:
    """Render a report as one HTML page that needs no other file."""
    rows = showcase(report)
    body = [
        "<header>",
        f"<h1>{escape(_title(rows))}</h1>",
        f'<p class="lead">{_lead(report, rows)}</p>',
        "</header>",
        "<main>",
        *_first_screen(report, rows),
        f'<p class="verdict{" broken" if report.contradictions else ""}">'
        f"{escape(judgement(report))} {escape(function_kept(report))}</p>",
    ]
    if report.correlations:
        body += _correlations(report.correlations)
    for model in models_of(report):
        body += _model(report, model)
    if report.sweep:
        body += _sweep(report.sweep)
    if lines := refusals(report):
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        body += _folded("Not applicable, and why", f'<ul class="sub">{items}</ul>')
    notes = "".join(f"<li>{escape(note)}</li>" for note in footnotes(report))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Invariance report: {escape(str(report.task['name']))}</title>"
        f"<style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + f'\n</main>\n<footer class="sub"><p>{escape(data_of(report))}.</p><ol>{notes}</ol>'
        f"</footer>\n<script>{_SCRIPT}</script>\n</body></html>\n"
    )


def _title(rows: Sequence[CellRow]) -> str:
    top = _top(rows)
    if top is None:
        return "Nothing was compared"
    if not moved(top):
        return "The same function, and nothing moved"
    name = "sharpness" if top.measure == "hessian_trace" else top.measure
    if top.ratio is None or top.ratio <= 0:
        return f"One function, another {name}"
    return f"One function, {top.ratio:.4g} times the {name}"


def _top(rows: Sequence[CellRow]) -> CellRow | None:
    trace = [row for row in rows if row.measure == "hessian_trace" and moved(row)]
    return next(iter([*trace, *rows]), None)


def _lead(report: Report, rows: Sequence[CellRow]) -> str:
    """One sentence of HTML: what was done, and how many measures noticed."""
    top = _top(rows)
    if top is None:
        return escape(judgement(report))
    entry = next(e for e in report.function if e.label == top.label and e.model == top.model)
    kept = "without changing one output bit" if entry.bitwise else "and kept the function"
    moving = sum(moved(row) for row in rows)
    return (
        f"<code>{escape(readable(top.label))}</code> rescaled the network {kept}; of "
        f'{len(rows)} measures <span class="moves strong">{moving} moved</span> and '
        f'<span class="stays strong">{len(rows) - moving} stayed</span>.'
    )


def _first_screen(report: Report, rows: Sequence[CellRow]) -> list[str]:
    """The picture and the table of ten rows, beside each other where there is room."""
    if not rows:
        return []
    from invariance.reporting._plots import moves_figure, sweep_figure, to_svg

    few = first_rows(rows)
    if report.sweep:
        picture = to_svg(
            sweep_figure(report.sweep),
            "One function, any sharpness",
            f"The Hessian trace follows its law from {min(report.sweep.measured):.3g} to "
            f"{max(report.sweep.measured):.3g} along a scaling of two layers, while the relative "
            "flatness stays constant.",
        )
    else:
        picture = to_svg(
            moves_figure(few),
            "What moved under one map",
            "; ".join(f"{row.measure} {change(row)}" for row in few),
        )
    left = "" if len(few) == len(rows) else f" {len(few)} of {len(rows)} measures; all are below."
    table = _table(
        ["measure", "before", "after", "change", "verdict"],
        (
            [
                f"<td><code>{escape(row.measure)}</code></td>",
                _td(number(row.before), "value"),
                _td(number(row.after), "value"),
                _td(
                    change(row) if moved(row) else "=",
                    "moves" if moved(row) else "stays",
                    value=_factor(row),
                ),
                f'<td class="left {row.verdict}">{_mark(row)} {escape(word(row))}</td>',
            ]
            for row in few
        ),
        caption=f"Under <code>{escape(readable(few[0].label))}</code>, {escape(few[0].model)}."
        f"{escape(left)}",
        kinds=["", "value", "value", "", "left"],
    )
    legend = (
        "<b>invariant</b>: claimed to stay, and stayed. <b>follows its law</b>: moved by exactly "
        "the factor that theory gives. <b>moves</b>: as declared, or <b>not claimed</b>. "
        "<b>contradicts</b>: the claim is broken. Press a heading to sort."
    )
    return [
        '<div class="first"><figure style="margin:0">' + picture + "</figure>",
        f'<div>{table}<p class="legend">{legend}</p></div></div>',
    ]


def _mark(row: CellRow) -> str:
    """A sign beside the colour, for who cannot tell the colours apart."""
    if row.verdict == "contradicts":
        return "&#10007;"
    return "&#8597;" if moved(row) else "&#9632;"


def _folded(summary: str, *parts: str) -> list[str]:
    return [f"<details><summary>{escape(summary)}</summary>", *parts, "</details>"]


def _table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str = "",
    kinds: Sequence[str] = (),
    wide: bool = False,
) -> str:
    """Build a sortable table; cells and caption are HTML already, headings are text."""
    kinds = kinds or [""] * len(headings)
    head = "".join(
        f'<th scope="col" class="{kind}"><button type="button">{escape(heading)}</button></th>'
        for heading, kind in zip(headings, kinds, strict=True)
    )
    lines = "".join("<tr>" + "".join(cells) + "</tr>" for cells in rows)
    title = f"<caption>{caption}</caption>" if caption else ""
    return (
        f'<div class="scroll"{" tabindex=0" if wide else ""}>'
        f"<table{' class=wide' if wide else ''}>{title}<thead><tr>{head}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def _td(text: str, kind: str = "", title: str = "", value: str = "") -> str:
    attributes = f' class="{kind}"' if kind else ""
    attributes += f' title="{escape(title)}"' if title else ""
    attributes += f' data-value="{escape(value)}"' if value else ""
    return f"<td{attributes}>{escape(text)}</td>"


def _factor(row: CellRow) -> str:
    return str(row.after if row.ratio is None else row.ratio)


def _model(report: Report, model: str) -> list[str]:
    maps, rows = matrix(report, model)
    names = titles(maps)
    verified = _table(
        ["map", "with these arguments", "max difference", "labels changed", "bitwise"],
        (
            [
                _td(name),
                f'<td class="left" title="{escape(entry.label)}">'
                f"<code>{escape(readable(entry.label))}</code></td>",
                _td(
                    f"{entry.max_abs_logit_diff:.1e}"
                    + (f" ({entry.compared})" if entry.compared != "logits" else "")
                ),
                _td(f"{entry.labels_changed} of {entry.rows}"),
                _td("yes" if entry.bitwise else "no"),
            ]
            for name, entry in zip(names, maps, strict=True)
        ),
        wide=True,
    )
    cells = _table(
        ["measure", "value", *names],
        ([_td(name), _td(_value(line)), *(_cell(row) for row in line)] for name, line in rows),
        wide=True,
    )
    return [
        *_folded(
            f"{model}: what every measure does under every map",
            f'<p class="legend">{escape(LEGEND)}</p>',
            cells,
        ),
        *_folded(f"{model}: is it still the same function?", verified),
    ]


def _value(line: Sequence[CellRow | None]) -> str:
    return number(next((row.before for row in line if row), None))


def _cell(row: CellRow | None) -> str:
    if row is None:
        return _td("-")
    declared = row.declared if row.claimed else "nothing (not claimed)"
    about = (
        f"{row.measure} under {row.label}: {row.before:.10g} to {row.after:.10g}; declared "
        f"{declared}, predicted {number(row.predicted, 10)}, allowed {row.tolerance:.1e}: "
        f"{word(row)}. {row.note}"
    )
    return _td(cell(row), row.verdict, about, _factor(row))


def _sweep(sweep: AxisSweep) -> list[str]:
    table = _table(
        ["alpha", "measured trace", "law", "relative flatness"],
        (
            [_td(f"{alpha:g}"), *(_td(number(value, 10)) for value in values)]
            for alpha, *values in zip(
                sweep.alphas, sweep.measured, sweep.predicted, sweep.relative_flatness, strict=True
            )
        ),
        wide=True,
    )
    return _folded(
        "The numbers of the picture",
        '<p class="sub">Points are measured on the transformed networks, the line is the law '
        f"computed from the untransformed one; they differ by at most "
        f"{sweep.worst_relative_error:.1e} of the value.</p>",
        table,
    )


def _correlations(study: CorrelationStudy) -> list[str]:
    table = _table(
        [
            "measure",
            "rho",
            "95 % interval",
            "p (Holm)",
            "rho, layers rescaled",
            "95 % interval, rescaled",
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
                    "stays" if row.rho == row.rho_after_rescaling else "moves",
                ),
                _td(f"[{signed(row.ci_low_after)}, {signed(row.ci_high_after)}]"),
                _td(signed(row.rho_after_neuron_rescaling)),
                _td(f"{row.max_relative_change:.1e}"),
            ]
            for row in study.rows
        ),
        wide=True,
    )
    target = study.target.replace("_", " ")
    parts = [
        '<p class="sub">Spearman correlation as trained, and after every network was rescaled by '
        f"its own random factors, which changes no function: {escape(study.rescaling)}.</p>",
        table,
    ]
    if study.values:
        from invariance.reporting._plots import scatter_figure, to_svg

        figure = to_svg(
            scatter_figure(study),
            f"Measures against the {target}",
            "Each point is a network; above as trained, below after its own rescaling.",
        )
        parts.append(f'<div class="scroll">{figure}</div>')
    return _folded(
        f"Does the correlation with the {target} of {len(study.target_values)} networks survive?",
        *parts,
    )
