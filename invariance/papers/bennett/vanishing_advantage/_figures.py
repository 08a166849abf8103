"""Figures of small against large batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from invariance.papers.bennett._networks import regime_of
from invariance.papers.bennett.vanishing_advantage._claims import (
    PUBLISHED,
    cells_of,
    published_cells,
)
from invariance.papers.recipes import _figures as draw
from invariance.studies._study import Findings, Record
from invariance.studies.claims._correlations import split


def figures(
    records: Sequence[Record], findings: Findings, folder: Path
) -> Sequence[tuple[Path, str]]:
    """Draw the advantage and the traces over size, and the correlations at each size."""
    main = published_cells(cells_of(records))
    made = [
        (
            draw.save(advantage_figure(main, findings), folder, "advantage.png"),
            "Advantage of large batches, ratio of traces and correlations over training-set size, "
            "with 95 % intervals; crosses are the paper's numbers.",
        )
    ]
    for name, members in main.items():
        rows = [
            row
            for row in findings.correlations
            if row["group"] == name and row["target"] == "test_accuracy"
        ]
        n = int(name.removeprefix("n="))
        published = {key: v for key, v in PUBLISHED.get(n, {}).items() if "_" in key}
        stem = name.replace("=", "")
        mnist = members[0].config.settings["task"] == "mnist"
        made.append(
            (
                draw.save(
                    draw.forest(rows, f"{name}, both regimes pooled", published if mnist else None),
                    folder,
                    f"correlations_{stem}.png",
                ),
                f"Rank correlations with test accuracy at {name}, as trained and after a random "
                "rescaling of every network.",
            )
        )
        made.append(
            (
                draw.save(
                    draw.scatter(
                        split(members, regime_of),
                        ("hessian_trace", "activation_patterns_2", "minimum_sharpness",
                         "ensemble_agreement"),
                        title=name,
                    ),
                    folder,
                    f"networks_{stem}.png",
                ),
                f"Every network at {name}; colours are regimes.",
            )
        )  # fmt: skip
    return made


def advantage_figure(main: Mapping[str, Sequence[Record]], findings: Findings) -> Figure:
    """Draw the advantage, the ratio of traces and the trace's correlation over size."""
    claims = {claim.name: claim for claim in findings.claims}
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, prefix, title in zip(
        panels,
        ("advantage", "trace ratio", "trace"),
        ("large minus small batches, points", "trace, small over large", "rho of trace, pooled"),
        strict=True,
    ):
        found = [(int(name.removeprefix("n=")), claims[f"{prefix} {name}"]) for name in main]
        for n, claim in found:
            if claim.value is not None and claim.ci_low is not None:
                axes.plot([n, n], [claim.ci_low, claim.ci_high], color=draw.STAYS, lw=1.5)
                axes.plot(n, claim.value, "o", color=draw.STAYS, markersize=5)
            if claim.paper is not None:
                axes.plot(n, claim.paper, "x", color=draw.INK, markersize=6)
        axes.axhline(1.0 if prefix == "trace ratio" else 0.0, color=draw.INK, lw=0.8)
        axes.set_xscale("log")
        axes.set_xticks([n for n, _ in found], [f"{n:,}" for n, _ in found], rotation=45)
        axes.minorticks_off()
        axes.set_xlabel("training points")
        axes.set_title(title, fontsize=10)
        draw.plain(axes)
    return figure
