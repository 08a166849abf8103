"""Tables and correlations of small against large batches."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from invariance.papers.bennett._networks import COVARIATES, LARGE, SMALL, TARGETS, regime_of
from invariance.papers.bennett.vanishing_advantage._claims import (
    EARLY,
    PUBLISHED,
    cell_name,
    cells_of,
    claims_at,
    published_cells,
    regime_values,
    trend_claims,
)
from invariance.papers.recipes._claim_shapes import fixed_table, partial_table, row_of
from invariance.papers.recipes._measure_perceptrons import whole
from invariance.papers.recipes._subsets import size_of
from invariance.stats import granulated_kendall, sign_error
from invariance.studies._study import Findings, Options, Record, Table
from invariance.studies.claims._correlations import column, correlation_rows, covariate


def analyse(records: Sequence[Record], options: Options) -> Findings:
    """Compare the regimes and correlate, at each training-set size."""
    cells = cells_of(records)
    main = published_cells(cells)
    every = [record for members in main.values() for record in members]
    rows = correlation_rows(
        every, group=size_of, targets=TARGETS, given=COVARIATES, pooled=False, seed=options.seed
    )
    stops = {name: cell for name, cell in cells.items() if "subset" not in name}
    within = []
    for name, members in stops.items():
        found = correlation_rows(
            members, group=regime_of, given=COVARIATES, seed=options.seed, resamples=2_000
        )
        within += [{**row, "group": f"{name}, {row['group']}"} for row in found]
    others = [record for name, cell in cells.items() if name not in main for record in cell]
    further = (
        correlation_rows(others, group=cell_name, given=COVARIATES, pooled=False, seed=options.seed)
        if others
        else []
    )
    claims = [claim for name in main for claim in claims_at(name, main[name], rows, within)]
    claims += trend_claims(main)
    last = next(iter(main))
    return Findings(
        correlations=(*rows, *further, *within),
        claims=tuple(claims),
        tables=(
            _table(cells),
            _within_table(within, list(main)),
            *_stop_tables(cells, within),
            _granulated_table(every),
            partial_table(rows, list(main), ("hessian_trace", "ensemble_agreement")),
            fixed_table(rows, last),
        ),
        notes=(
            "Each size pools two regimes that differ in batch size and learning rate at once. A "
            "pooled correlation can come from that difference alone; the correlations within one "
            "regime are set beside it, and rest on half as many networks.",
            "Agreement and test accuracy are both counts of mistakes, in part on the same points; "
            "a correlation between them is not evidence about a property of the weights.",
            "Training stops at the first look (every 10 epochs) with 99.99 % of the training "
            "points right up to 6,000 points, with all of them right from 12,000 on, as in the "
            "published notebooks; 'stopped early' is 99.5 %. The final loss differs between "
            "networks; partial correlations hold it fixed.",
            "Traces are exact, over all training points; the paper estimated them with random "
            "probes. All networks of a size share one training subset unless a row says "
            "'subset': what holds for it need not hold for another.",
        ),
    )


def _table(cells: Mapping[str, Sequence[Record]]) -> Table:
    rows = []
    for name, members in cells.items():
        n = whole(members[0].config, "n_train")
        mnist = members[0].config.settings["task"] == "mnist" and "," not in name
        paper = PUBLISHED.get(n, {}) if mnist else {}
        means = [
            float(regime_values(members, regime, part, key).mean()) if members else None
            for part, key in (("targets", "test_accuracy"), ("measures", "hessian_trace"))
            for regime in (SMALL, LARGE)
        ]
        reached = sum(bool(record.facts["reached_target"]) for record in members)
        low, high = means[0] or 0.0, means[1] or 0.0
        rows.append(
            (
                name, 100 * low, 100 * high, 100 * (high - low), paper.get("delta"),
                means[2], means[3], paper.get("small"), paper.get("large"),
                f"{reached} of {len(members)}",
            )
        )  # fmt: skip
    return Table(
        "Small against large batches",
        (
            "networks", "small, test %", "large, test %", "difference", "paper",
            "trace, small", "trace, large", "paper, small", "paper, large", "reached the stop",
        ),
        tuple(rows),
        "Means over networks; a network that does not reach its stop is kept.",
    )  # fmt: skip


def _stop_tables(
    cells: Mapping[str, Sequence[Record]], within: Sequence[Mapping[str, Any]]
) -> list[Table]:
    """Set the trace's correlation beside that of the same networks stopped early."""
    rows: list[tuple[str | float | int | None, ...]] = []
    for name in cells:
        if not name.endswith(EARLY):
            continue
        for stop in (name.removesuffix(f", {EARLY}"), name):
            found = [
                row_of(within, "hessian_trace", "test_accuracy", f"{stop}, {part}")
                for part in ("pooled", SMALL, LARGE)
            ]
            sides = [
                [r for r in cells[stop] if regime_of(r) == regime] for regime in (SMALL, LARGE)
            ]
            losses = (float(covariate(side, "train_loss").mean()) for side in sides)
            traces = (float(column(side, "measures", "hessian_trace").mean()) for side in sides)
            inside = (found[0].get(f"rho_within{end}") for end in ("", "_ci_low", "_ci_high"))
            rows.append((stop, *losses, *traces, *(row["rho"] for row in found), *inside))
    if not rows:
        return []
    return [
        Table(
            "What stopping early does to the trace's correlation with test accuracy",
            (
                "networks", "loss, small", "loss, large", "trace, small", "trace, large",
                "rho, pooled", f"rho, {SMALL}", f"rho, {LARGE}", "rho within", "low", "high",
            ),
            tuple(rows),
            "The same seeds and data; 'stopped early' ends at 99.5 % of the training points "
            "right. Within regimes: combined by Fisher's z.",
        )
    ]  # fmt: skip


