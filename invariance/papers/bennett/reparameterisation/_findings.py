"""What is claimed of moved networks, with the regions fixed before any result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from invariance.papers.bennett._networks import COVARIATES
from invariance.papers.bennett.reparameterisation._axes import AXES, FACTORS, WIDE_NAME, kind_of
from invariance.papers.recipes._claim_shapes import (
    counted_claim,
    fixed_claim,
    fixed_table,
    mean_interval,
    sampled_claim,
)
from invariance.papers.recipes._profile import agreement, unpack, with_agreement
from invariance.studies._study import Findings, Options, Record, Table
from invariance.studies.claims._claims import Claim, Region
from invariance.studies.claims._correlations import correlation_rows, split

#: The paper's traces, a Hutchinson estimate with 50 probes, at beta = 1 and 20.
PAPER_INFLATION = 6_525.9 / 66.1


PUBLISHED_SIZE = 6_000

#: Fixed before any result was seen.
INFLATED = Region(low=50.0)

ON_THE_LAW = Region(high=1e-9)

NOTHING = Region(-0.5, 0.5)


def analyse(records: Sequence[Record], options: Options) -> Findings:
    """Compare every network with its moved copies."""
    cells = {name: with_agreement(members) for name, members in split(records, kind_of).items()}
    every = [record for members in cells.values() for record in members]
    rows = correlation_rows(
        every, group=kind_of, given=COVARIATES, pooled=False, seed=options.seed, resamples=2_000
    )
    rows = [row for row in rows if row["n"]]  # pairs are not counted on the wide networks
    claims = [claim for name, members in cells.items() for claim in claims_of(name, members, rows)]
    tables = [_table(name, axis, members) for name, members in cells.items() for axis in AXES]
    tables += [fixed_table(rows, name) for name in cells]
    return Findings(
        correlations=tuple(rows),
        claims=tuple(claims),
        tables=tuple(tables),
        notes=(
            *_saturation_notes(records),
            "Along T_beta the last hidden features do not change at all, so that a count over "
            "them could not change either; T_gamma scales them, and the random rescaling every "
            "unit by its own factor.",
            "A factor that is not a power of two changes the outputs in their last bits; 'labels "
            "changed' and 'bits changed' count what such round-off moves, over all points.",
            "Traces are exact. The law is read off the untransformed network's blocks, and the "
            "moved networks are measured anew.",
            "The largest factor of the published sweep leaves the trace finite; the law says "
            "that it has no upper bound, and a lower one which is the minimum over the axis.",
        ),
    )


def _saturation_notes(records: Sequence[Record]) -> tuple[str, ...]:
    found = [r.measured["wide_pairs"] for r in records if "wide_pairs" in r.measured]
    if not found:
        return ("Pairs were counted on the narrow networks alone.",)
    feasible, pairs = (sum(entry[key] for entry in found) for key in ("feasible", "pairs"))
    return (
        f"Of the wide networks' pairs {feasible} of {pairs} are feasible ({len(found)} networks, a "
        "few unseen points each): with so many last features the count is saturated or nearly so, "
        "cannot rank networks, and its constancy would be no evidence. The narrow networks are "
        "here for that reason.",
    )


def claims_of(
    name: str, members: Sequence[Record], rows: Sequence[Mapping[str, Any]]
) -> list[Claim]:
    """Judge one kind of network along both axes."""
    settings = members[0].config.settings
    wide = name.startswith(WIDE_NAME)
    published = (
        wide and settings["task"] == "mnist" and settings["n_train"] == PUBLISHED_SIZE
    )  # fmt: skip
    points = [point for r in members for axis in AXES for point in r.measured["axes"][axis]]
    n = len(members)
    labels = sum(point["labels_changed"] for point in points)
    bits = max(
        abs(count - own)
        for record in members
        for axis in AXES
        for point in record.measured["axes"][axis]
        for count, own in zip(point["patterns"], _own_patterns(record), strict=True)
    )
    error = max(abs(point["hessian_trace"] / point["law"] - 1) for point in points)
    accuracy = max(
        abs(point["test_accuracy"] - record.measured["targets"]["test_accuracy"])
        for record in members
        for axis in AXES
        for point in record.measured["axes"][axis]
    )
    where = f"{name}: {n} networks, both axes, factors 1 to {max(FACTORS):g}"
    claims = [
        counted_claim(
            f"labels {name}",
            f"Scaling layers against each other changes no prediction ({name}).",
            f"labels changed, test and unseen points ({where})",
            float(labels),
            region=NOTHING,
            n=n,
            basis="theorem",
            paper=0.0 if published else None,
        ),
        counted_claim(
            f"accuracy {name}",
            f"It leaves test accuracy alone ({name}).",
            f"largest change of test accuracy ({where})",
            accuracy,
            region=Region(-1e-12, 1e-12),
            n=n,
            basis="theorem",
            paper=0.0 if published else None,
        ),
        counted_claim(
            f"patterns {name}",
            f"It leaves the numbers of patterns of both hidden layers alone ({name}).",
            f"largest change of a number of patterns ({where})",
            float(bits),
            region=NOTHING,
            n=n,
            basis="theorem",
            paper=0.0 if published else None,
        ),
        counted_claim(
            f"law {name}",
            f"The Hessian trace follows A / a^2 + C + B a^2 ({name}).",
            f"largest relative difference of measured and predicted traces ({where})",
            error,
            region=ON_THE_LAW,
            n=n,
            basis="theorem",
            ours=True,
        ),
    ]
    for axis in AXES:
        found = mean_interval(np.array([_inflation(r, axis) for r in members]), logs=True)
        main = axis == "beta" and wide
        claims.append(
            sampled_claim(
                f"inflation {axis} {name}",
                f"Along T_{axis} the trace grows more than fifty-fold up to factor {FACTORS[-1]:g} "
                f"({name}).",
                f"trace at {FACTORS[-1]:g} over trace at 1, geometric mean over networks ({name})",
                found,
                region=INFLATED,
                n=n,
                paper=PAPER_INFLATION if published and main else None,
                ours=axis != "beta",
            )
        )
    shift = _agreement_shift(members)
    claims.append(
        counted_claim(
            f"agreement {name}",
            f"It leaves ensemble agreement alone ({name}).",
            f"largest change of a network's agreement ({where})",
            shift,
            region=Region(-1e-12, 1e-12),
            n=n,
            basis="theorem",
            paper=0.0 if published else None,
        )
    )
    if not wide:
        changes = [abs(point["pairs_changed"]) for point in points]
        claims.append(
            counted_claim(
                f"pairs {name}",
                f"It leaves the pair proxy alone ({name}).",
                f"largest change of the number of feasible pairs ({where})",
                float(np.max(changes)),
                region=NOTHING,
                n=n,
                basis="theorem",
                ours=True,
            )
        )
    fixed = ("activation_patterns_1", "activation_patterns_2")
    claims.append(
        fixed_claim(
            rows,
            f"random rescaling {name}",
            f"Weakness does not change under random factors for every unit either ({name}).",
            measures=fixed if wide else (*fixed, "pair_proxy"),
            group=name,
            ours=True,
        )
    )
    return claims


def _own_patterns(record: Record) -> tuple[float, float]:
    values = record.measured["measures"]
    return values["activation_patterns_1"], values["activation_patterns_2"]


def _inflation(record: Record, axis: str) -> float:
    points = record.measured["axes"][axis]
    return float(points[-1]["hessian_trace"] / points[0]["hessian_trace"])


def _agreement_shift(members: Sequence[Record]) -> float | None:
    """Return the largest change of agreement when all networks are moved alike."""
    if len(members) < 2:
        return None
    wrong = np.stack([unpack(r.measured["mistakes"], r.measured["points"]) for r in members])
    before = agreement(wrong)
    worst = 0.0
    for axis in AXES:
        for place in range(len(FACTORS)):
            moved = wrong.copy()
            for row, record in zip(moved, members, strict=True):
                row[list(record.measured["axes"][axis][place]["moved"])] ^= True
            change = np.abs(agreement(moved) - before)
            worst = max(worst, float(np.nanmax(change, initial=0.0)))
    return worst


def _table(name: str, axis: str, members: Sequence[Record]) -> Table:
    rows = []
    for place, factor in enumerate(FACTORS):
        points = [record.measured["axes"][axis][place] for record in members]
        rows.append(
            (
                factor,
                float(np.mean([point["hessian_trace"] for point in points])),
                float(np.mean([point["law"] for point in points])),
                100 * float(np.mean([point["test_accuracy"] for point in points])),
                float(np.mean([point["patterns"][0] for point in points])),
                float(np.mean([point["patterns"][-1] for point in points])),
                sum(point["labels_changed"] for point in points),
                sum(point["bits_changed"] for point in points),
            )
        )
    first = AXES[axis] + 1
    return Table(
        f"T_{axis} of the {name} networks",
        (
            "factor", "trace", "law", "test %", "patterns, layer 1", "patterns, layer 2",
            "labels changed", "pattern bits changed",
        ),
        tuple(rows),
        f"Means over {len(members)} networks, changes summed; layer {first} times the factor, "
        f"layer {first + 1} divided by it.",
    )  # fmt: skip
