"""What the networks that fit seven functions say: tables and claims."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from invariance.papers.mason_williams.single_objective._objectives import OBJECTIVES
from invariance.papers.recipes._claim_shapes import bounded_mean, mean_interval, sampled_claim
from invariance.stats._ranks import FloatArray
from invariance.studies._study import Findings, Options, Record, Table
from invariance.studies.claims._claims import Claim, Region
from invariance.studies.claims._correlations import column, correlation_rows, split

#: A fit counts as good if at most this share of the test targets' variance is left over.
GOOD_FIT = 0.01

# Regions, fixed before any result was seen.
DIFFERENT = Region(low=2.0)
ORDERED = Region(low=0.7)
MOSTLY = Region(low=0.5)
NOT_WORSE = Region(high=0.5)

#: One seed's networks, one a function.
Family = Sequence[Record]


def analyse(records: Sequence[Record], options: Options) -> Findings:
    """Compare the functions within each seed, with raw and with standardised targets."""
    rows: list[Mapping[str, Any]] = []
    claims: list[Claim] = []
    tables: list[Table] = []
    for size, members in split(records, lambda r: f"n={r.config.settings['n_train']}").items():
        for kind, of_kind in split(members, lambda r: str(r.config.settings["targets"])).items():
            if len(of_kind) >= 4:
                found = correlation_rows(
                    of_kind,
                    targets=("test_error", "generalization_gap", "target_variance"),
                    given=("train_loss",),
                    seed=options.seed,
                    resamples=2_000,
                )
                rows += [row | {"group": f"{size}, {kind}"} for row in found]
            tables.append(_function_table(of_kind, f"{size}, {kind} targets"))
        claims += _claims(members, "" if len(options.n_train) == 1 else f" {size}")
        tables.append(_order_table(members, size))
    return Findings(
        correlations=tuple(rows),
        claims=tuple(claims),
        tables=tuple(tables),
        notes=(
            "Networks of one seed start from the same weights and see the same points, whatever "
            "the function; intervals of claims treat seeds as independent (Student's t). The "
            "seven functions are fixed: nothing here generalises to functions drawn at random.",
            "Tr H / Var(y) takes the unit out of the loss and leaves it in the last layer, whose "
            "curvature does not depend on the targets' unit; 'standard units' also divides the "
            "last layer. With standardised targets all three agree.",
            "Test error is the mean squared error over the variance of the test targets, so "
            "that raw and standardised fits can be compared.",
            "The rescaling changes no output beyond round-off, and it is drawn for each network.",
        ),
    )


def families(records: Sequence[Record], targets: str) -> list[Family]:
    """Return each seed's networks with one kind of targets, in the order of the functions."""
    chosen = [r for r in records if r.config.settings["targets"] == targets]
    chosen.sort(key=lambda r: list(OBJECTIVES).index(str(r.config.settings["objective"])))
    return list(split(chosen, lambda r: str(r.config.seed)).values())


def good_fits(family: Family) -> list[Record]:
    """Return the networks that leave at most 1 % of the test variance."""
    return [r for r in family if r.measured["targets"]["test_error"] <= GOOD_FIT]


def _per_family(
    families_: Sequence[Family], number: Callable[[Family], float | None]
) -> FloatArray:
    found = [number(family) for family in families_]
    return np.array([v for v in found if v is not None and math.isfinite(v)])


def spread(family: Family) -> float | None:
    """Return the largest over the smallest Hessian trace among good fits."""
    values = column(good_fits(family), "measures", "hessian_trace")
    return float(values.max() / values.min()) if len(values) >= 2 else None


def scale_correlation(family: Family) -> float | None:
    """Correlate the trace with the variance of the targets over the functions."""
    return _rho(
        column(family, "measures", "hessian_trace"), column(family, "targets", "target_variance")
    )


def scale_share(family: Family) -> float | None:
    """Return how much of the spread of log Tr H dividing by Var(y) takes away."""
    trace = np.log(column(family, "measures", "hessian_trace"))
    left = np.log(column(family, "measures", "hessian_trace_over_variance"))
    return float(1 - left.var() / trace.var()) if len(trace) >= 3 and trace.var() > 0 else None


def error_correlation(family: Family) -> float | None:
    """Correlate the trace with the test error among good fits."""
    good = good_fits(family)
    return _rho(column(good, "measures", "hessian_trace"), column(good, "targets", "test_error"))


def order_agreement(families_: Sequence[Family], name: str, part: str = "measures") -> FloatArray:
    """Correlate each seed's order of the functions with the mean order of the other seeds."""
    ranks = np.array([stats.rankdata(column(family, part, name)) for family in families_])
    if len(ranks) < 2:
        return np.empty(0)
    others = (ranks.sum(0) - ranks) / (len(ranks) - 1)
    found = [_rho(own, rest) for own, rest in zip(ranks, others, strict=True)]
    return np.array([v for v in found if v is not None])


