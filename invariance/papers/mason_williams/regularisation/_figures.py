"""The study's figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from invariance.papers.mason_williams.regularisation._analysis import PARTS, measure_effects
from invariance.papers.mason_williams.regularisation._claims import PUBLISHED_MEASURES
from invariance.papers.mason_williams.regularisation._reading import block_of, fitted_pairs, reader
from invariance.papers.mason_williams.regularisation._sharpness import MEASURES
from invariance.studies._study import Findings, Record
from invariance.studies.claims._paired_treatments import Pair

#: Colours that stay apart for colour-blind readers (Okabe and Ito).
COLOURS = ("#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#56b4e9")


def figures(
    records: Sequence[Record], findings: Findings, folder: Path
) -> Sequence[tuple[Path, str]]:
    """Draw effects on every measure, and gains in accuracy against gains in sharpness."""
    drawn: list[tuple[Path, str]] = []
    blocks = dict.fromkeys(block_of(record) for record in records)
    for block in blocks:
        members = [record for record in records if block_of(record) == block]
        pairs = fitted_pairs(members)
        if not pairs:
            continue
        stem = f"{block[0]}-{block[1]}-{block[2]}"
        title = f"{block[0]}, {block[1]}, n = {block[2]:,}"
        for name, figure, caption in (
            (
                "effects",
                effects_figure(pairs, title),
                f"Rank-biserial effect of each method on each measure ({title}), as trained and "
                "after each network was rescaled: red is sharper than the baseline.",
            ),
            (
                "sharper-and-better",
                scatter_figure(pairs, title),
                f"Each network beside its untreated partner ({title}): gain in test accuracy "
                "against the factor in sharpness, as trained and rescaled. The paper's claim is "
                "the upper right quarter.",
            ),
        ):
            path = folder / f"{stem}-{name}.png"
            figure.savefig(path, dpi=120)
            drawn.append((path, caption))
    return drawn


def effects_figure(pairs: dict[str, list[Pair]], title: str) -> Figure:
    """Draw a map of effects, methods by measures, as trained beside rescaled."""
    figure = Figure(figsize=(8.6, 5.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = list(MEASURES)
    for axes, part, label in zip(panels, PARTS, ("as trained", "rescaled"), strict=True):
        found = {(e.treatment, e.quantity): e for e in measure_effects(pairs, part)}
        grid = np.array([[_number(found[m, name].rank_biserial) for m in pairs] for name in names])
        image = axes.imshow(grid, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        axes.set_title(label)
        axes.set_xticks(range(len(pairs)), list(pairs), rotation=35, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        for row, name in enumerate(names):
            for at, m in enumerate(pairs):
                if found[m, name].found():
                    axes.text(at, row, "*", ha="center", va="center", color="white")
    figure.colorbar(image, ax=panels, label="rank-biserial effect; * sharper, p (BY) < 0.05")
    figure.suptitle(title)
    return figure


def scatter_figure(pairs: dict[str, list[Pair]], title: str) -> Figure:
    """Draw gains in accuracy against factors in sharpness, one panel a published measure."""
    figure = Figure(figsize=(9.6, 5.6), layout="constrained")
    panels = figure.subplots(len(PARTS), len(PUBLISHED_MEASURES), sharey=True)
    accuracy = reader("targets", "test_accuracy")
    for row, part in enumerate(PARTS):
        for axes, name in zip(panels[row], PUBLISHED_MEASURES, strict=True):
            read = reader(part, name)
            for colour, (m, entries) in zip(COLOURS, pairs.items(), strict=False):
                points = [
                    (math.log10(read(a) / read(b)), 100 * (accuracy(a) - accuracy(b)))
                    for a, b in entries
                    if read(a) > 0 and read(b) > 0
                ]
                if points:
                    x, y = zip(*points, strict=True)
                    axes.plot(x, y, ".", color=colour, label=m, alpha=0.7)
            axes.axhline(0, color="#999999", lw=0.8)
            axes.axvline(0, color="#999999", lw=0.8)
            axes.set_xlabel(f"log10 factor, {name}" + (", rescaled" if row else ""), fontsize=8)
    for axes in panels[:, 0]:
        axes.set_ylabel("gain in test accuracy, points", fontsize=8)
    panels[0, -1].legend(fontsize=7)
    figure.suptitle(title)
    return figure


def _number(value: float | None) -> float:
    return math.nan if value is None else value
