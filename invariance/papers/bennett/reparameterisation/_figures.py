"""Figures of moved networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from invariance.papers.bennett.reparameterisation._axes import AXES, FACTORS, kind_of
from invariance.papers.recipes import _figures as draw
from invariance.studies._study import Findings, Record
from invariance.studies.claims._correlations import split


def figures(
    records: Sequence[Record], findings: Findings, folder: Path
) -> Sequence[tuple[Path, str]]:
    """Draw the law through measured points, and what random rescaling does to correlations."""
    made = []
    for name, members in split(records, kind_of).items():
        stem = name.replace(", ", "_").replace("=", "")
        made.append(
            (
                draw.save(_law_figure(name, members), folder, f"law_{stem}.png"),
                f"The trace of {name} along both axes: measured (points) on the law of each "
                "network (lines). Test accuracy and patterns do not move.",
            )
        )
        rows = [
            row
            for row in findings.correlations
            if row["group"] == name and row["target"] == "test_accuracy"
        ]
        made.append(
            (
                draw.save(
                    draw.forest(rows, f"{len(members)} networks, {name}"),
                    folder,
                    f"correlations_{stem}.png",
                ),
                "Rank correlations with test accuracy before and after a random rescaling of "
                "every network; few networks, hence wide intervals.",
            )
        )
    return made


def _law_figure(name: str, members: Sequence[Record]) -> Figure:
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    fine = np.geomspace(FACTORS[0], FACTORS[-1], 80)
    for axes, axis in zip(panels, AXES, strict=True):
        for record in members:
            points = record.measured["axes"][axis]
            factors = np.array([point["factor"] for point in points])
            # Three unknowns of the law from three of its own values, exactly.
            design = np.stack([factors**-2, np.ones_like(factors), factors**2], axis=1)
            a, c, b = np.linalg.lstsq(design, [p["law"] for p in points], rcond=None)[0]
            axes.loglog(fine, a / fine**2 + c + b * fine**2, color=draw.MOVES, lw=0.6, alpha=0.5)
            axes.loglog(factors, [p["hessian_trace"] for p in points], "o", color=draw.MOVES, ms=3)
        own = axes.twinx()
        base = np.array([r.measured["targets"]["test_accuracy"] for r in members])
        for place, factor in enumerate(FACTORS):
            now = [r.measured["axes"][axis][place]["test_accuracy"] for r in members]
            own.plot([factor] * len(now), np.array(now) - base, "s", color=draw.STAYS, ms=3)
        own.set_ylim(-1, 1)
        own.set_yticks([0])
        own.tick_params(labelsize=8, colors=draw.STAYS)
        own.set_ylabel("change of test accuracy", color=draw.STAYS, fontsize=9)
        axes.set_xlabel(f"factor of T_{axis}")
        axes.set_title(f"layer {AXES[axis] + 1} times it, layer {AXES[axis] + 2} divided")
        draw.plain(axes)
    panels[0].set_ylabel("Hessian trace")
    figure.suptitle(f"One function each, any sharpness ({name})", fontsize=11)
    return figure
