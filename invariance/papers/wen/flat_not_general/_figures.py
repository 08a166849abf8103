"""The study's figures: how sharpness and test accuracy move together, or do not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from invariance.papers.recipes._figures import INK, plain, save
from invariance.studies._study import Findings, Record

#: Okabe and Ito: apart in print and for colour-blind readers.
COLOURS: Mapping[str, str] = {
    "SAM": "#d55e00",
    "SAM wide": "#e69f00",
    "SAM projected": "#e69f00",
    "GD + decay": "#0072b2",
    "SGD": "#56b4e9",
    "label noise": "#009e73",
    "trace": "#cc79a7",
}

SCENARIOS: Mapping[str, str] = {
    "no bias": "Without a bias",
    "bias": "With a hidden bias",
    "layer": "Simplified LayerNorm",
    "batch": "Simplified BatchNorm",
}

#: Train loss from which on a network counts as nearly interpolating.
FITTED = 0.1


def draw(records: Sequence[Record], findings: Findings, folder: Path) -> list[tuple[Path, str]]:
    """Draw the figures."""
    del findings
    if not records:
        return []
    return [
        (
            save(trajectories(records), folder, "accuracy-against-sharpness.png"),
            "Test accuracy against sharpness, (2/n) sum |grad f|^2, along training, from where the "
            f"train loss is first below {FITTED:g}; dots mark the end, one a seed, and the dashed "
            "line the least sharpness of an interpolating network. Without a bias flatter is "
            "better; with one the flattest networks do not generalise.",
        ),
        (
            save(over_time(records), folder, "accuracy-over-time.png"),
            "Test accuracy over epochs; one line a seed.",
        ),
    ]


def trajectories(records: Sequence[Record]) -> Figure:
    """Draw test accuracy against sharpness, a panel for each architecture."""
    figure, panels = _panels(records)
    for name, axes in panels.items():
        for record in _of(records, name):
            log = record.facts["log"]
            start = next((i for i, v in enumerate(log["train_loss"]) if v < FITTED), None)
            if start is None:
                continue
            x, y = log["gauss_newton"][start:], log["test_accuracy"][start:]
            colour = COLOURS.get(_algorithm(record), INK)
            axes.plot(x, y, color=colour, lw=0.9, alpha=0.7)
            axes.plot(x[-1], y[-1], "o", color=colour, markersize=5, markeredgecolor="white")
        least = _least(_of(records, name))
        if least is not None:
            axes.axvline(least, color=INK, lw=1.0, ls="--")
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        wide = high > 100 * low  # there labels at every 1, 2, 3 and 5 would run into each other
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 3, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("sharpness")
    first = next(iter(panels.values()))
    first.plot([], [], color=INK, lw=1.0, ls="--", label="least sharpness")
    _finish(figure, panels, records)
    return figure


def over_time(records: Sequence[Record]) -> Figure:
    """Draw test accuracy over epochs, a panel for each architecture."""
    figure, panels = _panels(records)
    for name, axes in panels.items():
        for record in _of(records, name):
            log = record.facts["log"]
            colour = COLOURS.get(_algorithm(record), INK)
            axes.plot(log["epoch"][1:], log["test_accuracy"][1:], color=colour, lw=1.0, alpha=0.8)
        axes.set_xscale("log")
        axes.set_xlabel("epochs")
    _finish(figure, panels, records)
    return figure


def _panels(records: Sequence[Record]) -> tuple[Figure, dict[str, Axes]]:
    names = [name for name in SCENARIOS if _of(records, name)]
    figure = Figure(figsize=(3.4 * len(names) + 0.6, 4.0), layout="constrained")
    grid: Any = figure.subplots(1, len(names), sharey=True, squeeze=False)
    panels = dict(zip(names, grid[0], strict=True))
    for name, axes in panels.items():
        axes.set_title(SCENARIOS[name], fontsize=11)
        axes.axhline(0.5, color=INK, lw=0.6, ls=":")
        axes.set_ylim(0.3, 1.02)
        plain(axes)
    grid[0][0].set_ylabel("test accuracy")
    return figure, panels


def _finish(figure: Figure, panels: Mapping[str, Axes], records: Sequence[Record]) -> None:
    used = {_algorithm(record) for record in records}
    axes = next(iter(panels.values()))
    shown: dict[str, list[str]] = {}
    for label, colour in COLOURS.items():
        if label in used:
            shown.setdefault(colour, []).append(label)
    for colour, labels in shown.items():
        axes.plot([], [], color=colour, lw=2, label=" / ".join(labels))
    figure.legend(loc="outside lower center", ncols=len(shown) + 1, frameon=False, fontsize=9)


def _of(records: Sequence[Record], name: str) -> list[Record]:
    return [r for r in records if str(r.config.settings["cell"]).split(",")[0] == name]


def _algorithm(record: Record) -> str:
    return str(record.config.settings["cell"]).split(", ")[1]


def _least(records: Sequence[Record]) -> float | None:
    settings = records[0].config.settings
    if settings["architecture"] == "layer":
        return 2.0
    if settings["architecture"] == "batch":
        return None
    features = int(settings["dimension"]) + bool(settings["bias"])  # type: ignore[arg-type]
    return 4 * math.sqrt(features)
