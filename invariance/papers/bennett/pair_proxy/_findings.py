"""What is claimed of feasible pairs, with the regions fixed before any result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from invariance.papers.bennett._networks import COVARIATES, PUBLISHED_SMALL_SIZE, TARGETS
from invariance.papers.recipes import _figures as draw
from invariance.papers.recipes._claim_shapes import (
    NEGATIVE,
    NO_RANK,
    NO_RANK_WORDS,
    POSITIVE,
    TableRow,
    dependent_difference,
    fixed_claim,
    fixed_table,
    partial_claim,
    partial_table,
    rescaled_claim,
    rho_claim,
    sampled_claim,
)
from invariance.papers.recipes._measure_perceptrons import scale_of
from invariance.papers.recipes._subsets import (
    cell_with_task,
    draws_table,
    is_published,
    subset_table,
    width_table,
    with_measures,
)
from invariance.studies._study import Findings, Options, Record, Table
from invariance.studies.claims._claims import Claim
from invariance.studies.claims._correlations import correlation_rows, split

#: The paper's rank correlations with test accuracy over 100 networks of each data set.
PAPER: Mapping[str, Mapping[str, float]] = {
    "mnist": {"hessian_trace": -0.226, "parameter_norm": 0.019, "pair_proxy": 0.374},
    "fashion-mnist": {"hessian_trace": -0.241, "parameter_norm": -0.226, "pair_proxy": 0.384},
}


COUNTS = ("pair_proxy", "repaired_pair_proxy")

SHOWN = ("pair_proxy", "hessian_trace", "parameter_norm", "minimum_sharpness", "path_norm")


def completed(record: Record) -> Record:
    """Add the extension count, and pairs over all draws together, to a record's measures."""
    if "extension" not in record.measured:
        return record
    pairs = [values["pair_proxy"] for values in record.measured["draws"].values()]
    extension = record.measured["extension"]["log_value"]
    return with_measures(
        record,
        {
            "log_extension_count": extension if math.isfinite(extension) else math.nan,
            "pair_proxy_all_draws": float(np.sum(pairs)),
        },
    )


def analyse(records: Sequence[Record], options: Options) -> Findings:
    """Correlate every measure with test accuracy on each data set, and between subsets."""
    every = [completed(record) for record in records]
    main = [record for record in every if is_published(record)]
    others = [record for record in every if not is_published(record)]
    rows = correlation_rows(
        main,
        group=cell_with_task,
        targets=TARGETS,
        given=COVARIATES,
        pooled=False,
        seed=options.seed,
    )
    further = (
        correlation_rows(
            others,
            group=cell_with_task,
            given=COVARIATES,
            pooled=False,
            seed=options.seed,
            resamples=2_000,
        )
        if others
        else []
    )
    together = [*rows, *further]
    cells = split(main, cell_with_task)
    claims: list[Claim] = []
    tables: list[Table] = []
    for name, members in cells.items():
        groups = [
            group
            for group in dict.fromkeys(row["group"] for row in together)
            if group == name or group.startswith(f"{name}, ")
        ]
        claims += _claims(name, members, together, groups, options)
        tables += [
            subset_table(together, groups, SHOWN, f"Other training subsets of {name}"),
            draws_table(members, ("pair_proxy",), name),
            fixed_table(rows, name),
        ]
    tables += [
        _extension_table(cells),
        width_table(rows, list(cells), SHOWN[:3], (25, 100, 400)),
        partial_table(rows, list(cells), SHOWN),
    ]
    return Findings(
        correlations=tuple(together),
        claims=tuple(claims),
        tables=tuple(tables),
        notes=_notes(main, options),
    )


