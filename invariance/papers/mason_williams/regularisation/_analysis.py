"""From records to findings: effects, claims, tables, correlations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from invariance.papers.mason_williams.regularisation._claims import (
    block_claims,
    claims_of,
    sharper_and_better,
)
from invariance.papers.mason_williams.regularisation._methods import METHODS
from invariance.papers.mason_williams.regularisation._reading import (
    FITTED,
    Block,
    block_of,
    fitted_pairs,
    method,
    reader,
)
from invariance.papers.mason_williams.regularisation._sharpness import MEASURES, diversity
from invariance.papers.mason_williams.regularisation._tables import (
    blocks_table,
    cells_table,
    measures_table,
    outcomes_table,
    simpson_table,
)
from invariance.stats import stratified_spearman
from invariance.stats._ranks import MINIMUM_POINTS
from invariance.studies._study import Findings, Options, Record, Table
from invariance.studies.claims._correlations import POOLED, column, correlation_rows
from invariance.studies.claims._paired_treatments import (
    Effect,
    Pair,
    Ratio,
    adjusted,
    effect,
    ratio_at_equal,
    share_of,
)

#: Outcome to the direction that is better.
OUTCOMES: Mapping[str, int] = {
    "test_accuracy": 1,
    "generalization_gap": -1,
    "calibration_error": -1,
    "corruption_accuracy": 1,
    "fgsm_accuracy": 1,
    "pgd_accuracy": 1,
    "disagreement": -1,
    "js_divergence": -1,
}

#: Outcomes that every measure is correlated with.
TARGETS = ("test_accuracy", "generalization_gap")


def analyse(records: Sequence[Record], options: Options) -> Findings:
    """Judge the records."""
    records = with_diversity(records)
    blocks: dict[Block, list[Record]] = {}
    for record in records:
        blocks.setdefault(block_of(record), []).append(record)
    correlations: list[Mapping[str, Any]] = []
    tables: list[Table] = []
    pairs: dict[str, list[Pair]] = {}
    by_block: dict[str, dict[str, list[Pair]]] = {}
    for block, members in blocks.items():
        found = fitted_pairs(members)
        for name, entries in found.items():
            pairs.setdefault(name, []).extend(entries)
        title = f"{block[0]}, {block[1]}, n = {block[2]:,}"
        by_block[title] = found
        tables.append(cells_table(title, members))
        if found:
            tables.append(outcomes_table(title, outcome_effects(found, options.seed)))
            before, after = (measure_effects(found, part, options.seed) for part in PARTS)
            tables.append(measures_table(title, before, after, equal_loss(found, options.seed)))
        rows = _correlations(members, options)
        tables.append(simpson_table(title, rows, within_cells(members)))
        correlations += [row | {"group": title} for row in rows if row["group"] == POOLED]
    claims = claims_of(pairs, seed=options.seed)
    if len(blocks) > 1:
        claims += block_claims(by_block, seed=options.seed)
        tables.insert(0, blocks_table(_by_block(by_block, options.seed)))
    return Findings(tuple(correlations), tuple(claims), tuple(tables), _notes(records, pairs))


def _by_block(
    pairs: Mapping[str, Mapping[str, Sequence[Pair]]], seed: int
) -> list[tuple[str, str, Effect, Ratio]]:
    accuracy = reader("targets", "test_accuracy")
    return [
        (
            name,
            block,
            effect(name, block, found[name], accuracy, seed=seed),
            share_of(found[name], sharper_and_better, seed=seed),
        )
        for name in METHODS
        for block, found in pairs.items()
        if name in found
    ]


PARTS = ("measures", "rescaled")


def outcome_effects(pairs: Mapping[str, Sequence[Pair]], seed: int = 0) -> list[Effect]:
    """Test every method on every outcome: one family."""
    return adjusted(
        [
            effect(name, outcome, entries, reader("targets", outcome), sign=sign, seed=seed)
            for name, entries in pairs.items()
            for outcome, sign in OUTCOMES.items()
        ]
    )


def measure_effects(pairs: Mapping[str, Sequence[Pair]], part: str, seed: int = 0) -> list[Effect]:
    """Test whether every method raises every measure: one family."""
    return adjusted(
        [
            effect(name, measure, entries, reader(part, measure), seed=seed)
            for name, entries in pairs.items()
            for measure in MEASURES
        ]
    )


def equal_loss(pairs: Mapping[str, Sequence[Pair]], seed: int = 0) -> dict[tuple[str, str], Ratio]:
    """Return each method's factor on each measure at equal train loss."""
    loss = reader("facts", "train_loss")
    return {
        (name, measure): ratio_at_equal(entries, reader("measures", measure), loss, seed=seed)
        for name, entries in pairs.items()
        for measure in MEASURES
    }


