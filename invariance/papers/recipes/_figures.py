"""Figures that several studies share, drawn without matplotlib's global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from invariance.studies._study import Record
from invariance.studies.claims._correlations import column

#: Colours that stay apart in print and for colour-blind readers (Okabe and Ito).
MOVES, STAYS, INK, THIRD = "#d55e00", "#0072b2", "#333333", "#009e73"

#: Colour of a measure that was not measured again after rescaling.
UNKNOWN = "#888888"

TableRow = Mapping[str, Any]


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write a figure as PNG, the same bytes from run to run."""
    path = folder / name
    figure.savefig(path, dpi=130, metadata={"Software": None})
    return path


def forest(
    rows: Sequence[TableRow], title: str, published: Mapping[str, float] | None = None
) -> Figure:
    """Draw each measure's rho with its interval, as trained and after rescaling."""
    shown = [row for row in rows if row["rho"] is not None]
    shown.sort(key=lambda row: row["rho"])
    figure = Figure(figsize=(7.6, 1.5 + 0.36 * max(len(shown), 1)), layout="constrained")
    axes = figure.add_subplot()
    unknown = False
    for place, row in enumerate(shown):
        known = row["max_relative_change"] is not None
        colour = (STAYS if row["stays_fixed"] else MOVES) if known else UNKNOWN
        unknown = unknown or not known
        for offset, keys, filled in (
            (0.14, ("rho", "ci_low", "ci_high"), True),
            (-0.18, ("rho_after_rescaling", "ci_low_after", "ci_high_after"), False),
        ):
            rho, low, high = (row[key] for key in keys)
            if rho is None:
                continue
            axes.plot([low, high], [place + offset] * 2, color=colour, lw=1.6 if filled else 0.9)
            axes.plot(
                rho,
                place + offset,
                "o" if filled else "s",
                color=colour,
                markerfacecolor=colour if filled else "white",
                markersize=5.5 if filled else 4,
            )
        if published and row["measure"] in published:
            axes.plot(published[row["measure"]], place, "x", color=INK, markersize=6, mew=1.4)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks(range(len(shown)), [row["measure"].replace("_", " ") for row in shown])
    axes.set_ylim(-0.7, max(len(shown), 1) - 0.3)
    axes.set_xlim(-1.02, 1.02)
    target = shown[0]["target"].replace("_", " ") if shown else "target"
    axes.set_xlabel(f"Spearman's rho with {target}, 95 % bootstrap interval")
    axes.set_title(title, fontsize=11)
    for label, options in (
        ("as trained", {"marker": "o", "color": INK, "markersize": 5.5}),
        ("after random rescaling", {"marker": "s", "color": INK, "markerfacecolor": "white"}),
        ("stays fixed", {"marker": "o", "color": STAYS}),
        ("moves", {"marker": "o", "color": MOVES}),
        *((("not rescaled", {"marker": "o", "color": UNKNOWN}),) if unknown else ()),
        *((("paper", {"marker": "x", "color": INK}),) if published else ()),
    ):
        axes.plot([], [], linestyle="none", label=label, **options)
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=8.5)
    plain(axes)
    return figure


def scatter(
    groups: Mapping[str, Sequence[Record]],
    measures: Sequence[str],
    *,
    target: str = "test_accuracy",
    title: str = "",
) -> Figure:
    """Draw measures against a target, as trained (top) and after rescaling (bottom)."""
    figure = Figure(figsize=(2.6 * len(measures) + 0.8, 5.2), layout="constrained")
    grid = figure.subplots(2, len(measures), squeeze=False, sharey=True)
    for line, (part, word) in enumerate((("measures", "as trained"), ("rescaled", "rescaled"))):
        for place, name in enumerate(measures):
            axes = grid[line][place]
            pooled = []
            for colour, (label, records) in zip(
                (STAYS, MOVES, THIRD, INK) * 3, groups.items(), strict=False
            ):
                values, goal = column(records, part, name), column(records, "targets", target)
                pooled.append(values[np.isfinite(values)])
                axes.plot(values, goal, "o", color=colour, markersize=3.5, alpha=0.7, label=label)
            every = np.concatenate(pooled)
            if every.size and every.min() > 0 and every.max() > 30 * every.min():
                axes.set_xscale("log")
            else:
                axes.locator_params(axis="x", nbins=4)  # long numbers would run together
            if line == 0:
                axes.set_title(name.replace("_", " "), fontsize=10)
            plain(axes)
        grid[line][0].set_ylabel(f"{word}\n{target.replace('_', ' ')}")
    if len(groups) > 1:
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def plain(axes: Axes) -> None:
    """Leave out what carries no information."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