def _notes(main: Sequence[Record], options: Options) -> tuple[str, ...]:
    reached = sum(bool(record.facts["reached_target"]) for record in main)
    uncounted = sum(math.isnan(record.measured["measures"]["pair_proxy"]) for record in main)
    points, pool = scale_of(options, "extension_points"), scale_of(options, "extension_pool")
    return (
        f"{reached} of {len(main)} networks reached full train accuracy; {uncounted} have no pair "
        "count because their frozen features do not separate the training points (or a pair "
        "stayed undecided), and are left out of its correlations.",
        "Where all networks memorise, the generalization gap is one minus test accuracy and its "
        "correlations are the same with the other sign; the gap of losses is another target.",
        f"The extension count covers {points} points, not the proxy's {options.n_unseen}: it grows "
        f"like 11 to their number. It is estimated with a pool of {pool} nodes; each estimate has "
        "a standard error of its own, which weakens the correlation. It was not measured again "
        "after rescaling.",
        "The pair proxy counts what unseen points leave open. It needs unseen inputs, though no "
        "labels of theirs, and none of the other measures does: it has seen more.",
        "Networks of the same seeds differ between processors (3 of 100 with equal accuracy, and "
        "rho moves by about .1 at 100 networks): run on another one, these numbers come back "
        "within their intervals, not digit by digit.",
        "One training subset and one draw of unseen points lie behind each published number; how "
        "far rho moves between subsets and draws is in the tables.",
    )


def _claims(
    name: str,
    members: Sequence[Record],
    rows: Sequence[TableRow],
    groups: Sequence[str],
    options: Options,
) -> list[Claim]:
    settings = members[0].config.settings
    task = str(settings["task"])
    paper = PAPER.get(task, {}) if settings["n_train"] == PUBLISHED_SMALL_SIZE else {}
    timed = [with_measures(record, {"epochs": record.facts["epochs"]}) for record in members]
    claims = [
        rho_claim(
            rows,
            f"{measure_name} {name}",
            f"On {name}, {words}",
            measure=measure_name,
            group=name,
            region=region,
            paper=paper.get(measure_name),
            ours=measure_name == "log_extension_count",
        )
        for measure_name, words, region in (
            ("pair_proxy", "networks with more feasible pairs generalise better.", POSITIVE),
            ("hessian_trace", "networks with a smaller trace generalise better.", NEGATIVE),
            ("log_extension_count", "networks with more extensions generalise better.", POSITIVE),
        )
    ]
    for label, statement, rival, sign in (
        (
            "pair proxy beats trace",
            "the pair proxy predicts better than the trace, each in its own direction.",
            "hessian_trace",
            -1.0,
        ),
        (
            "pair proxy minus trace",
            "the pair proxy's correlation is above the trace's.",
            "hessian_trace",
            1.0,
        ),
        (
            "pair proxy minus norm",
            "the pair proxy's correlation is above the weight norm's.",
            "parameter_norm",
            1.0,
        ),
        (
            "pair proxy beats epochs",
            "the pair proxy predicts better than the number of epochs, each in its own direction.",
            "epochs",
            -1.0,
        ),
    ):
        gap, n = dependent_difference(
            timed, "pair_proxy", rival, signs=(1.0, sign), seed=options.seed
        )
        claims.append(
            sampled_claim(
                f"{label} {name}",
                f"On {name}, {statement}",
                f"rho(pair_proxy) {'+' if sign < 0 else '-'} rho({rival}), bootstrap over the "
                "same networks",
                gap,
                region=POSITIVE,
                n=n,
                paper=round(paper["pair_proxy"] - sign * paper[rival], 3)
                if rival in paper
                else None,
                ours=rival not in PAPER["mnist"],
            )
        )
    claims.append(
        partial_claim(
            rows,
            f"pair proxy, all held fixed {name}",
            f"On {name}, the pair proxy predicts beyond train loss, epochs and weight norm.",
            measure="pair_proxy",
            group=name,
            region=POSITIVE,
        )
    )
    if any("dead_units" in record.measured["measures"] for record in members):
        (given,) = correlation_rows(
            members,
            measures=("pair_proxy",),
            targets=("test_accuracy",),
            given=("dead_units",),
            seed=options.seed,
        )
        claims.append(
            partial_claim(
                [{**given, "group": name}],
                f"pair proxy, dead units held fixed {name}",
                f"On {name}, the pair proxy predicts beyond the number of dead units.",
                measure="pair_proxy",
                group=name,
                region=POSITIVE,
            )
        )
    if len(groups) > 2:
        claims.append(_subsets_claim(name, rows, groups))
    claims.append(
        rescaled_claim(
            rows,
            f"rescaled trace {name}",
            f"On {name}, the trace no longer ranks networks once each is rescaled at random "
            f"{NO_RANK_WORDS}.",
            measure="hessian_trace",
            group=name,
            region=NO_RANK,
        )
    )
    claims.append(
        fixed_claim(
            rows,
            f"weakness stays fixed {name}",
            f"On {name}, counts of pairs do not change when a network is rescaled.",
            measures=COUNTS,
            group=name,
        )
    )
    return claims


