"""What the networks on circles say: tables and claims of ``boundary-tightness``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from invariance.papers.recipes._claim_shapes import bounded_mean, sampled_claim
from invariance.stats._ranks import FloatArray
from invariance.studies._study import Findings, Options, Record, Table
from invariance.studies.claims._claims import Claim, Region
from invariance.studies.claims._correlations import column, correlation_rows, split

#: A monotone relation within networks counts from this mean rank correlation on. Fixed, like
#: every region here, before any result was seen.
RISES = Region(low=0.5)

#: Accuracy counts as perfect throughout if more than this share of the networks have it.
ALWAYS = Region(low=0.95)

VERSIONS = ("", "_matched_loss", "_matched_margin")
VERSION_WORDS = {
    "": "as trained",
    "_matched_loss": "at a common training loss",
    "_matched_margin": "at a common mean margin",
}


def analyse(records: Sequence[Record], options: Options) -> Findings:
    """Follow every network over the factors, and over the shares of resampled labels."""
    tight = [r for r in records if r.config.settings["label_share"] == 0]
    perfect = [r for r in tight if is_perfect(r)]
    noise = noise_records(records)
    rows: list[Mapping[str, Any]] = []
    for cell, members, targets in (
        ("tightness, perfect networks", perfect, ("tightness", "test_loss")),
        ("resampled labels", noise, ("label_share", "test_accuracy")),
    ):
        if len(members) >= 4:
            found = correlation_rows(
                members, targets=targets, given=("train_loss",), seed=options.seed, resamples=2_000
            )
            rows += [row | {"group": cell} for row in found]
    return Findings(
        correlations=tuple(rows),
        claims=tuple(_claims(tight, perfect, noise)),
        tables=(_tightness_table(tight), _within_table(perfect), _noise_table(noise)),
        notes=(
            "The data have no noise, so a factor and a split decide them. Networks of a split "
            "share their training points: intervals of claims treat splits, not networks, as "
            "independent.",
            "Claims about tightness follow each network (same initial weights, same angles) over "
            "the factors at which it makes no mistake on train and test points, and average its "
            "rank correlation. The correlation rows pool networks as if they were independent; "
            "their 'given train_loss' columns hold the training loss fixed instead of matching.",
            "A common loss or mean margin is reached by one temperature for each network, which "
            "multiplies all logits and changes no predicted class. It is put into the last layer; "
            "measures that are not invariant would differ with it in the first.",
            "The random rescaling is drawn for each network, so what remains of a trend in the "
            "Hessian trace after it is a trend larger than factors of 30 for a layer and 10 for "
            "a unit.",
        ),
    )


def is_perfect(record: Record) -> bool:
    """Whether a network makes no mistake on its training and test points."""
    return bool(record.facts["train_accuracy"] == 1.0 and record.facts["test_accuracy"] == 1.0)


def noise_records(records: Sequence[Record]) -> list[Record]:
    """Networks at the factor at which labels were resampled, those with none included."""
    factors = {
        r.config.settings["factor"] for r in records if r.config.settings["label_share"] != 0
    }
    return [r for r in records if r.config.settings["factor"] in factors]


def within_networks(
    records: Sequence[Record], axis: str, name: str, part: str = "measures"
) -> dict[int, float]:
    """Correlate a number with an axis within each network's seed, averaged by split."""
    found: dict[int, list[float]] = {}
    for members in split(records, lambda r: str(r.config.seed)).values():
        along = np.array([float(r.config.settings[axis]) for r in members])  # type: ignore[arg-type]
        values = (
            np.array([float(r.facts[name]) for r in members])
            if part == "facts"
            else column(members, part, name)
        )
        known = np.isfinite(values)
        if known.sum() < 3 or np.ptp(values[known]) == 0:
            continue
        rho = float(stats.spearmanr(along[known], values[known]).statistic)
        found.setdefault(int(members[0].config.settings["split"]), []).append(rho)  # type: ignore[arg-type]
    return {key: float(np.mean(rhos)) for key, rhos in sorted(found.items())}


def _trend(
    name: str,
    statement: str,
    records: Sequence[Record],
    measure: str,
    *,
    axis: str = "factor",
    part: str = "measures",
    note: str = "",
    ours: bool = False,
) -> Claim:
    rhos = np.array(list(within_networks(records, axis, measure, part).values()))
    words = {"factor": "tightness", "label_share": "the share of resampled labels"}[axis]
    after = " after random rescaling" if part == "rescaled" else ""
    return sampled_claim(
        name,
        statement,
        f"mean within-network rank correlation of {measure} and {words}{after} (t over splits)",
        bounded_mean(rhos, 0.0),
        region=RISES,
        n=len(rhos),
        paper=None,
        note=note,
        ours=ours,
    )


