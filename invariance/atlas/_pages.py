"""The atlas as a page, as Markdown and as a LaTeX table."""

from __future__ import annotations

import html
import json

from invariance.atlas._atlas import Atlas
from invariance.atlas._cells import Cell

SYMBOLS = {"invariant": "=", "law": "L", "varies": "~", "undeclared": "?"}

EQUIVARIANT = (
    "Here = reads equivariant: training the transformed network gives the transformed trained "
    "network."
)

LEGEND = "= invariant, L follows a stated law, ~ varies, ? undeclared"


def _title(group: str) -> str:
    return group.replace("_", " ")


def to_markdown(atlas: Atlas) -> str:
    """Write the table, and below it the evidence of every cell.

    Args:
        atlas: The atlas.

    Returns:
        Markdown.
    """
    lines = ["# Atlas of measures", "", f"{LEGEND}.", ""]
    lines.append("| measure | " + " | ".join(map(_title, atlas.groups)) + " | cost | source |")
    lines.append("|" + "---|" * (len(atlas.groups) + 3))
    for entry in atlas.measures:
        marks = " | ".join(SYMBOLS[cell.declared] for cell in entry.cells)
        lines.append(f"| {entry.name} | {marks} | {entry.cost} | {entry.source} |")
    lines += [
        "",
        "## Algorithms",
        "",
        "Here = reads equivariant: training the transformed network ",
    ]
    lines[-1] += "gives the transformed trained network."
    lines += ["", "| algorithm | " + " | ".join(map(_title, atlas.groups)) + " | update | source |"]
    lines.append("|" + "---|" * (len(atlas.groups) + 3))
    for entry in atlas.algorithms:
        marks = " | ".join(SYMBOLS[cell.declared] for cell in entry.cells)
        update = entry.summary.replace("|", "\\|")
        lines.append(f"| {entry.name} | {marks} | {update} | {entry.source} |")
    for entry in (*atlas.measures, *atlas.algorithms):
        lines += ["", f"## {entry.name}", "", entry.summary, ""]
        lines += [
            f"* **{_title(cell.group)}**: {cell.declared} ({cell.proof}). "
            + cell.evidence.replace("|", "\\|").replace("*", "\\*")
            for cell in entry.cells
        ]
    return "\n".join(lines) + "\n"


