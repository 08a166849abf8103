"""From trained networks, constructions and the registry to tables and claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sympy

from invariance.measures._registry import all_measures
from invariance.papers.wen.flat_not_general._constructions import (
    ConstructionKind,
    batch_norm_limit,
    construct,
    exact_trace,
    isolable,
    minimum_trace,
    realise,
)
from invariance.papers.wen.flat_not_general._memoriser_or_generaliser import RankingRow, contest
from invariance.papers.wen.flat_not_general._problem import Problem, draw_problem
from invariance.papers.wen.flat_not_general._published_constants import (
    PublishedConstant,
    published_constants,
)
from invariance.papers.wen.flat_not_general._settings import number
from invariance.papers.wen.flat_not_general._sharpness import sharpness
from invariance.papers.wen.flat_not_general._verdicts import claims
from invariance.studies._study import Findings, Options, Record, Table
from invariance.studies.claims._correlations import correlation_rows

#: Left out of the quick version: half a minute each.
SLOW = ("volume_weakness", "volume_weakness_raw")


def analyse(records: Sequence[Record], options: Options) -> Findings:
    """Judge the study."""
    data = draw_problem(
        options.seed,
        dimension=int(number(options, "dimension", 30)),
        n_train=options.n_train[0],
        n_test=int(number(options, "n_test", 10_000)),
    )
    names = [name for name in all_measures() if not (options.quick and name in SLOW)]
    unseen = 25 if options.quick else 100
    without, with_bias = (
        contest(data, output_bias=b, n_unseen=unseen, names=names) for b in (False, True)
    )
    constants = published_constants(dimension=data.x_train.shape[1], n_train=len(data.x_train))
    cells = by_cell(records)
    return Findings(
        correlations=tuple(_correlations(records)),
        claims=tuple(claims(cells, without, with_bias, constants)),
        tables=(
            training_table(records),
            constructions_table(data),
            contest_table(without, with_bias),
            constants_table(constants),
        ),
        notes=_notes(options, data),
    )


def by_cell(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Sort records by the name of their cell."""
    cells: dict[str, list[Record]] = {}
    for record in records:
        cells.setdefault(str(record.config.settings["cell"]), []).append(record)
    return cells


def scenario(record: Record) -> str:
    """Return the first word of a cell's name: ``no bias``, ``bias``, ``layer`` or ``batch``."""
    return str(record.config.settings["cell"]).split(",")[0]


def _correlations(records: Sequence[Record]) -> list[dict[str, Any]]:
    if len(records) < 4:
        return []
    rows = correlation_rows(
        records,
        measures=("gauss_newton_trace", "minimum_sharpness", "path_norm", "parameter_norm"),
        targets=("test_accuracy",),
        given=("train_loss",),
        group=scenario,
        pooled=False,
        resamples=2_000,
    )
    return [row for row in rows if row["n"]]  # with a norm, some measures are not defined


def training_table(records: Sequence[Record]) -> Table:
    """Show where every cell ends: means over seeds."""
    rows: list[tuple[str | float | None, ...]] = []
    for cell, everyone in by_cell(records).items():
        members = [r for r in everyone if not r.facts.get("diverged")]
        lost = len(everyone) - len(members)
        accuracy = [float(r.measured["targets"]["test_accuracy"]) for r in members]

        def mean(kind: str, name: str, members: Sequence[Record] = members) -> float | None:
            values = [r.measured[kind][name] for r in members]
            known = values and not any(v is None for v in values)
            return float(np.mean(values)) if known else None

        rows.append(
            (
                cell,
                f"{len(members)}{f', {lost} diverged' if lost else ''}",
                float(np.mean(accuracy)) if accuracy else None,
                f"{min(accuracy):.3f} to {max(accuracy):.3f}" if accuracy else None,
                mean("targets", "train_loss"),
                mean("measures", "gauss_newton_trace"),
                mean("measures", "excess_sharpness"),
                mean("rescaled", "gauss_newton_trace"),
                mean("measures", "minimum_sharpness"),
            )
        )
    return Table(
        "Where training ends",
        ("cell", "seeds", "test accuracy", "range", "train loss", "sharpness",
         "over its lower bound", "sharpness, rescaled", "least over rescalings"),
        tuple(rows),
        "Sharpness is (2/n) sum |grad f|^2, the trace of the Hessian where the network "
        "interpolates. An output of exactly 0 counts as wrong.",
    )  # fmt: skip


