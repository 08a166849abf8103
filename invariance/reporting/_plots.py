"""Figures of the report, drawn without touching matplotlib's global state."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from invariance.cells import CellRow
from invariance.core._errors import MeasureError
from invariance.reporting._report import AxisSweep, CorrelationStudy
from invariance.reporting._words import moved, signed

#: Two colours that stay apart in print and for colour-blind readers (Okabe and Ito).
MOVES, STAYS, INK, GRID = "#d55e00", "#0072b2", "#333333", "#e6e6e6"

#: Shown in the scatter plots when present, in this order.
SCATTERED = (
    "hessian_trace",
    "parameter_norm",
    "relative_flatness",
    "minimum_sharpness",
    "fisher_rao_norm",
    "pair_proxy",
)


def sweep_figure(sweep: AxisSweep) -> Figure:
    """Draw the trace against alpha with the predicted law through the measured points."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    fine = np.geomspace(min(sweep.alphas), max(sweep.alphas), 200)
    axes.loglog(
        fine,
        [sweep.law(float(alpha)) for alpha in fine],
        color=MOVES,
        label=rf"law {sweep.a:.3g} $\alpha^{{-2}}$ + {sweep.c:.3g} + {sweep.b:.3g} $\alpha^2$",
    )
    axes.loglog(
        sweep.alphas,
        sweep.measured,
        "o",
        color=MOVES,
        markerfacecolor="white",
        label="Hessian trace, measured",
    )
    axes.loglog(
        sweep.alphas,
        sweep.relative_flatness,
        "s-",
        color=STAYS,
        label="relative flatness, last layer",
        markersize=4,
    )
    axes.set_xscale("log", base=2)
    axes.set_xlabel(r"$\alpha$: first layer times $\alpha$, second layer divided by it")
    axes.set_ylabel("value of the measure")
    same = "bitwise the same outputs" if sweep.bitwise else "the same outputs to round-off"
    axes.set_title(f"One function ({same}), any sharpness", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    _plain(axes)
    return figure


def scatter_figure(study: CorrelationStudy, measures: Sequence[str] | None = None) -> Figure:
    """Draw measures against the target, as trained (top) and after rescaling (bottom)."""
    chosen = [name for name in (measures or SCATTERED) if name in study.values]
    if not chosen:
        raise MeasureError("No measure to draw: none of the asked ones was computed.")
    figure = Figure(figsize=(2.5 * len(chosen) + 0.6, 5.0), layout="constrained")
    grid = figure.subplots(2, len(chosen), squeeze=False, sharey=True)
    rows = {row.measure: row for row in study.rows}
    for column, name in enumerate(chosen):
        row = rows[name]
        stays = row.max_relative_change < 1e-6
        for line, (variant, rho) in enumerate(
            (("as trained", row.rho), ("layer", row.rho_after_rescaling))
        ):
            axes = grid[line][column]
            values = np.asarray(study.values[name][variant])
            axes.plot(
                values,
                study.target_values,
                "o",
                color=STAYS if stays else MOVES,
                markersize=4,
                alpha=0.75,
            )
            if (values > 0).all() and values.max() > 30 * values.min():
                axes.set_xscale("log")
            axes.set_title(
                f"{name}\n" * (line == 0) + rf"$\rho$ = {signed(rho)}", fontsize=10, color=INK
            )
            _plain(axes)
    grid[0][0].set_ylabel(f"as trained\n{study.target.replace('_', ' ')}")
    grid[1][0].set_ylabel(f"rescaled\n{study.target.replace('_', ' ')}")
    return figure


def moves_figure(rows: Sequence[CellRow]) -> Figure:
    """Draw by what factor each measure moved under one map: bars on a logarithmic axis."""
    figure = Figure(figsize=(6.4, 0.34 * len(rows) + 1.1), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(reversed(rows)):
        ratio = row.ratio if row.ratio is not None and row.ratio > 0 else 1.0
        colour = MOVES if moved(row) else STAYS
        axes.barh(place, ratio - 1, left=1, height=0.6, color=colour)
        axes.plot([1], [place], "|", color=colour, markersize=11, markeredgewidth=2)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.5), max(high, 2.0))
    axes.set_yticks(range(len(rows)), [row.measure for row in reversed(rows)])
    axes.set_xlabel("value after the map / value before (1: unchanged)")
    _plain(axes)
    return figure


#: What figures are drawn in, and what it becomes in a page that may be light or dark.
_THEMED = {
    "#000000": "currentColor",
    INK: "currentColor",
    GRID: "var(--line, #e6e6e6)",
    "#ffffff": "var(--paper, #fff)",
    MOVES: "var(--moves, #d55e00)",
    STAYS: "var(--stays, #0072b2)",
}


def to_svg(figure: Figure, title: str = "", description: str = "") -> str:
    """Return a figure as an SVG element, identical from run to run.

    Colours follow the page's (``--moves``, ``--stays``, ``--line``, ``--paper``); title and
    description are what a screen reader reads.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "invariance", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, themed in _THEMED.items():
        text = re.sub(rf"{colour}\b", themed, text, flags=re.IGNORECASE)
    head, rest = text.split(">", 1)
    about = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>" if title else ""
    return f'{head} role="img" fill="currentColor" aria-label="{escape(title)}">{about}{rest}'


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