def _subsets_claim(name: str, rows: Sequence[TableRow], groups: Sequence[str]) -> Claim:
    others = [group for group in groups if group != name]
    *_, mean, low, high, equal = subset_table(rows, others, ("pair_proxy",)).rows[0]
    differ = "" if equal is None else f"; p = {float(equal):.2g} that all are alike"
    numbers = sum(
        row["n"]
        for row in rows
        if row["measure"] == "pair_proxy"
        and row["target"] == "test_accuracy"
        and row["group"] in others
    )
    claim = sampled_claim(
        f"pair proxy, other subsets {name}",
        f"On {name}, more feasible pairs go with better test accuracy on other training subsets.",
        f"random-effects mean of rho over {len(others)} training subsets",
        (mean, low, high),  # type: ignore[arg-type]
        region=POSITIVE,
        n=numbers,
        paper=None,
        note=f"the published subset is not among them{differ}",
        ours=True,
    )
    return replace(claim, clusters=len(others))


def _extension_table(cells: Mapping[str, Sequence[Record]]) -> Table:
    rows = []
    for name, members in cells.items():
        found = [record.measured["extension"] for record in members]
        logs = np.array([entry["log_value"] for entry in found])
        errors = np.array([entry["relative_stderr"] for entry in found], dtype=np.float64)
        logs, errors = logs[np.isfinite(logs)], errors[np.isfinite(errors)]
        points = found[0]["points"]
        rows.append(
            (
                name,
                points,
                float(logs.mean()) if logs.size else None,
                float(logs.std(ddof=1)) if logs.size > 1 else None,
                float(np.median(errors)) if errors.size else None,
                float(errors.max()) if errors.size else None,
                f"{sum(bool(entry['reliable']) for entry in found)} of {len(found)}",
            )
        )
    return Table(
        "Extension counts and how sure they are",
        (
            "networks", "points", "mean log count", "spread between networks",
            "median relative error", "largest", "reliable",
        ),
        tuple(rows),
        "Natural logarithms. The relative standard error of a count is about the standard error "
        "of its logarithm: compare it with the spread between networks.",
    )  # fmt: skip


def figures(
    records: Sequence[Record], findings: Findings, folder: Path
) -> Sequence[tuple[Path, str]]:
    """Draw the correlations on each data set, and the networks themselves."""
    made = []
    cells = split([completed(r) for r in records if is_published(r)], cell_with_task)
    for name, members in cells.items():
        rows = [
            row
            for row in findings.correlations
            if row["group"] == name and row["target"] == "test_accuracy"
        ]
        settings = members[0].config.settings
        published = settings["n_train"] == PUBLISHED_SMALL_SIZE
        paper = PAPER.get(str(settings["task"])) if published else None
        stem = name.replace(", ", "_").replace("=", "")
        forest = draw.forest(rows, f"{len(members)} networks, {name}", paper)
        made.append(
            (
                draw.save(forest, folder, f"correlations_{stem}.png"),
                f"Rank correlations with test accuracy on {name}, as trained and after a random "
                "rescaling of every network.",
            )
        )
    scatter = draw.scatter(
        cells,
        ("pair_proxy", "hessian_trace", "parameter_norm", "minimum_sharpness"),
        title="Every network" + ("; colours are data sets" if len(cells) > 1 else ""),
    )
    made.append((draw.save(scatter, folder, "networks.png"), "Every network."))
    return made