def _rho(a: FloatArray, b: FloatArray) -> float | None:
    if len(a) < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(stats.spearmanr(a, b).statistic)


def _claims(records: Sequence[Record], suffix: str) -> list[Claim]:
    raw, standard = families(records, "raw"), families(records, "standardised")

    def claim(
        name: str,
        statement: str,
        quantity: str,
        values: FloatArray,
        region: Region,
        *,
        logs: bool = False,
        note: str = "",
        ours: bool = False,
    ) -> Claim:
        return sampled_claim(
            name + suffix,
            statement,
            f"{quantity}, mean over seeds (Student's t)",
            mean_interval(values, logs=True) if logs else bounded_mean(values, 0.0),
            region=region,
            n=len(values),
            paper=None,
            note=note,
            ours=ours,
        )

    order = "rank correlation of a seed's order of the functions with that of the other seeds"
    return [
        claim(
            "geometry differs",
            "Equally good fits (test error at most 1 %) from one initialisation differ in the "
            "Hessian trace by a factor of two or more, with standardised targets.",
            "largest over smallest Hessian trace among good fits",
            _per_family(standard, spread),
            DIFFERENT,
            logs=True,
        ),
        claim(
            "follows the function",
            "The order of the functions by sharpness is the same from every initialisation.",
            f"Hessian trace, standardised targets: {order}",
            order_agreement(standard, "hessian_trace"),
            ORDERED,
        ),
        claim(
            "loss scale",
            "With raw targets, sharpness mostly orders the functions by their variance.",
            "rank correlation of Hessian trace and Var(y) over the functions, raw targets",
            _per_family(raw, scale_correlation),
            ORDERED,
            note="A reason not to read raw sharpness as geometry.",
            ours=True,
        ),
        claim(
            "loss scale explains",
            "Most of the spread of sharpness with raw targets is the unit of the loss.",
            "share of the variance of log Tr H over functions that dividing by Var(y) removes",
            _per_family(raw, scale_share),
            MOSTLY,
            ours=True,
        ),
        claim(
            "follows the function, rescaled",
            "The order of the functions by Hessian trace survives a random rescaling of every "
            "network.",
            f"Hessian trace after rescaling, standardised targets: {order}",
            order_agreement(standard, "hessian_trace", "rescaled"),
            ORDERED,
            ours=True,
        ),
        claim(
            "follows the function, invariant",
            "Minimum sharpness, which no rescaling moves, orders the functions alike from every "
            "initialisation.",
            f"minimum sharpness, standardised targets: {order}",
            order_agreement(standard, "minimum_sharpness"),
            ORDERED,
            ours=True,
        ),
        claim(
            "sharper is not worse",
            "Among equally good fits, sharper ones are not clearly the worse ones.",
            "rank correlation of Hessian trace and test error among good fits, standardised",
            _per_family(standard, error_correlation),
            NOT_WORSE,
            note="A seed with fewer than four good fits has no such correlation.",
        ),
    ]


def _function_table(records: Sequence[Record], title: str) -> Table:
    names = ("hessian_trace", "hessian_trace_over_variance", "hessian_trace_standard_units",
             "hessian_eigenvalues", "minimum_sharpness", "adaptive_trace",
             "fisher_rao_norm")  # fmt: skip
    rows = []
    for objective, members in split(records, lambda r: str(r.config.settings["objective"])).items():
        rows.append(
            (
                objective,
                float(np.mean(column(members, "targets", "target_variance"))),
                float(np.mean(column(members, "targets", "test_error"))),
                *(_geometric(column(members, "measures", name)) for name in names),
            )
        )
    return Table(
        f"Functions, {title}",
        ("function", "Var(y)", "test error", *(name.replace("_", " ") for name in names)),
        tuple(rows),
        "Geometric means of the measures over seeds.",
    )


def _order_table(records: Sequence[Record], size: str) -> Table:
    raw, standard = families(records, "raw"), families(records, "standardised")
    first = next((f[0] for f in (*standard, *raw)), None)
    rows: list[tuple[str | float | None, ...]] = []
    for name in first.measured["measures"] if first else ():
        cells: list[float | None] = []
        for kind in (raw, standard):
            for part in ("measures", "rescaled"):
                found = order_agreement(kind, name, part)
                cells.append(float(found.mean()) if found.size else None)
        rows.append((name, *cells))
    return Table(
        f"Does the order of the functions come back, {size}",
        ("measure", "raw", "raw, rescaled", "standardised", "standardised, rescaled"),
        tuple(rows),
        "Rank correlation of one seed's order of the functions with the mean order of the other "
        "seeds; 1 means that the measure is decided by the function.",
    )


def _geometric(values: FloatArray) -> float | None:
    kept = values[np.isfinite(values) & (values > 0)]
    return math.exp(float(np.log(kept).mean())) if kept.size else None