def with_diversity(records: Sequence[Record]) -> list[Record]:
    """Add to each network's targets how far it is from the others of its cell."""
    cells: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        if record.measured.get("predictions"):
            cells.setdefault(record.config.cell, []).append(i)
    out = list(records)
    for members in cells.values():
        found = diversity([records[i].measured["predictions"] for i in members])
        for i, extra in zip(members, found, strict=True):
            measured = dict(records[i].measured)
            measured["targets"] = {**measured["targets"], **extra}
            out[i] = replace(records[i], measured=measured)
    return out


def _correlations(members: Sequence[Record], options: Options) -> list[dict[str, Any]]:
    """Correlate within each method and over all, if there is anything to correlate."""
    known = {
        name
        for name in TARGETS
        if np.isfinite(column(members, "targets", name)).sum() >= MINIMUM_POINTS
    }
    if not known:
        return []
    return correlation_rows(
        members,
        targets=[name for name in TARGETS if name in known],
        given=("train_loss",),
        group=method,
        seed=options.seed,
        resamples=1_000 if options.quick else 4_000,
    )


def within_cells(members: Sequence[Record]) -> dict[tuple[str, str], float | None]:
    """Correlate every measure with every target within cells, pooled over cells."""
    found: dict[tuple[str, str], float | None] = {}
    for measure in MEASURES:
        for target in TARGETS:
            x, y = column(members, "measures", measure), column(members, "targets", target)
            known = np.isfinite(x) & np.isfinite(y)
            if known.sum() < MINIMUM_POINTS:
                found[measure, target] = None
                continue
            cells = [r.config.cell for r, keep in zip(members, known, strict=True) if keep]
            result = stratified_spearman(x[known], y[known], cells, resamples=0)
            found[measure, target] = result.within.value
    return found


def _notes(records: Sequence[Record], pairs: Mapping[str, Sequence[Pair]]) -> tuple[str, ...]:
    notes = [
        "Pairs share data set, architecture, batch size, learning rate and seed. Tests are "
        "two-sided, with seeds for units (Student's t over their sums of signed ranks), adjusted "
        "by Benjamini and Yekutieli within each table; "
        "intervals are a bootstrap over seeds, and there is none with fewer than six. All "
        "networks of a block see the same training subset: nothing here generalises over "
        "training sets.",
        "Rescaled: each network by itself, every layer by a factor in [1/30, 30] and every unit "
        "by one in [1/10, 10], log-uniform; its function does not change. What is sharper before "
        "and not after was a statement about coordinates.",
        "Equal train loss: the intercept of log measure on log train loss over pairs. "
        "Regularisation raises the train loss, and the Hessian of the cross-entropy follows it. "
        "A dagger marks a value beyond the data: all pairs have a train loss on one side.",
        f"Comparisons and claims are about minima: they take the pairs whose untreated network "
        f"has a train accuracy of {FITTED:.0%} or more after its fixed number of epochs. The "
        "first table of each block says where every cell ends, those at the small rate included.",
    ]
    diverged = sum(bool(record.facts.get("diverged")) for record in records)
    if diverged:
        notes.append(f"{diverged} networks diverged and are left out of every comparison.")
    if not pairs:
        notes.append("No untreated network found a minimum: nothing could be compared.")
    return (*notes, *_refusals(records), *_estimates(records))


def _refusals(records: Sequence[Record]) -> list[str]:
    found: dict[str, set[str]] = {}
    for record in records:
        for name, reason in (record.measured.get("refused") or {}).items():
            found.setdefault(f"{name}: {reason}", set()).add(block_of(record)[1])
    return [
        f"Not measured ({', '.join(sorted(where))}): {entry}"
        for entry, where in sorted(found.items())
    ]


def _estimates(records: Sequence[Record]) -> list[str]:
    worst: dict[tuple[str, str], float] = {}
    for record in records:
        for name, error in (record.measured.get("estimated") or {}).items():
            key = (block_of(record)[1], name)
            worst[key] = max(worst.get(key, 0.0), float(error))
    return [
        f"Estimated from Hessian-vector products, not exact ({where}): {name}, with a relative "
        f"standard error of at most {error:.2g}."
        for (where, name), error in sorted(worst.items())
    ]
