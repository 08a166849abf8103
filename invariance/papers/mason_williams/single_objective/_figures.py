"""The figure of ``single-objective``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from invariance.papers.recipes._figures import INK, MOVES, STAYS, THIRD, plain, save
from invariance.studies._study import Findings, Record
from invariance.studies.claims._correlations import column, split


def figures(
    records: Sequence[Record], findings: Findings, folder: Path
) -> Sequence[tuple[Path, str]]:
    """Draw the trace of every function, and Tr H / Var(y) along training."""
    size = records[0].config.settings["n_train"]
    members = [r for r in records if r.config.settings["n_train"] == size]
    figure = Figure(figsize=(10.2, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
    by_name = split(members, lambda r: str(r.config.settings["objective"]))
    lines = (
        ("raw", "hessian_trace", MOVES, "raw targets"),
        ("raw", "hessian_trace_over_variance", INK, "raw targets, over Var(y)"),
        ("standardised", "hessian_trace", STAYS, "standardised targets"),
        ("standardised", "minimum_sharpness", THIRD, "standardised, minimum sharpness"),
    )
    for kind, measure, colour, label in lines:
        for place, of_name in enumerate(by_name.values()):
            chosen = [r for r in of_name if r.config.settings["targets"] == kind]
            values = column(chosen, "measures", measure)
            left.plot(
                np.full(len(values), place),
                values,
                "o",
                color=colour,
                markersize=4,
                alpha=0.7,
                label=label if place == 0 else None,
            )
    left.set_yscale("log")
    left.set_xticks(range(len(by_name)), list(by_name), rotation=25, ha="right")
    left.set_title("sharpness of the fit", fontsize=10)
    left.legend(fontsize=7, frameon=False)
    plain(left)
    for number, (name, of_name) in enumerate(by_name.items()):
        chosen = [r for r in of_name if r.config.settings["targets"] == "standardised"]
        curves = np.array([r.measured["trace_over_variance_along_training"] for r in chosen])
        if not curves.size:
            continue
        shade = (MOVES, STAYS, THIRD, INK, "#cc79a7", "#e69f00", "#56b4e9")[number % 7]
        logged = chosen[0].facts["logged"]
        right.plot(logged, np.exp(np.log(curves).mean(0)), "o-", color=shade, ms=3.5, label=name)
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("epochs")
    right.set_title("Tr H along training, standardised targets", fontsize=10)
    right.legend(fontsize=7, frameon=False)
    plain(right)
    caption = (
        "Left: every network, by function. Right: geometric mean over seeds of "
        "networks with standardised targets."
    )
    return [(save(figure, folder, "single-objective.png"), caption)]
