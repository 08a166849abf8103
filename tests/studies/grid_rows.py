"""Rows of a grid study: what a measure says when one setting changes and the others stay."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from invariance.core._errors import UsageError
from invariance.stats import granulated_kendall, sign_error
from invariance.stats._ranks import MINIMUM_POINTS, FloatArray
from invariance.studies._study import Record
from invariance.studies.claims._correlations import TableRow, column, names_of


def granulated_rows(
    records: Sequence[Record],
    *,
    settings: Sequence[str],
    seed_matched: bool = True,
    measures: Sequence[str] | None = None,
    targets: Sequence[str] = ("generalization_gap",),
    test_points: int | None = None,
    seed: int = 0,
) -> list[TableRow]:
    """Granulated Kendall and sign error of every measure, where several settings vary.

    Args:
        records: The networks of a grid.
        settings: Names of the settings that vary, as in :attr:`Config.settings`.
        seed_matched: Whether to compare only networks of the same seed.
        measures: Names of measures; all by default.
        targets: Names of targets that a measure should rise with.
        test_points: As for :func:`invariance.stats.sign_error`.
        seed: Seed of the resampling.

    Returns:
        A row a target and measure: ``granulated_kendall`` (the paper's mean), ``tau_along``
        (setting to tau with interval), ``sign_error_robust``, ``sign_error_mean`` and
        ``environments``.

    Raises:
        UsageError: If a measure, target or setting is unknown.
    """
    names = names_of(records, "measures", measures)
    wanted = names_of(records, "targets", targets)
    for setting in settings:
        if not all(setting in record.config.settings for record in records):
            raise UsageError(f"Expected a setting {setting!r} in every configuration.")
    rows = []
    for target in wanted:
        y = column(records, "targets", target)
        for name in names:
            x = column(records, "measures", name)
            known = np.isfinite(x) & np.isfinite(y)
            row: TableRow = {"measure": name, "target": target, "n": int(known.sum())}
            row |= {"left_out": int((~known).sum())}
            kept = [record for record, use in zip(records, known, strict=True) if use]
            grid: dict[str, list[Hashable]] = {
                setting: [record.config.settings[setting] for record in kept]
                for setting in settings
            }
            if seed_matched:
                grid["seed"] = [record.config.seed for record in kept]
            if len(kept) >= MINIMUM_POINTS:
                row |= _granulated(x[known], y[known], grid, settings, test_points, seed)
            else:
                row |= dict.fromkeys(
                    ("granulated_kendall", "sign_error_robust", "sign_error_mean")
                ) | {"tau_along": {}, "environments": []}
            rows.append(row)
    return rows


def _granulated(
    x: FloatArray,
    y: FloatArray,
    grid: dict[str, list[Hashable]],
    settings: Sequence[str],
    test_points: int | None,
    seed: int,
) -> dict[str, Any]:
    tau = granulated_kendall(x, y, grid, along=settings, seed=seed)
    wrong = sign_error(x, y, grid, along=settings, test_points=test_points)
    return {
        "granulated_kendall": tau.mean,
        "tau_along": {
            axis.setting: {
                "tau": axis.tau,
                "ci_low": axis.ci_low,
                "ci_high": axis.ci_high,
                "lines": axis.lines,
            }
            for axis in tau.axes
        },
        "sign_error_robust": wrong.robust,
        "sign_error_mean": wrong.mean,
        "environments": [
            {
                "setting": found.setting,
                "first": found.first,
                "second": found.second,
                "error": found.error,
                "pairs": found.pairs,
                "dropped": found.dropped,
            }
            for found in wrong.environments
        ],
    }
