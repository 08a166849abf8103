"""What is claimed of small and large batches, with the regions fixed before any result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from invariance.papers.bennett._networks import LARGE, SMALL, regime_of, stopped_early
from invariance.papers.recipes._claim_shapes import (
    NEGATIVE,
    NO_RANK,
    NO_RANK_WORDS,
    POSITIVE,
    find_row,
    mean_difference,
    mean_ratio,
    rescaled_claim,
    rho_claim,
    row_of,
    sampled_claim,
)
from invariance.papers.recipes._measure_perceptrons import describe_task, whole
from invariance.papers.recipes._profile import with_agreement
from invariance.papers.recipes._subsets import cell_of
from invariance.studies._study import Record
from invariance.studies.claims._claims import Claim, Region
from invariance.studies.claims._correlations import column, split

#: The paper's table: what it reports at each training-set size.
PUBLISHED: Mapping[int, Mapping[str, float]] = {
    500: {"delta": 1.2, "small": 52.5, "large": 20.6, "hessian_trace": -0.75,
          "activation_patterns_1": 0.11, "activation_patterns_2": 0.76,
          "ensemble_agreement": -0.85},
    2_000: {"delta": 1.6, "small": 59.5, "large": 23.1, "hessian_trace": -0.82,
            "activation_patterns_1": 0.08, "activation_patterns_2": 0.73,
            "ensemble_agreement": -0.88},
    6_000: {"delta": 1.0, "small": 61.9, "large": 25.9, "hessian_trace": -0.78,
            "activation_patterns_1": 0.40, "activation_patterns_2": 0.78,
            "ensemble_agreement": -0.86},
    12_000: {"delta": 0.5, "small": 44.8, "large": 23.9, "hessian_trace": -0.84,
             "activation_patterns_1": 0.22, "activation_patterns_2": 0.77,
             "ensemble_agreement": -0.90},
    24_000: {"delta": 0.08, "small": 39.1, "large": 38.2, "hessian_trace": 0.01,
             "activation_patterns_1": 0.06, "activation_patterns_2": 0.39,
             "ensemble_agreement": -0.40},
    60_000: {"delta": 0.02, "small": 30.1, "large": 26.0, "hessian_trace": 0.05,
             "activation_patterns_2": 0.05, "ensemble_agreement": -0.81},
}  # fmt: skip


#: What is appended to the name of a size whose networks stopped early.
EARLY = "stopped early"

#: Up to this share of the training set the advantage is claimed, beyond it its absence.
SMALL_SHARE = 0.3

#: Regions fixed before any result was seen. An advantage below a quarter of a point, a ratio
#: of traces within a quarter of 1 (either way) count as vanished; a correlation within the one
#: margin of all studies.
NO_ADVANTAGE = Region(-0.25, 0.25)

NO_RATIO = Region(0.8, 1.25)


def claims_at(
    name: str,
    members: Sequence[Record],
    rows: Sequence[Mapping[str, Any]],
    within: Sequence[Mapping[str, Any]],
) -> list[Claim]:
    """Judge one training-set size: the advantage, the traces, the correlations."""
    settings = members[0].config.settings
    n = whole(members[0].config, "n_train")
    early = n <= SMALL_SHARE * describe_task(str(settings["task"])).n_total
    paper = PUBLISHED.get(n, {}) if settings["task"] == "mnist" else {}
    small, large = (regime_values(members, r, "targets", "test_accuracy") for r in (SMALL, LARGE))
    traces = [regime_values(members, r, "measures", "hessian_trace") for r in (SMALL, LARGE)]
    common: dict[str, Any] = {"group": name}
    claims = [
        sampled_claim(
            f"advantage {name}",
            f"At {name} large batches generalise better."
            if early
            else f"At {name} neither regime has an advantage of a quarter of a point.",
            "mean test accuracy, large minus small batches, percentage points (Welch)",
            mean_difference(100 * small, 100 * large),
            region=POSITIVE if early else NO_ADVANTAGE,
            n=len(members),
            paper=paper.get("delta"),
        ),
        sampled_claim(
            f"trace ratio {name}",
            f"At {name} small batches end at sharper points."
            if early
            else f"At {name} both regimes end at points of like sharpness.",
            "Hessian trace, small over large batches, geometric means (Welch on logarithms)",
            mean_ratio(traces[1], traces[0]),
            region=Region(low=1.0) if early else NO_RATIO,
            n=len(members),
            paper=paper["small"] / paper["large"] if paper else None,
        ),
        rho_claim(
            rows,
            f"trace {name}",
            f"At {name} flatter networks generalise better, both regimes pooled."
            if early
            else f"At {name} the trace no longer ranks networks by test accuracy {NO_RANK_WORDS}.",
            measure="hessian_trace",
            region=NEGATIVE if early else NO_RANK,
            paper=paper.get("hessian_trace"),
            **common,
        ),
    ]
    if early:
        claims.append(_within_claim(name, within))
        claims.append(
            rho_claim(
                rows,
                f"patterns {name}",
                f"At {name} networks with more patterns in the last hidden layer generalise "
                "better, both regimes pooled.",
                measure="activation_patterns_2",
                region=POSITIVE,
                paper=paper.get("activation_patterns_2"),
                **common,
            )
        )
        claims.append(
            rescaled_claim(
                rows,
                f"rescaled trace {name}",
                f"At {name} the trace no longer ranks networks once each is rescaled at random "
                f"{NO_RANK_WORDS}.",
                measure="hessian_trace",
                region=NO_RANK,
                **common,
            )
        )
    if find_row(rows, "ensemble_agreement", "test_accuracy", name):
        claims.append(
            rho_claim(
                rows,
                f"agreement {name}",
                f"At {name} better networks fail where all others fail as well.",
                measure="ensemble_agreement",
                region=NEGATIVE,
                paper=paper.get("ensemble_agreement"),
                **common,
            )
        )
    return claims


def _within_claim(name: str, within: Sequence[Mapping[str, Any]]) -> Claim:
    row = row_of(within, "hessian_trace", "test_accuracy", f"{name}, pooled")
    return sampled_claim(
        f"trace within regimes {name}",
        f"At {name} flatter networks generalise better among networks trained alike.",
        "rho of hessian_trace and test_accuracy within regimes (Fisher's z)",
        tuple(row.get(key) for key in ("rho_within", "rho_within_ci_low", "rho_within_ci_high")),  # type: ignore[arg-type]
        region=NEGATIVE,
        n=int(row.get("n", 0)),
        paper=None,
        note="the paper reports pooled correlations only",
        ours=True,
    )


def trend_claims(main: Mapping[str, Sequence[Record]]) -> list[Claim]:
    """Compare the advantages at the smallest and the largest training-set size."""
    if len(main) < 2:
        return []
    sizes = sorted(main, key=lambda name: int(name.removeprefix("n=")))
    first, last = (
        [regime_values(main[name], r, "targets", "test_accuracy") * 100 for r in (SMALL, LARGE)]
        for name in (sizes[0], sizes[-1])
    )
    deltas = [large.mean() - small.mean() for small, large in (first, last)]
    variances = [
        sum(v.var(ddof=1) / v.size if v.size > 1 else np.nan for v in part)
        for part in (first, last)
    ]
    value, error = float(deltas[0] - deltas[1]), float(np.sqrt(sum(variances)))
    known = bool(np.isfinite(error))
    ends = (value, value - 1.96 * error, value + 1.96 * error)
    published = [PUBLISHED.get(int(n.removeprefix("n=")), {}).get("delta") for n in sizes]
    task = main[sizes[0]][0].config.settings["task"]
    return [
        sampled_claim(
            "advantage falls",
            f"The advantage of large batches is smaller at {sizes[-1]} than at {sizes[0]}.",
            f"advantage at {sizes[0]} minus advantage at {sizes[-1]}, percentage points",
            ends if known else (None, None, None),
            region=POSITIVE,
            n=len(main[sizes[0]]) + len(main[sizes[-1]]),
            paper=published[0] - published[-1]
            if task == "mnist" and published[0] is not None and published[-1] is not None
            else None,
        )
    ]


def cell_name(record: Record) -> str:
    """Return the label of a network's size, training subset and stop."""
    return cell_of(record) + (f", {EARLY}" if stopped_early(record) else "")


def cells_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Split networks by :func:`cell_name`, with their agreement in each cell."""
    cells = split(records, cell_name)
    return {name: list(with_agreement(members)) for name, members in cells.items()}


def published_cells(cells: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """Return the cells of the published training subset and stop."""
    return {
        name: cell for name, cell in cells.items() if "subset" not in name and EARLY not in name
    }


def regime_values(
    members: Sequence[Record], regime: str, part: str, name: str
) -> np.ndarray[Any, Any]:
    """Return one number of the networks of one regime."""
    return column([r for r in members if regime_of(r) == regime], part, name)
