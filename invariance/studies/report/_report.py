"""The Markdown report of a study, made from the content of its ``results.json``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from invariance.core._text import printable, without_html
from invariance.reporting._markdown import markdown_table
from invariance.studies.claims._claims import FORMER_WORDS, Region

#: Columns of the correlation table, where rows have them: key, heading.
_CORRELATION_COLUMNS = (
    ("measure", "measure"),
    ("target", "target"),
    ("group", "group"),
    ("n", "n"),
    ("rho", "rho"),
    ("p_value", "p"),
    ("p_holm", "p (Holm)"),
    ("kendall", "Kendall's tau"),
    ("rho_within", "rho within groups"),
    ("partial", "partial rho"),
    ("rho_after_rescaling", "rho after rescaling"),
    ("stays_fixed", "fixed under rescaling"),
)


_LEGEND = (
    "Spearman's rho with its bootstrap interval; p from permutations. Partial rho: all "
    "covariates held fixed. Rows with intervals of everything are in `results.json`."
)


CLAIM_COLUMNS = ("claim", "paper", "ours (95 % interval)", "n", "p (Holm)", "verdict")

#: How a verdict comes about, for the reader of a table.
JUDGEMENT = (
    "Supported or contradicted: the whole interval lies on one side, and the p-value against "
    "the nearest end of the region passes Holm's correction over all sampled claims of the "
    "study; else open. A theorem cannot fail and was checked; not tested: the claim's own "
    "setting was not run."
)


def render_markdown(results: Mapping[str, Any]) -> str:
    """Render a study's results as Markdown."""
    command = str(results["command"])
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    head = [
        f"# {_line(results['title'])}",
        f"*{_line(results['paper'])}*",
        without_html(str(results["question"])),
        f"Regenerate with\n\n{fence}bash\n{command}\n{fence}",
    ]
    return printable("\n\n".join(part.strip() for part in (*head, *_parts(results))) + "\n")


def _line(text: object) -> str:
    """Return text of the study's as one line of Markdown without HTML."""
    return without_html(" ".join(str(text).split("\n")))


def _parts(results: Mapping[str, Any]) -> Iterator[str]:
    if results["claims"]:
        yield "## Claims"
        if fixed := results.get("regions"):
            yield (
                f"Regions fixed on {_line(fixed['fixed'])} in `{fixed['file']}`. "
                + _line(fixed["remark"])
            )
        yield JUDGEMENT
        for title, own in (("Of the paper", False), ("Questions of our own", True)):
            chosen = [claim for claim in results["claims"] if claim.get("ours", False) is own]
            if chosen:
                yield f"### {title}"
                yield markdown_table(CLAIM_COLUMNS, [claim_cells(claim) for claim in chosen])
        yield "\n".join(
            "* " + _line(f"**{claim['name']}**: {_basis(claim)}") for claim in results["claims"]
        )
    if results["correlations"]:
        yield "## Correlations"
        yield _LEGEND + _rescaling(results)
        yield _correlations(results["correlations"])
    for table in results["tables"]:
        yield f"## {_line(table['title'])}"
        yield markdown_table(
            table["columns"], [[cell(value) for value in row] for row in table["rows"]]
        )
        if table["note"]:
            yield without_html(str(table["note"]))
    if results["figures"]:
        yield "## Figures"
    for figure in results["figures"]:
        caption = _line(figure["caption"])
        yield f"![{caption}]({figure['file']})\n\n{caption}"
    if results["notes"]:
        yield "## Notes"
        yield "\n".join(f"* {_line(note)}" for note in results["notes"])
    yield "## Environment"
    yield _environment(results)


def _rescaling(results: Mapping[str, Any]) -> str:
    """Say how networks were rescaled, if they were; old results may not know."""
    if not any(row.get("n_after_rescaling") for row in results["correlations"]):
        return ""
    how = results.get("rescaling") or "their distribution is not recorded"
    return f" Rescaling changes no output; random factors, others for every network: {how}."


def claim_cells(claim: Mapping[str, Any]) -> list[str]:
    """Return a claim as cells: statement, paper, ours, n, p, verdict."""
    adjusted = claim.get("p_adjusted")
    p = claim["p_value"] if adjusted is None else adjusted
    clusters = claim.get("clusters")
    return [
        cell(claim["statement"]),
        cell(claim["paper"]),
        ours(claim),
        f"{claim['n']:,}" + (f" ({clusters} units)" if clusters else ""),
        "-" if p is None else f"{p:.2g}",
        FORMER_WORDS.get(claim["verdict"], str(claim["verdict"])),
    ]


def ours(claim: Mapping[str, Any]) -> str:
    """Return our number with its interval: ``0.812 [0.703, 0.881]``."""
    value, low, high = claim["value"], claim["ci_low"], claim["ci_high"]
    if value is None:
        return "-"
    if claim["exact"]:
        return f"{cell(value)} (exact)"
    if low is None or high is None:
        return f"{cell(value)} (no interval)"
    return f"{cell(value, 3)} [{cell(low, 3)}, {cell(high, 3)}]"


def cell(value: object, digits: int = 4) -> str:
    """Return a table's cell: numbers with four digits, a dash where there is none."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("\n", " ")


def _basis(claim: Mapping[str, Any]) -> str:
    low, high = claim["region"]
    region = Region(-math.inf if low is None else low, math.inf if high is None else high)
    level = f", {100 * claim['level']:g} % interval" if claim["level"] != 0.95 else ""
    note = f" {claim['note'][0].upper()}{claim['note'][1:]}" if claim["note"] else ""
    return f"{claim['quantity']}; true if {region}{level}.{note}"


def _correlations(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [
        (key, heading)
        for key, heading in _CORRELATION_COLUMNS
        if any(row.get(key) is not None for row in rows)
    ]

    def text(row: Mapping[str, Any], key: str) -> str:
        value = row.get(key)
        if key == "partial":  # given all covariates jointly
            value = ((value or {}).get("all") or {}).get("rho")
        if key == "rho" and value is not None and row.get("ci_low") is not None:
            return f"{value:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
        if isinstance(value, float):
            return f"{value:.2g}" if key.startswith("p_") else f"{value:+.3f}"
        return cell(value)

    return markdown_table(
        [heading for _, heading in shown], [[text(row, key) for key, _ in shown] for row in rows]
    )


def _environment(results: Mapping[str, Any]) -> str:
    options, run = results["options"], results["run"]
    lines = [f"{len(results['networks']):,} networks; options: {_named(options)}."]
    for origin in results["origins"]:
        where = origin["environment"]
        lines.append(
            f"Trained {origin['trained']:,}, measured {origin['measured']:,}: "
            + (_named(where) if where else "versions not recorded")
            + "."
        )
    lines.append(
        "On another processor the same seeds train to slightly other networks: what is regenerated "
        "there agrees within the intervals, not digit by digit."
    )
    lines.append(f"Analysed with {_named(results['environment'])}.")
    lines.append(
        f"{duration(run['seconds_of_all_runs'])} in {len(run['runs'])} run(s); "
        f"the last one on: {run['executor']}."
    )
    return "\n".join(f"* {_line(line)}" for line in lines)


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value != {})


def duration(seconds: float) -> str:
    """Return a duration in words: ``1 h 05 min``, ``3 min 20 s``, ``4.2 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