def constructions_table(data: Problem) -> Table:
    """Show the networks in closed form beside the minimum that they attain."""
    rows: list[tuple[str | float | None, ...]] = []
    kinds: tuple[ConstructionKind, ...] = ("memoriser", "generaliser")
    for architecture, bias in (("plain", False), ("plain", True), ("layer", True), ("batch", True)):
        for kind in kinds:
            if kind == "memoriser" and not bias:
                isolated = sum(isolable(data.x_train, bias=False))
                text = f"none: a unit isolates {isolated} of {len(data.x_train)} points"
                rows.append(("plain, no bias", kind, text, None, None, None, None))
                continue
            made = construct(
                kind,
                data.x_train, data.y_train, architecture=architecture, bias=bias,
            )  # fmt: skip
            model = realise(made, data.x_train)
            found = sharpness(model, data.x_train, data.y_train)
            least = minimum_trace(architecture, features=data.x_train.shape[1] + bias)
            exact: object = "-"
            if architecture == "batch":
                share = (made.levels(data.x_train) > 0).double().mean(0)
                exact = f"tends to {batch_norm_limit(share):.4g}"
            else:
                exact = sympy.sstr(exact_trace(made, data.x_train))
            test = model(data.x_test)[:, 0]
            rows.append(
                (
                    architecture + ("" if bias else ", no bias"),
                    kind,
                    "exactly" if made.outputs_are(data.x_train, data.y_train) else "no",
                    found.trace,
                    str(exact),
                    f"{sympy.sstr(least)} = {float(least):.4f}",
                    float((test * data.y_test > 0).double().mean()),
                )
            )
    return Table(
        "Memorising and generalising networks in closed form",
        ("architecture", "network", "interpolates", "trace, float64", "trace, exact",
         "least possible", "test accuracy"),
        tuple(rows),
        "The lower bound of BatchNorm holds on complete training sets (the paper's Condition 1); "
        "on another one the generaliser may fall a little below it.",
    )  # fmt: skip


def contest_table(without: Sequence[RankingRow], with_bias: Sequence[RankingRow]) -> Table:
    """Show what every measure says of memoriser and generaliser."""
    rows = [
        (
            a.measure,
            "yes" if a.invariant else "no",
            a.memoriser,
            a.generaliser,
            a.verdict,
            b.memoriser,
            b.generaliser,
            b.verdict,
            b.least_slope,
        )
        for a, b in zip(without, with_bias, strict=True)
    ]
    order = ("wrong way", "depends", "cannot tell", "right way", "does not apply")
    rows.sort(key=lambda row: (order.index(row[7]), order.index(row[4]), row[0]))
    return Table(
        "Memoriser against generaliser, through every measure",
        ("measure", "invariant", "memoriser", "generaliser", "verdict",
         "memoriser, output bias", "generaliser, output bias", "verdict, output bias",
         "memoriser of least slope"),
        tuple(rows),
        "Both interpolate with the least trace; one is right on no unseen point, the other on "
        "all. 'invariant': under rescaling of single units; other verdicts can be reversed by a "
        "rescaling that changes neither function. Sharpness at the squared loss of f; weakness, "
        "margins and the Fisher matrix at the logits (-f, f). More is better for weakness and "
        "margins, less for the rest. The memoriser's units may be any 1 + k (x_i.x - d) that is 0 "
        "at all other points; here k = 1, in the last column the least k of each unit. 'depends': "
        "the two memorisers are not on one side of the generaliser.",
    )  # fmt: skip


def constants_table(constants: Sequence[PublishedConstant]) -> Table:
    """Show which printed constants give what they should."""
    rows = tuple(
        (
            one.where, one.printed, one.quantity, one.claimed, one.found,
            "holds" if one.survives else "fails", one.correct,
        )
        for one in constants
    )  # fmt: skip
    return Table(
        "Published constants, computed again",
        ("where", "printed", "quantity", "as claimed", "computed", "verdict", "what holds"),
        rows,
        "arXiv 2307.11007, version 2. None of the failures changes a conclusion of the paper.",
    )


def _notes(options: Options, data: Problem) -> tuple[str, ...]:
    notes = [
        "A correlation's group is an architecture: all algorithms and seeds together; it says "
        "as much about algorithms as about networks.",
        "Any interpolating network with simplified LayerNorm comes as near to the least sharpness "
        "as one likes by growing its first layer, which leaves its function alone: there, being "
        "flattest says nothing about the function.",
        "Explicit trace regularisation and label noise are as strong as the SAM run beside them to "
        "leading order; full-batch methods make a hundred times fewer steps in as many epochs.",
        "SAM, adaptive and worst-case sharpness climb the gradient of the loss, which is zero at "
        "both networks: what they would climb is round-off, so they do not apply. To second order "
        "the worst case is the top eigenvalue, which ranks the two the wrong way.",
        "Without normalisation, units can be rescaled with no change of function; 'least over "
        "rescalings' is the sharpness that is left when that is used up. Compare networks there: "
        "weight decay does not use it up, SAM does.",
        "Table 2 of the paper gives lr 0.005 then 0.003 and rho 0.1 then 1 for simplified "
        "BatchNorm (Figure 2a), and lr 0.01, rho 0.05 then 0.1 for the network with bias (Figure "
        "4b). Both schedules are run with the bias.",
    ]
    if options.quick:
        notes.append(
            f"Quick version: d = {data.x_train.shape[1]}, n = {len(data.x_train)}, fewer epochs; "
            f"without {' and '.join(SLOW)}."
        )
    return tuple(notes)