def to_latex(atlas: Atlas) -> str:
    """Write the table for a paper (needs the package ``booktabs``).

    Args:
        atlas: The atlas.

    Returns:
        A ``tabular``.
    """
    marks = {"invariant": "$=$", "law": "L", "varies": "$\\sim$", "undeclared": "?"}
    head = " & ".join(f"\\rotatebox{{90}}{{{_title(group)}}}" for group in atlas.groups)
    lines = ["\\begin{tabular}{l" + "c" * len(atlas.groups) + "}", "\\toprule"]
    lines += [f"measure & {head} \\\\", "\\midrule"]
    for entry in atlas.measures:
        row = " & ".join(marks[cell.declared] for cell in entry.cells)
        lines.append(entry.name.replace("_", "\\_") + f" & {row} \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _word(atlas: Atlas, row: int, cell: Cell) -> str:
    """An algorithm is equivariant where a measure is invariant."""
    algorithm = row >= len(atlas.measures) and cell.declared == "invariant"
    return "equivariant" if algorithm else cell.declared


def _breakable(name: str) -> str:
    """Let a long name go on in the next line where one of its words ends."""
    return html.escape(name).replace("_", "_<wbr>")


def to_html(atlas: Atlas) -> str:
    """Write one self-contained page: no request leaves it.

    Args:
        atlas: The atlas.

    Returns:
        HTML with the data, the style and the script inside.
    """
    # "</" would end the script element in the middle of a text.
    data = json.dumps(atlas.to_dict()).replace("</", "<\\/")
    head = "".join(f'<th scope="col">{html.escape(_title(g))}</th>' for g in atlas.groups)
    rows = "".join(
        f'<tr data-row="{row}"><th scope="row">{_breakable(entry.name)}</th>'
        + "".join(
            f'<td><button type="button" class="{cell.declared}" data-row="{row}" '
            f'data-column="{column}">{_word(atlas, row, cell)}</button></td>'
            for column, cell in enumerate(entry.cells)
        )
        + "</tr>"
        for row, entry in enumerate((*atlas.measures, *atlas.algorithms))
    )
    boxes = "".join(
        f'<label><input type="checkbox" name="group" value="{g}"> {html.escape(_title(g))}</label>'
        for g in atlas.groups
    )
    return (
        _PAGE.replace("@HEAD@", head)
        .replace("@ROWS@", rows)
        .replace("@BOXES@", boxes)
        .replace("@DATA@", data)
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Atlas of measures</title>
<style>
:root { color-scheme: light dark; --line: #8886; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 90rem; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; }
fieldset { border: 1px solid var(--line); margin: 0 0 .75rem; display: flex; flex-wrap: wrap;
  gap: .25rem 1rem; }
.table { overflow-x: auto; border: 1px solid var(--line); max-height: 70vh; }
table { border-collapse: collapse; font-size: .85rem; }
thead th { position: sticky; top: 0; background: Canvas; z-index: 2; vertical-align: bottom;
  padding: .25rem; }
tbody th { position: sticky; left: 0; background: Canvas; text-align: left; z-index: 1;
  font-weight: 500; padding: 0 .5rem; }
td { padding: 1px; }
td button { width: 100%; min-width: 5.2rem; min-height: 2rem; border: 0; font: inherit;
  cursor: pointer; color: #111; }
.invariant { background: #9ed6a5; } .law { background: #a9c9f5; }
.varies { background: #f4b59c; } .undeclared { background: #ddd; }
button:focus-visible, button[aria-pressed=true] { outline: 3px solid #6a3fd0;
  outline-offset: -3px; }
#detail { border: 1px solid var(--line); padding: .75rem; margin-top: .75rem; min-height: 4rem; }
#detail p { margin: .25rem 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { padding: .5rem; } tbody th { max-width: 8.5rem; }
  td button { min-width: 4.6rem; } #detail { position: sticky; bottom: 0; background: Canvas;
  max-height: 40vh; overflow-y: auto; z-index: 3; } }
</style></head><body>
<h1>Atlas of measures</h1>
<p>What function-preserving maps do to measures of generalization. Choose a cell for its proof or
counterexample. The last rows are training algorithms.</p>
<fieldset><legend>Show rows invariant under all of</legend>@BOXES@</fieldset>
<fieldset><legend>Cost</legend>
<label>at most <select id="cost"><option value="sampling">any</option>
<option value="solver">solves programs</option><option value="cheap">cheap</option></select></label>
<label>evidence <select id="proof"><option value="">any</option><option>symbolic</option>
<option>argument</option><option>numerical</option><option>counterexample</option></select></label>
<label>name <input id="name" type="search" size="14"></label>
<output id="count" aria-live="polite"></output></fieldset>
<div class="table" tabindex="0" role="region" aria-label="measures by kinds of map"><table>
<thead><tr><th scope="col">measure</th>@HEAD@</tr></thead><tbody>@ROWS@</tbody></table></div>
<section id="detail" aria-live="polite"><p>No cell chosen.</p></section>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";
const atlas = JSON.parse(document.getElementById("data").textContent);
atlas.rows = atlas.measures.concat(atlas.algorithms);
const find = (id) => document.getElementById(id);
const costs = ["cheap", "solver", "sampling"];
function line(text, strong) {
  const p = document.createElement("p");
  if (strong) { const b = document.createElement("strong"); b.textContent = text; p.append(b); }
  else { p.textContent = text; }
  return p;
}
function show(button) {
  const entry = atlas.rows[button.dataset.row], cell = entry.cells[button.dataset.column];
  document.querySelectorAll("button[aria-pressed]").forEach(
    (old) => old.removeAttribute("aria-pressed"));
  button.setAttribute("aria-pressed", "true");
  const lines = [line(`${entry.name} under ${cell.group.replaceAll("_", " ")}: ` +
    `${button.textContent}` + (cell.proof ? ` (${cell.proof})` : ""), true), line(cell.evidence),
    line(entry.summary), line(`Cost: ${entry.cost}. Source: ${entry.source}.`)];
  if (entry.pitfall) { lines.push(line(`Pitfall: ${entry.pitfall}.`)); }
  find("detail").replaceChildren(...lines);
}
function filter() {
  const groups = [...document.querySelectorAll("input[name=group]:checked")].map((b) => b.value);
  const most = costs.indexOf(find("cost").value), proof = find("proof").value;
  const name = find("name").value.toLowerCase();
  let shown = 0;
  document.querySelectorAll("tbody tr").forEach((row) => {
    const entry = atlas.rows[row.dataset.row];
    const good = costs.indexOf(entry.cost) <= most && entry.name.includes(name) &&
      groups.every((g) => entry.cells.some((c) => c.group === g && c.declared === "invariant")) &&
      (!proof || entry.cells.some((c) => c.proof === proof));
    row.hidden = !good;
    shown += good;
  });
  find("count").textContent = `${shown} of ${atlas.rows.length} rows`;
}
document.querySelector("tbody").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) { show(button); }
});
document.querySelectorAll("input, select").forEach((box) => box.addEventListener("input", filter));
filter();
</script></body></html>
"""