def _claims(
    tight: Sequence[Record], perfect: Sequence[Record], noise: Sequence[Record]
) -> list[Claim]:
    shares = {
        key: float(np.mean([is_perfect(r) for r in members]))
        for key, members in split(tight, lambda r: str(r.config.settings["split"])).items()
    }
    return [
        sampled_claim(
            "perfect",
            "However tight the boundary, networks separate train and test points perfectly.",
            "share of networks (all factors) without a mistake (t over splits)",
            bounded_mean(np.array(list(shares.values())), 0.0),
            region=ALWAYS,
            n=len(shares),
            paper=None,
        ),
        _trend(
            "tightness",
            "Among perfect networks, the tighter the boundary the sharper the network.",
            perfect,
            "hessian_trace",
        ),
        _trend(
            "confound",
            "Training loss rises with tightness too.",
            perfect,
            "train_loss",
            part="facts",
            note="This is the confound that the next two claims remove.",
            ours=True,
        ),
        _trend(
            "tightness at matched loss",
            "Sharpness rises with tightness at a common training loss.",
            perfect,
            "hessian_trace_matched_loss",
            ours=True,
        ),
        _trend(
            "tightness at matched margin",
            "Sharpness rises with tightness at a common mean margin.",
            perfect,
            "hessian_trace_matched_margin",
            ours=True,
        ),
        _trend(
            "tightness, invariant",
            "Minimum sharpness, which no rescaling moves, rises with tightness at a common loss.",
            perfect,
            "minimum_sharpness_matched_loss",
            ours=True,
        ),
        _trend(
            "tightness, SAM sharpness",
            "By SAM sharpness, too, tighter boundaries are sharper at a common training loss.",
            perfect,
            "sam_sharpness_matched_loss",
            ours=True,
        ),
        _trend(
            "tightness, rescaled",
            "The rise of the Hessian trace at a common loss survives a random rescaling of "
            "every network.",
            perfect,
            "hessian_trace_matched_loss",
            part="rescaled",
            ours=True,
        ),
        _trend(
            "random labels",
            "The more labels are resampled, the sharper the network.",
            noise,
            "hessian_trace",
            axis="label_share",
            note="Networks need not fit all resampled labels in the epochs they are given.",
        ),
    ]


def _geometric(values: FloatArray) -> float | None:
    kept = values[np.isfinite(values) & (values > 0)]
    return math.exp(float(np.log(kept).mean())) if kept.size else None


def mean_fact(records: Sequence[Record], name: str) -> float:
    """Return the mean of what training said of the networks."""
    return float(np.mean([float(r.facts[name]) for r in records]))


def _tightness_table(tight: Sequence[Record]) -> Table:
    names = ("hessian_trace", "minimum_sharpness")
    headings = [f"{n.replace('_', ' ')}, {VERSION_WORDS[v]}" for n in names for v in VERSIONS]
    rows = []
    for factor, members in split(tight, lambda r: str(r.config.settings["factor"])).items():
        good = [r for r in members if is_perfect(r)]
        rows.append(
            (
                float(factor),
                len(members),
                len(good),
                mean_fact(members, "test_accuracy"),
                _geometric(np.array([float(r.facts["train_loss"]) for r in good])),
                *(_geometric(column(good, "measures", n + v)) for n in names for v in VERSIONS),
            )
        )
    return Table(
        "Tightness",
        ("inner radius", "networks", "perfect", "test accuracy", "train loss", *headings),
        tuple(rows),
        "Losses and measures are geometric means over the perfect networks.",
    )


def _within_table(perfect: Sequence[Record]) -> Table:
    known = list(perfect[0].measured["measures"]) if perfect else []
    bases = [name for name in known if not name.endswith(VERSIONS[1:])]
    rows = []
    for base in bases:
        cells: list[float | None] = []
        for version in VERSIONS:
            for part in ("measures", "rescaled"):
                rhos = list(within_networks(perfect, "factor", base + version, part).values())
                cells.append(float(np.mean(rhos)) if rhos else None)
        rows.append((base, *cells))
    headings = [
        f"{VERSION_WORDS[v]}{', rescaled' if part else ''}" for v in VERSIONS for part in (0, 1)
    ]
    return Table(
        "Which measures rise with tightness",
        ("measure", *headings),
        tuple(rows),
        "Mean within-network rank correlation with the inner radius, perfect networks. "
        "'Rescaled': after a random rescaling that changes no output.",
    )


def _noise_table(noise: Sequence[Record]) -> Table:
    rows = []
    shares = split(noise, lambda r: str(r.config.settings["label_share"]))
    for share, members in sorted(shares.items(), key=lambda item: float(item[0])):
        rows.append(
            (
                float(share),
                len(members),
                mean_fact(members, "train_accuracy"),
                mean_fact(members, "test_accuracy"),
                _geometric(np.array([float(r.facts["train_loss"]) for r in members])),
                *(
                    _geometric(column(members, "measures", name))
                    for name in ("hessian_trace", "hessian_trace_matched_margin",
                                 "minimum_sharpness", "relative_flatness")
                ),
            )
        )  # fmt: skip
    return Table(
        "Resampled labels",
        ("share", "networks", "train accuracy", "test accuracy", "train loss", "hessian trace",
         "hessian trace at a common mean margin", "minimum sharpness", "relative flatness"),
        tuple(rows),
        "Geometric means of losses and measures. Test labels are clean.",
    )  # fmt: skip
