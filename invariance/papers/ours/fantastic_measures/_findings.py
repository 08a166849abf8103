"""What is claimed of famous measures; the regions stand in ``papers/regions``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from invariance.papers._declared import declared
from invariance.papers.recipes import _figures as draw
from invariance.papers.recipes._claim_shapes import rescaled_claim, rho_claim
from invariance.stats import granulated_kendall, sign_error
from invariance.studies._study import Findings, Options, Record, Table
from invariance.studies.claims._claims import Claim
from invariance.studies.claims._correlations import column, correlation_rows, split

TARGET = "generalization_gap"

#: The measures that are judged: those with a name outside this package, and the sign that
#: their correlation with the gap is said to have.
FAMOUS: Mapping[str, int] = {
    "hessian_trace": 1,
    "hessian_eigenvalues": 1,
    "sam_sharpness": 1,
    "relative_flatness": 1,
    "adaptive_sharpness": 1,
    "fisher_rao_norm": 1,
    "minimum_sharpness": 1,
    "parameter_norm": 1,
    "spectral_norm_product": 1,
    "path_norm": 1,
    "pair_proxy": -1,
}

#: Where a measure is taken: part of a record, and words.
PLACES = {"measures": "as trained", "rescaled": "after random rescaling", "gauge": "gauge-fixed"}

#: Settings that are moved one at a time.
ALONG = ("width", "depth", "lr", "batch_size", "weight_decay", "optimizer")


def task_of(record: Record) -> str:
    """Return the name of a network's data set."""
    return str(record.config.settings["task"])


def with_gauge(record: Record) -> Record:
    """Return a record whose rescaled values are the gauge-fixed ones."""
    return replace(record, measured={**record.measured, "rescaled": record.measured["gauge"]})


def analyse(records: Sequence[Record], options: Options) -> Findings:
    """Correlate every measure with the gap, three times."""
    kept = [record for record in records if record.measured["measures"]]
    known = [
        name
        for name in kept[0].measured["measures"]
        if np.isfinite(column(kept, "measures", name)).sum() >= len(kept) / 2
    ]
    common: dict[str, Any] = {
        "measures": known,
        "targets": (TARGET,),
        "given": ("train_loss",),
        "group": task_of,
        "pooled": False,
        "seed": options.seed,
        "resamples": 2_000,
    }
    rows = correlation_rows(kept, **common)
    gauge = correlation_rows([with_gauge(record) for record in kept], **common)
    claims: list[Claim] = []
    tables: list[Table] = []
    for task, members in split(kept, task_of).items():
        claims += _claims(task, rows, gauge, known)
        tables.append(_table(task, members, rows, gauge, known))
    lost = len(records) - len(kept)
    late = sum(not record.facts["reached_target"] for record in kept)
    return Findings(
        correlations=tuple(rows),
        claims=tuple(claims),
        tables=tuple(tables),
        notes=(
            f"{lost} of {len(records)} networks diverged and are left out; {late} of the others "
            "did not fit all training points in the epochs they were given, and are kept.",
            "Gauge-fixed: every unit's incoming and outgoing norm balanced, a unique "
            "representative of all networks that the rescaling can reach.",
            "Granulated Kendall moves along one hyperparameter with the others fixed (Jiang et "
            "al. 2020); the sign error is the worst environment's (Dziugaite et al. 2020). "
            "Replicates differ by seed alone and are paired by it.",
        ),
    )


def _claims(
    task: str,
    rows: Sequence[Mapping[str, Any]],
    gauge: Sequence[Mapping[str, Any]],
    known: Sequence[str],
) -> list[Claim]:
    regions = declared("fantastic-measures")
    found = []
    for name, sign in FAMOUS.items():
        if name not in known:
            continue
        more = "larger" if sign > 0 else "smaller"
        words = name.replace("_", " ")
        region = regions[name]
        found.append(
            rho_claim(
                rows,
                f"{name} {task}",
                f"On {task}, networks with a larger generalization gap have a {more} {words}.",
                measure=name,
                group=task,
                region=region,
                paper=None,
                target=TARGET,
            )
        )
        versions = (
            (rows, "rescaled", "after random rescaling"),
            (gauge, "gauge-fixed", "at the gauge-fixed networks"),
        )
        for which, label, after in versions:
            claim = rescaled_claim(
                which,
                f"{name} {task}, {label}",
                f"On {task}, they have so {after}, too ({words}).",
                measure=name,
                group=task,
                region=region,
                target=TARGET,
            )
            found.append(replace(claim, quantity=f"rho of {name} and {TARGET} {after} ({task})"))
    return found


def _table(
    task: str,
    members: Sequence[Record],
    rows: Sequence[Mapping[str, Any]],
    gauge: Sequence[Mapping[str, Any]],
    known: Sequence[str],
) -> Table:
    goal = column(members, "targets", TARGET)
    settings: dict[str, list[Hashable]] = {
        name: [record.config.settings[name] for record in members] for name in ALONG
    }
    settings["seed"] = [record.config.seed for record in members]
    moved = [name for name in ALONG if len(set(settings[name])) > 1]
    own, fixed = (
        {row["measure"]: row for row in found if row["group"] == task} for found in (rows, gauge)
    )
    lines: list[tuple[str | float | int | None, ...]] = []
    for name in known:
        taus: list[float | None] = []
        worst: list[float | None] = []
        for part in PLACES:
            values = column(members, part, name)
            usable = np.isfinite(values) & np.isfinite(goal)
            some = {key: [v for v, u in zip(s, usable, strict=True) if u]
                    for key, s in settings.items()}  # fmt: skip
            if usable.sum() < 4:
                taus.append(None)
                worst.append(None)
                continue
            pair = values[usable], goal[usable]
            taus.append(granulated_kendall(*pair, some, along=moved, resamples=50).mean)
            worst.append(sign_error(*pair, some, along=moved).robust)
        row, other = own[name], fixed[name]
        rho = (row["rho"], row["rho_after_rescaling"], other["rho_after_rescaling"])
        lines.append((name, row["n"], *rho, *taus, *worst))
    lines.sort(key=lambda line: -abs(float(line[3] or 0.0)))
    headings = [f"{kind}, {word}" for kind in ("rho", "tau", "sign error")
                for word in ("trained", "rescaled", "gauge-fixed")]  # fmt: skip
    return Table(
        f"Every measure on {task}: as trained, rescaled, gauge-fixed",
        ("measure", "networks", *headings),
        tuple(lines),
        f"Target: {TARGET.replace('_', ' ')}. rho is Spearman's, tau the mean granulated Kendall, "
        "sign error the worst environment's share of pairs that move against the gap: a half is "
        "a coin's, and 1 minus it where a smaller value is the warning. Sorted by what is left of "
        "rho after rescaling.",
    )


def figures(
    records: Sequence[Record], findings: Findings, folder: Path
) -> Sequence[tuple[Path, str]]:
    """Draw each measure's correlation as trained, beside what is left after rescaling."""
    made = []
    for task in dict.fromkeys(row["group"] for row in findings.correlations):
        rows = [row for row in findings.correlations if row["group"] == task]
        path = draw.save(draw.forest(rows, f"Hyperparameters on {task}"), folder, f"{task}.png")
        made.append(
            (path, f"Rank correlations with the generalization gap on {task}, as trained and "
                   "after a random rescaling of every network.")
        )  # fmt: skip
    return made
