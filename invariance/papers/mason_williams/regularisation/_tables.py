"""The tables of the study: where training ends, what gets better, what gets sharper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from invariance.papers.mason_williams.regularisation._methods import method_of
from invariance.studies._study import Record, Table
from invariance.studies.claims._correlations import POOLED, column, covariate
from invariance.studies.claims._paired_treatments import Effect, Ratio

Cell = str | float | int | None


def cells_table(title: str, records: Sequence[Record]) -> Table:
    """Show where training ends in every cell of the grid."""
    cells: dict[tuple[str, float, int], list[Record]] = {}
    for record in records:
        s = record.config.settings
        key = (method_of(record.config), float(s["lr"]), int(s["batch_size"]))  # type: ignore[arg-type]
        cells.setdefault(key, []).append(record)
    rows: list[tuple[Cell, ...]] = []
    for (method, lr, batch_size), members in cells.items():
        rows.append(
            (
                method,
                lr,
                batch_size,
                len(members),
                _mean(covariate(members, "train_accuracy")),
                _mean(covariate(members, "train_loss")),
                _mean(column(members, "targets", "test_accuracy")),
                _mean(column(members, "measures", "hessian_trace")),
                _mean(column(members, "measures", "sam_sharpness")),
            )
        )
    return Table(
        f"Means by cell: {title}",
        (
            "method",
            "rate",
            "batch",
            "networks",
            "train accuracy",
            "train loss",
            "test accuracy",
            "Hessian trace",
            "SAM sharpness",
        ),
        tuple(rows),
        "Train loss and accuracy are those of the images as they are, not augmented.",
    )


def outcomes_table(title: str, effects: Sequence[Effect]) -> Table:
    """Show whether each method is better than none, by every outcome."""
    return Table(
        f"Better than the baseline? {title}",
        ("method", "outcome", "pairs", "median change", "effect", "from", "to", "p (BY)", "found"),
        tuple(
            (
                e.treatment,
                e.quantity,
                e.n,
                e.median,
                e.rank_biserial,
                e.ci_low,
                e.ci_high,
                e.p_by,
                {1: "better", 0: "-", -1: "worse"}[e.found()],
            )
            for e in effects
        ),
        "Effects are rank-biserial, positive for better. Tests are two-sided, with seeds for "
        "units; the family is this table.",
    )


def blocks_table(rows: Sequence[tuple[str, str, Effect, Ratio]]) -> Table:
    """Show block by block what the claims pool: who is better, who is sharper and better."""
    return Table(
        "What the claims pool, block by block",
        ("method", "block", "pairs", "better", "sharper and better"),
        tuple(
            (method, block, found.n, _with_ends(found.rank_biserial, found), _factor(share))
            for method, block, found, share in rows
        ),
        "Better: the rank-biserial effect on test accuracy. Sharper and better: share of pairs "
        "with the higher test accuracy and most of the three published measures higher.",
    )


def measures_table(
    title: str,
    before: Sequence[Effect],
    after: Sequence[Effect],
    equal: Mapping[tuple[str, str], Ratio],
) -> Table:
    """Show whether each method is sharper than none: as trained, rescaled, at equal loss."""
    rows: list[tuple[Cell, ...]] = []
    for e, r in zip(before, after, strict=True):
        ratio = equal[e.treatment, e.quantity]
        rows.append(
            (
                e.treatment,
                e.quantity,
                e.n,
                e.rank_biserial,
                e.p_by,
                r.rank_biserial,
                r.p_by,
                _factor(ratio),
                verdict(e, r),
            )
        )
    return Table(
        f"Sharper than the baseline? {title}",
        (
            "method",
            "measure",
            "pairs",
            "effect",
            "p (BY)",
            "rescaled",
            "p (BY) rescaled",
            "factor at equal loss",
            "found",
        ),
        tuple(rows),
        "Effects are rank-biserial, positive for sharper (for the norm: larger). As trained and "
        "rescaled are one family each.",
    )


def verdict(before: Effect, after: Effect) -> str:
    """Say in a word or two what became of a claim that a method is sharper."""
    word = {1: "sharper", -1: "flatter", 0: "-"}
    if before.found():
        same = before.found() == after.found()
        return word[before.found()] + ("" if same else ", only as trained")
    return f"{word[after.found()]}, only rescaled" if after.found() else "-"


def simpson_table(
    title: str, rows: Sequence[Mapping[str, Any]], within_cells: Mapping[tuple[str, str], Cell]
) -> Table:
    """Show correlations pooled, within methods, and within cells of the grid, side by side."""
    groups = [name for name in dict.fromkeys(str(row["group"]) for row in rows) if name != POOLED]
    by_method = {(row["group"], row["measure"], row["target"]): row["rho"] for row in rows}
    shown: list[tuple[Cell, ...]] = []
    for row in rows:
        if row["group"] != POOLED:
            continue
        key = (row["measure"], row["target"])
        within, pooled = row.get("rho_within"), row["rho"]
        opposite = (
            within is not None
            and pooled is not None
            and within * pooled < 0
            and min(abs(within), abs(pooled)) > 0.1
        )
        shown.append(
            (
                *key,
                row["n"],
                pooled,
                within,
                within_cells.get(key),
                *(by_method.get((group, *key)) for group in groups),
                "reversed" if opposite else "",
            )
        )
    return Table(
        f"Pooled and stratified: {title}",
        ("measure", "target", "networks", "pooled", "within methods", "within cells", *groups, ""),
        tuple(shown),
        "Spearman's rho over all networks of the block; within each method, pooled by Fisher's "
        "z; within each cell (method, rate and batch size), likewise; and method by method. "
        "Where pooled and within methods differ in sign and both exceed 0.1, the pooled one is "
        "Simpson's paradox.",
    )


def _factor(ratio: Ratio) -> str:
    return f"{_with_ends(ratio.value, ratio)}{'†' if ratio.extrapolated else ''}"


def _with_ends(value: float | None, found: Effect | Ratio) -> str:
    if value is None:
        return "-"
    ends = "" if found.ci_low is None else f" [{found.ci_low:.3g}, {found.ci_high:.3g}]"
    return f"{value:.3g}{ends}"


def _mean(values: Any) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None
