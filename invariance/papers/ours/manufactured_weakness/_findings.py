"""What is claimed of manufactured weakness; the regions stand in ``papers/regions``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from invariance.papers._declared import declared
from invariance.papers.ours.manufactured_weakness._units import FAINT, MOST
from invariance.papers.recipes import _figures as draw
from invariance.papers.recipes._claim_shapes import (
    counted_claim,
    dependent_difference,
    mean_interval,
    rescaled_claim,
    rho_claim,
    sampled_claim,
)
from invariance.studies._study import Findings, Options, Record, Table
from invariance.studies.claims._claims import Claim
from invariance.studies.claims._correlations import column, correlation_rows

STUDY_NAME = "manufactured-weakness"

#: The paper's correlation of the pair proxy over its 100 networks.
PAPER = 0.374

COUNTS = ("pair_proxy", "repaired_pair_proxy", "margin_pair_proxy")

VERSIONS = {"": "as trained", "_silent": "silent units", "_faint": "faint units"}


def analyse(records: Sequence[Record], options: Options) -> Findings:
    """Correlate every version of every count with test accuracy."""
    rows = correlation_rows(
        records, targets=("test_accuracy",), given=("train_loss", "epochs"), seed=options.seed
    )
    units = np.array([float(record.measured["units"]) for record in records])
    return Findings(
        correlations=tuple(rows),
        claims=tuple(_claims(records, rows, units, options)),
        tables=(_table(records, rows), _units_table(records, units)),
        notes=(
            f"Each network is given 0 to {MOST} units, a number drawn from its own seed, in its "
            "last hidden layer, with random incoming weights; outgoing weights are 0 (silent), or "
            f"{FAINT:g} of the size of the others (faint), with the same incoming weights.",
            "The count with a margin depends on the function alone, so silent units leave it by "
            "theorem; it is measured again with faint units, whose function differs.",
            "Networks without a count (features that do not separate the training points, an "
            "undecided pair) are left out of its correlations.",
        ),
    )


def _claims(
    records: Sequence[Record],
    rows: Sequence[dict[str, object]],
    units: np.ndarray,
    options: Options,
) -> list[Claim]:
    regions = declared(STUDY_NAME)
    n = len(records)

    def changed(version: str) -> float:
        return float(sum(record.measured["labels_changed"][version] for record in records))

    def fall(name: str, statement: str, before: str, after: str, sign: float = 1.0) -> Claim:
        found, known = dependent_difference(
            records, before, after, signs=(sign, sign), seed=options.seed
        )
        return sampled_claim(
            name,
            statement,
            f"rho of {before} minus rho of {after}, bootstrap over the same networks",
            found,
            region=regions[name],
            n=known,
            paper=None,
            ours=True,
        )

    def change(before: str, after: str) -> float:
        moved = column(records, "measures", after) - column(records, "measures", before)
        return float(np.nanmax(np.abs(moved))) if np.isfinite(moved).any() else math.nan

    gained = column(records, "measures", "pair_proxy_silent") - column(
        records, "measures", "pair_proxy"
    )
    known = np.isfinite(gained) & (units > 0)
    moved = max(record.measured["logits_moved"]["faint"] for record in records)
    return [
        counted_claim(
            "silent labels",
            "Silent units change no label.",
            "labels of test points that silent units change, all networks",
            changed("silent"),
            region=regions["silent labels"],
            n=n,
            basis="theorem",
            ours=True,
        ),
        counted_claim(
            "faint labels",
            "Faint units change no label.",
            "labels of test points that faint units change, all networks",
            changed("faint"),
            region=regions["faint labels"],
            n=n,
            ours=True,
            note=f"no logit moves by more than {moved:.1g}",
        ),
        rho_claim(
            rows,
            "pair proxy",
            "As trained, networks with more feasible pairs generalise better.",
            measure="pair_proxy",
            group="all",
            region=regions["pair proxy"],
            paper=PAPER if options.n_train == (250,) else None,
        ),
        rho_claim(
            rows,
            "margin count",
            "As trained, networks with more pairs feasible with a margin generalise better.",
            measure="margin_pair_proxy",
            group="all",
            region=regions["margin count"],
            paper=None,
            ours=True,
        ),
        sampled_claim(
            "pairs gained",
            "Silent units add feasible pairs.",
            "pairs gained, mean over networks that were given units",
            mean_interval(gained[known]),
            region=regions["pairs gained"],
            n=int(known.sum()),
            paper=None,
            ours=True,
        ),
        fall(
            "silent fall",
            "Silent units lower the pair proxy's correlation.",
            "pair_proxy",
            "pair_proxy_silent",
        ),
        fall(
            "faint fall",
            "Faint units lower the pair proxy's correlation.",
            "pair_proxy",
            "pair_proxy_faint",
        ),
        counted_claim(
            "repaired silent",
            "Silent units leave the count over used features alone.",
            "largest change of the count over used features, all networks",
            change("repaired_pair_proxy", "repaired_pair_proxy_silent"),
            region=regions["repaired silent"],
            n=n,
            basis="theorem",
            ours=True,
        ),
        fall(
            "repaired faint fall",
            "Faint units lower the correlation of the count over used features.",
            "repaired_pair_proxy",
            "repaired_pair_proxy_faint",
        ),
        counted_claim(
            "margin faint",
            "Faint units leave the count with a margin alone.",
            "largest change of the count with a margin, in pairs, all networks",
            change("margin_pair_proxy", "margin_pair_proxy_faint"),
            region=regions["margin faint"],
            n=n,
            basis="theorem",
            ours=True,
            note="a margin moves by no more than a constant times what the logits move",
        ),
        rescaled_claim(
            rows,
            "trace rescaled",
            "The trace no longer ranks networks once each is rescaled at random (|rho| < 0.2).",
            measure="hessian_trace",
            group="all",
            region=regions["trace rescaled"],
            ours=True,
        ),
    ]


def _table(records: Sequence[Record], rows: Sequence[dict[str, object]]) -> Table:
    found = {str(row["measure"]): row for row in rows}
    lines: list[tuple[str | float | int | None, ...]] = []
    for name in COUNTS:
        for suffix, words in VERSIONS.items():
            row = found.get(name + suffix)
            if row is None:
                continue
            values = column(records, "measures", name + suffix)
            mean = float(np.nanmean(values)) if np.isfinite(values).any() else None
            ends = (row["rho"], row["ci_low"], row["ci_high"])
            lines.append((name, words, mean, *ends, row["n"]))  # type: ignore[arg-type]
    trace = found["hessian_trace"]
    lines += [
        ("hessian_trace", "as trained", None, trace["rho"], trace["ci_low"], trace["ci_high"], trace["n"]),  # type: ignore[list-item]  # noqa: E501
        ("hessian_trace", "rescaled", None, trace["rho_after_rescaling"], trace["ci_low_after"], trace["ci_high_after"], trace["n"]),  # type: ignore[list-item]  # noqa: E501
    ]  # fmt: skip
    return Table(
        "Correlation with test accuracy, before and after nothing has changed",
        ("measure", "networks", "mean", "rho", "low", "high", "n"),
        tuple(lines),
        "Every line is about the same functions.",
    )


def _units_table(records: Sequence[Record], units: np.ndarray) -> Table:
    lines: list[tuple[str | float | int | None, ...]] = []
    for count in range(MOST + 1):
        chosen = [r for r, own in zip(records, units, strict=True) if own == count]
        if not chosen:
            continue
        means = []
        for name in ("pair_proxy", "pair_proxy_silent", "pair_proxy_faint",
                     "repaired_pair_proxy_faint", "margin_pair_proxy",
                     "margin_pair_proxy_faint"):  # fmt: skip
            values = column(chosen, "measures", name)
            means.append(float(np.nanmean(values)) if np.isfinite(values).any() else None)
        lines.append((count, len(chosen), *means))
    return Table(
        "What units that say nothing do to the counts",
        (
            "units given", "networks", "pairs", "pairs, silent", "pairs, faint",
            "used pairs, faint", "with margin", "with margin, faint",
        ),
        tuple(lines),
        "Means over networks.",
    )  # fmt: skip


def figures(
    records: Sequence[Record], findings: Findings, folder: Path
) -> Sequence[tuple[Path, str]]:
    """Draw counts against test accuracy, coloured by the units that were given."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.4), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True)
    accuracy = column(records, "targets", "test_accuracy")
    units = np.array([record.measured["units"] for record in records])
    rows = {str(row["measure"]): row for row in findings.correlations}
    names = ("pair_proxy", "pair_proxy_silent", "pair_proxy_faint",
             "margin_pair_proxy", "repaired_pair_proxy_faint",
             "margin_pair_proxy_faint")  # fmt: skip
    for axes, name in zip(panels.flat, names, strict=True):
        base = next(suffix for suffix in ("_silent", "_faint", "") if name.endswith(suffix))
        dots = axes.scatter(
            column(records, "measures", name), 100 * accuracy, c=units, s=9, cmap="viridis"
        )
        rho = rows[name]["rho"] if name in rows else None
        words = {"pair_proxy": "pairs", "repaired_pair_proxy": "pairs of used features",
                 "margin_pair_proxy": "pairs with a margin"}[name.removesuffix(base)]  # fmt: skip
        shown = "" if rho is None or not math.isfinite(rho) else f", rho {rho:+.2f}"
        axes.set_title(f"{words}, {VERSIONS[base]}{shown}", fontsize=9)
        draw.plain(axes)
    for line in panels:
        line[0].set_ylabel("test accuracy, %")
    figure.colorbar(dots, ax=panels, label="units given", ticks=range(MOST + 1))
    return [
        (
            draw.save(figure, folder, "manufactured.png"),
            "The same functions six times: counts as trained, with silent units and with faint "
            "ones, against test accuracy. Colours are the number of units that were given.",
        )
    ]
