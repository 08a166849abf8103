"""The figure of ``boundary-tightness``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from invariance.papers.mason_williams.boundary_tightness._findings import (
    VERSION_WORDS,
    VERSIONS,
    is_perfect,
    mean_fact,
    noise_records,
)
from invariance.papers.recipes._figures import INK, MOVES, STAYS, THIRD, plain, save
from invariance.stats._ranks import FloatArray
from invariance.studies._study import Findings, Record
from invariance.studies.claims._correlations import column, split


def figures(
    records: Sequence[Record], findings: Findings, folder: Path
) -> Sequence[tuple[Path, str]]:
    """Draw sharpness against tightness, and against the share of resampled labels."""
    perfect = [r for r in records if r.config.settings["label_share"] == 0 and is_perfect(r)]
    noise = noise_records(records)
    figure = Figure(figsize=(10.2, 3.7), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    for axes, name in ((first, "hessian_trace"), (second, "minimum_sharpness")):
        for version, colour in zip(VERSIONS, (INK, MOVES, STAYS), strict=True):
            _band(axes, perfect, "factor", name + version, colour, VERSION_WORDS[version])
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.set_xlabel("inner radius")
    _band(third, noise, "label_share", "hessian_trace", MOVES, "hessian trace")
    third.set_xlabel("share of resampled labels")
    third.set_title("resampled labels", fontsize=10)
    beside = third.twinx()
    marks = sorted({float(r.config.settings["label_share"]) for r in noise})  # type: ignore[arg-type]
    for fact, colour in (("train_accuracy", INK), ("test_accuracy", THIRD)):
        means = [
            mean_fact([r for r in noise if r.config.settings["label_share"] == mark], fact)
            for mark in marks
        ]
        beside.plot(marks, means, "o--", color=colour, markersize=3, label=fact.replace("_", " "))
    beside.set_ylim(0.4, 1.02)
    beside.tick_params(labelsize=8)
    beside.set_ylabel("accuracy", fontsize=8)
    lines = [entry for one in (third, beside) for entry in one.get_legend_handles_labels()[0]]
    beside.legend(handles=lines, loc="lower right", fontsize=7, frameon=False)
    first.legend(loc="upper left", fontsize=7, frameon=False)
    caption = (
        "Left and middle: networks without a mistake, geometric mean and middle 80 % of the "
        "networks, as trained and with all logits multiplied by one number. Right: resampled "
        "training labels."
    )
    return [(save(figure, folder, "boundary-tightness.png"), caption)]


def _band(
    axes: Axes, records: Sequence[Record], axis: str, name: str, colour: str, label: str
) -> None:
    cells: dict[float, FloatArray] = {}
    for key, members in split(records, lambda r: str(r.config.settings[axis])).items():
        values = column(members, "measures", name)
        values = values[np.isfinite(values) & (values > 0)]
        if values.size:
            cells[float(key)] = np.log(values)
    marks = sorted(cells)
    if not marks:
        return
    low, high = (np.exp([np.quantile(cells[m], q) for m in marks]) for q in (0.1, 0.9))
    axes.fill_between(marks, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(
        marks,
        np.exp([cells[m].mean() for m in marks]),
        "o-",
        color=colour,
        markersize=3.5,
        label=label,
    )
    axes.set_yscale("log")
    plain(axes)