def _within_table(within: Sequence[Mapping[str, Any]], sizes: Sequence[str]) -> Table:
    rows = []
    for size in sizes:
        for measure_name in sorted({row["measure"] for row in within}):
            found = [
                row_of(within, measure_name, "test_accuracy", f"{size}, {part}")
                for part in ("pooled", SMALL, LARGE)
            ]
            rows.append(
                (size, measure_name, *(row.get("rho") for row in found), found[0].get("rho_within"))
            )
    return Table(
        "Correlation with test accuracy: pooled, and within one regime",
        ("networks", "measure", "pooled", SMALL, LARGE, "within, combined"),
        tuple(rows),
        "Where the pooled correlation is far from those within regimes, the measure tells the "
        "regimes apart rather than good networks from bad ones.",
    )


def _granulated_table(records: Sequence[Record]) -> Table:
    """Move along one hyperparameter with the other fixed: Kendall's tau, and the sign error."""
    goal = column(records, "targets", "generalization_gap")
    settings: dict[str, list[Hashable]] = {
        "n_train": [record.config.settings["n_train"] for record in records],
        "regime": [regime_of(record) for record in records],
        "replicate": _replicates(records),
    }
    rows: list[tuple[str | float | int | None, ...]] = []
    for name in records[0].measured["measures"]:
        values = column(records, "measures", name)
        if not (np.isfinite(values).all() and np.isfinite(goal).all()):
            continue
        tau = granulated_kendall(values, goal, settings, along=("n_train", "regime"))
        wrong = sign_error(values, goal, settings, along=("n_train", "regime"))
        rows.append((name, *(axis.tau for axis in tau.axes), tau.mean, wrong.mean, wrong.robust))
    return Table(
        "Granulated Kendall with the generalization gap, and sign error",
        ("measure", "tau along size", "tau along regime", "mean", "sign error", "worst case"),
        tuple(rows),
        "Each comparison changes one hyperparameter with the other fixed (Jiang et al. 2020; "
        "Dziugaite et al. 2020). The sign error is the share of such pairs that the measure "
        "ranks wrongly if it is to rise with the gap: a half is a coin's. Networks of two "
        "regimes are paired by their place in the list, which means nothing.",
    )


def _replicates(records: Sequence[Record]) -> list[Hashable]:
    """Number the networks of each cell in order."""
    seen: dict[tuple[str, str], int] = {}
    numbers: list[Hashable] = []
    for record in records:
        cell = (size_of(record), regime_of(record))
        numbers.append(seen.get(cell, 0))
        seen[cell] = seen.get(cell, 0) + 1
    return numbers
