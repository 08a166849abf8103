"""Does the advantage of one batch size over another vanish as data grows, and flatness with it?"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from invariance.data import Task
from invariance.stats import granulated_kendall, sign_error
from invariance.studies.claims import Claim, Region
from invariance.studies.config import Config, Setting
from invariance.studies.correlations import column, correlation_rows, split
from invariance.studies.recipes import figures as draw
from invariance.studies.recipes.judging import (
    NEGATIVE,
    POSITIVE,
    fixed_table,
    mean_difference,
    mean_ratio,
    partial_table,
    rescaled_claim,
    rho_claim,
    row_of,
    sampled_claim,
)
from invariance.studies.recipes.measuring import (
    Values,
    curvature_values,
    describe_task,
    measure_one,
    measured_task,
    norm_values,
    pool_of,
    whole,
)
from invariance.studies.recipes.perceptrons import PUBLISHED_TRAIN_SEED, perceptron, train
from invariance.studies.recipes.profile import Profile, pack, profile, with_agreement
from invariance.studies.recipes.subsets import cell_of, size_of
from invariance.studies.study import Context, Findings, Options, Record, Study, Table, Trained

HIDDEN = (256, 128)


class Protocol(NamedTuple):
    """How the networks of one training-set size are trained."""

    small_lr: float
    large_lr: float
    max_epochs: int
    lr_drop_at: float | None


#: Published settings by training-set size; between them the nearest size below is used.
PROTOCOLS = {
    500: Protocol(0.05, 0.5, 500, None),
    2_000: Protocol(0.03, 0.5, 500, None),
    6_000: Protocol(0.01, 0.5, 500, None),
    12_000: Protocol(0.01, 0.5, 500, 0.8),
    24_000: Protocol(0.01, 0.3, 500, 0.8),
    60_000: Protocol(0.01, 0.3, 600, 0.8),
}
SMALL_BATCH, LARGEST_BATCH = 64, 4_096

#: Large batches have seeds of their own, as published.
LARGE_SEED = 100


def regime_configs(
    options: Options, n_train: int, regime: str, train_seed: int = PUBLISHED_TRAIN_SEED
) -> list[Config]:
    """Return the networks of one training-set size and one batch size.

    Args:
        options: The study's options.
        n_train: Training points.
        regime: ``"small"`` or ``"large"``.
        train_seed: Seed of the training subset.

    Returns:
        One configuration a network.
    """
    about = describe_task(options.task)
    known = [size for size in PROTOCOLS if size <= n_train] or [min(PROTOCOLS)]
    rule = PROTOCOLS[max(known)]
    small = regime == "small"
    first = options.seed + (0 if small else max(LARGE_SEED, options.networks))
    return [
        perceptron(
            first + i,
            task=about.name,
            n_train=n_train,
            sizes=(about.n_features, *HIDDEN, about.n_classes),
            lr=rule.small_lr if small else rule.large_lr,
            batch_size=SMALL_BATCH if small else min(n_train, LARGEST_BATCH),
            max_epochs=rule.max_epochs,
            target_accuracy=0.995,
            lr_drop_at=rule.lr_drop_at,
            train_seed=train_seed,
        )
        for i in range(options.networks)
    ]


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

#: Up to this share of the training set the advantage is claimed, beyond it its absence.
SMALL_SHARE = 0.3

#: Regions fixed before any result was seen. An advantage below a quarter of a point, a ratio
#: of traces within a quarter of 1 (either way) and a correlation below half of the paper's
#: at small sizes count as vanished.
NO_ADVANTAGE = Region(-0.25, 0.25)
NO_RATIO = Region(0.8, 1.25)
NO_RHO = Region(-0.4, 0.4)

GIVEN = ("train_loss", "epochs", "parameter_norm")
TARGETS = ("test_accuracy", "generalization_gap", "loss_gap")

SMALL, LARGE = "small batch", "large batch"


def grid(options: Options) -> Sequence[Config]:
    """Return both regimes at every training-set size, and further training subsets at one."""
    configs = [
        config
        for n_train in options.n_train
        for regime in ("small", "large")
        for config in regime_configs(options, n_train, regime)
    ]
    count = min(options.networks, max(1, _size(options, "subset_networks")))
    fewer = options.but(networks=count)
    for train_seed in range(1, _size(options, "subsets") + 1):
        for regime in ("small", "large"):
            configs += regime_configs(fewer, min(options.n_train), regime, train_seed)
    return configs


def _size(options: Options, name: str) -> int:
    return int(options.scale.get(name, 0))  # type: ignore[arg-type]


def measure(
    configs: Sequence[Config], trained: Sequence[Trained], context: Context
) -> Sequence[Mapping[str, Any]]:
    """Measure curvature on the training points, patterns and mistakes on the unseen ones."""
    return [
        _measure(config, weights, context, place / len(configs))
        for place, (config, weights) in enumerate(zip(configs, trained, strict=True))
    ]


def _measure(config: Config, weights: Trained, context: Context, share: float) -> Mapping[str, Any]:
    context.tell(share)
    x, y = pool_of(config, context.options.n_unseen)
    seen: list[Profile] = []

    def suite(model: nn.Module, task: Task) -> Values:
        seen.append(profile(model, x))
        first, *_, last = seen[-1].patterns
        return {
            **curvature_values(model, task),
            **norm_values(model),
            "activation_patterns_1": float(first),
            "activation_patterns_2": float(last),
        }

    entry = measure_one(config, weights, measured_task(config, context), suite)
    before, after = (one.labels != y.numpy() for one in seen)
    return {
        **entry,
        "points": len(y),
        "mistakes": pack(before),
        "moved": np.flatnonzero(before != after).tolist(),
    }


def measurement(options: Options) -> Mapping[str, Setting]:
    """Return what decides the numbers beyond the networks."""
    return {"version": 1, "n_unseen": options.n_unseen}


def regime_of(record: Record) -> str:
    """Return which batch size a record has: by seeds' settings, not by name."""
    return SMALL if record.config.settings["batch_size"] == SMALL_BATCH else LARGE


def analyse(records: Sequence[Record], options: Options) -> Findings:
    """Compare the regimes and correlate, at each training-set size."""
    cells = {name: with_agreement(members) for name, members in split(records, cell_of).items()}
    main = {name: cell for name, cell in cells.items() if "subset" not in name}
    every = [record for members in main.values() for record in members]
    rows = correlation_rows(
        every, group=size_of, targets=TARGETS, given=GIVEN, pooled=False, seed=options.seed
    )
    within = []
    for name, members in main.items():
        found = correlation_rows(
            members, group=regime_of, given=GIVEN, seed=options.seed, resamples=2_000
        )
        within += [{**row, "group": f"{name}, {row['group']}"} for row in found]
    others = [record for name, cell in cells.items() if name not in main for record in cell]
    further = (
        correlation_rows(others, group=cell_of, given=GIVEN, pooled=False, seed=options.seed)
        if others
        else []
    )
    claims = [claim for name in main for claim in _claims(name, main[name], rows, within)]
    claims += _trend(main)
    last = next(iter(main))
    return Findings(
        correlations=(*rows, *further, *within),
        claims=tuple(claims),
        tables=(
            _table(cells),
            _within_table(within, list(main)),
            _granulated_table(every),
            partial_table(rows, list(main), ("hessian_trace", "ensemble_agreement")),
            fixed_table(rows, last),
        ),
        notes=(
            "Each size pools two regimes that differ in batch size and learning rate at once. A "
            "pooled correlation can come from that difference alone; the correlations within one "
            "regime are set beside it, and rest on half as many networks.",
            "Agreement and test accuracy are both counts of mistakes, in part on the same points; "
            "a correlation between them is not evidence about a property of the weights.",
            "Training stops at the first look (every 10 epochs) with 99.5 % of the training "
            "points right, so that the final loss differs between networks. Partial correlations "
            "hold it fixed.",
            "Traces are exact, over all training points; the paper estimated them with random "
            "probes. All networks of a size share one training subset unless a row says "
            "'subset': what holds for it need not hold for another.",
        ),
    )


def _claims(
    name: str,
    members: Sequence[Record],
    rows: Sequence[Mapping[str, Any]],
    within: Sequence[Mapping[str, Any]],
) -> list[Claim]:
    settings = members[0].config.settings
    n = whole(members[0].config, "n_train")
    early = n <= SMALL_SHARE * describe_task(str(settings["task"])).n_total
    paper = PUBLISHED.get(n, {}) if settings["task"] == "mnist" else {}
    small, large = (_values(members, r, "targets", "test_accuracy") for r in (SMALL, LARGE))
    traces = [_values(members, r, "measures", "hessian_trace") for r in (SMALL, LARGE)]
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
            else f"At {name} the trace no longer ranks networks by test accuracy.",
            measure="hessian_trace",
            region=NEGATIVE if early else NO_RHO,
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
                f"At {name} the trace no longer ranks networks once each is rescaled at random.",
                measure="hessian_trace",
                region=NO_RHO,
                **common,
            )
        )
    if row_of(rows, "ensemble_agreement", "test_accuracy", name):
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
    row = row_of(within, "hessian_trace", "test_accuracy", f"{name}, pooled") or {}
    return sampled_claim(
        f"trace within regimes {name}",
        f"At {name} flatter networks generalise better among networks trained alike.",
        "rho of hessian_trace and test_accuracy within regimes (Fisher's z)",
        tuple(row.get(key) for key in ("rho_within", "rho_within_ci_low", "rho_within_ci_high")),  # type: ignore[arg-type]
        region=NEGATIVE,
        n=int(row.get("n", 0)),
        paper=None,
        note="the paper reports pooled correlations only",
    )


def _trend(main: Mapping[str, Sequence[Record]]) -> list[Claim]:
    """Compare the advantages at the smallest and the largest training-set size."""
    if len(main) < 2:
        return []
    sizes = sorted(main, key=lambda name: int(name.removeprefix("n=")))
    first, last = (
        [_values(main[name], r, "targets", "test_accuracy") * 100 for r in (SMALL, LARGE)]
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


def _values(members: Sequence[Record], regime: str, part: str, name: str) -> np.ndarray[Any, Any]:
    return column([r for r in members if regime_of(r) == regime], part, name)


def _table(cells: Mapping[str, Sequence[Record]]) -> Table:
    rows = []
    for name, members in cells.items():
        n = whole(members[0].config, "n_train")
        mnist = members[0].config.settings["task"] == "mnist" and "subset" not in name
        paper = PUBLISHED.get(n, {}) if mnist else {}
        means = [
            float(_values(members, regime, part, key).mean()) if members else None
            for part, key in (("targets", "test_accuracy"), ("measures", "hessian_trace"))
            for regime in (SMALL, LARGE)
        ]
        reached = sum(bool(record.facts["reached_target"]) for record in members)
        low, high = means[0] or 0.0, means[1] or 0.0
        rows.append(
            (
                name, 100 * low, 100 * high, 100 * (high - low), paper.get("delta"),
                means[2], means[3], paper.get("small"), paper.get("large"),
                f"{reached} of {len(members)}",
            )
        )  # fmt: skip
    return Table(
        "Small against large batches",
        (
            "networks", "small, test %", "large, test %", "difference", "paper",
            "trace, small", "trace, large", "paper, small", "paper, large", "memorised",
        ),
        tuple(rows),
        "Means over networks; a network that does not reach 99.5 % is kept.",
    )  # fmt: skip


def _within_table(within: Sequence[Mapping[str, Any]], sizes: Sequence[str]) -> Table:
    rows = []
    for size in sizes:
        for measure_name in sorted({row["measure"] for row in within}):
            found = [
                row_of(within, measure_name, "test_accuracy", f"{size}, {part}") or {}
                for part in ("pooled", SMALL, LARGE)
            ]
            rows.append(
                (size, measure_name, *(row.get("rho") for row in found), found[0].get("rho_within"))
            )
    return Table(
        "Correlation with test accuracy: pooled, and within one regime",
        ("networks", "measure", "pooled", SMALL, LARGE, "within, combined"),
        tuple(rows),
        "Where the pooled correlation is far from those within regimes, the measure tells the "
        "regimes apart rather than good networks from bad ones.",
    )


def _granulated_table(records: Sequence[Record]) -> Table:
    """Move along one hyperparameter with the other fixed: Kendall's tau, and the sign error."""
    goal = column(records, "targets", "generalization_gap")
    settings: dict[str, list[Hashable]] = {
        "n_train": [record.config.settings["n_train"] for record in records],
        "regime": [regime_of(record) for record in records],
        "replicate": _replicates(records),
    }
    rows: list[tuple[str | float | int | None, ...]] = []
    for name in records[0].measured["measures"]:
        values = column(records, "measures", name)
        if not (np.isfinite(values).all() and np.isfinite(goal).all()):
            continue
        tau = granulated_kendall(values, goal, settings, along=("n_train", "regime"))
        wrong = sign_error(values, goal, settings, along=("n_train", "regime"))
        rows.append((name, *(axis.tau for axis in tau.axes), tau.mean, wrong.mean, wrong.robust))
    return Table(
        "Granulated Kendall with the generalization gap, and sign error",
        ("measure", "tau along size", "tau along regime", "mean", "sign error", "worst case"),
        tuple(rows),
        "Each comparison changes one hyperparameter with the other fixed (Jiang et al. 2020; "
        "Dziugaite et al. 2020). The sign error is the share of such pairs that the measure "
        "ranks wrongly if it is to rise with the gap: a half is a coin's. Networks of two "
        "regimes are paired by their place in the list, which means nothing.",
    )


def _replicates(records: Sequence[Record]) -> list[Hashable]:
    """Number the networks of each cell in order."""
    seen: dict[tuple[str, str], int] = {}
    numbers: list[Hashable] = []
    for record in records:
        cell = (size_of(record), regime_of(record))
        numbers.append(seen.get(cell, 0))
        seen[cell] = seen.get(cell, 0) + 1
    return numbers


def figures(
    records: Sequence[Record], findings: Findings, folder: Path
) -> Sequence[tuple[Path, str]]:
    """Draw the advantage and the traces over size, and the correlations at each size."""
    cells = {name: with_agreement(cell) for name, cell in split(records, cell_of).items()}
    main = {name: cell for name, cell in cells.items() if "subset" not in name}
    made = [
        (
            draw.save(_advantage_figure(main, findings), folder, "advantage.png"),
            "Advantage of large batches, ratio of traces and correlations over training-set size, "
            "with 95 % intervals; crosses are the paper's numbers.",
        )
    ]
    for name, members in main.items():
        rows = [
            row
            for row in findings.correlations
            if row["group"] == name and row["target"] == "test_accuracy"
        ]
        n = int(name.removeprefix("n="))
        published = {key: v for key, v in PUBLISHED.get(n, {}).items() if "_" in key}
        stem = name.replace("=", "")
        mnist = members[0].config.settings["task"] == "mnist"
        made.append(
            (
                draw.save(
                    draw.forest(rows, f"{name}, both regimes pooled", published if mnist else None),
                    folder,
                    f"correlations_{stem}.png",
                ),
                f"Rank correlations with test accuracy at {name}, as trained and after a random "
                "rescaling of every network.",
            )
        )
        made.append(
            (
                draw.save(
                    draw.scatter(
                        split(members, regime_of),
                        ("hessian_trace", "activation_patterns_2", "minimum_sharpness",
                         "ensemble_agreement"),
                        title=name,
                    ),
                    folder,
                    f"networks_{stem}.png",
                ),
                f"Every network at {name}; colours are regimes.",
            )
        )  # fmt: skip
    return made


def _advantage_figure(main: Mapping[str, Sequence[Record]], findings: Findings) -> Figure:
    claims = {claim.name: claim for claim in findings.claims}
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, prefix, title in zip(
        panels,
        ("advantage", "trace ratio", "trace"),
        ("large minus small batches, points", "trace, small over large", "rho of trace, pooled"),
        strict=True,
    ):
        found = [(int(name.removeprefix("n=")), claims[f"{prefix} {name}"]) for name in main]
        for n, claim in found:
            if claim.value is not None and claim.ci_low is not None:
                axes.plot([n, n], [claim.ci_low, claim.ci_high], color=draw.STAYS, lw=1.5)
                axes.plot(n, claim.value, "o", color=draw.STAYS, markersize=5)
            if claim.paper is not None:
                axes.plot(n, claim.paper, "x", color=draw.INK, markersize=6)
        axes.axhline(1.0 if prefix == "trace ratio" else 0.0, color=draw.INK, lw=0.8)
        axes.set_xscale("log")
        axes.set_xticks([n for n, _ in found], [f"{n:,}" for n, _ in found], rotation=45)
        axes.minorticks_off()
        axes.set_xlabel("training points")
        axes.set_title(title, fontsize=10)
        draw.plain(axes)
    return figure


def batch_size(config: Config) -> int:
    """Return how many networks train together: few where one takes long."""
    n = whole(config, "n_train")
    return 25 if n <= 2_000 else 13 if n <= 6_000 else 5 if n <= 24_000 else 3


def cost(config: Config) -> float:
    """Return relative work: points seen, and the unseen points that are measured."""
    return 1.0 + whole(config, "n_train") / 500


STUDY = Study(
    name="vanishing-advantage",
    title="The advantage of one batch size, and of flatness, vanishes as data grows",
    paper='M. T. Bennett, "Are Flat Minima an Illusion?", arXiv 2605.05209',
    question=(
        "Large batches with a high learning rate generalise better than small ones on little "
        "data, and end at flatter points. Does the advantage vanish as the training set grows, "
        "does the correlation of flatness with test accuracy vanish with it, and is that "
        "correlation more than a difference between two ways of training?"
    ),
    full=Options(
        networks=25,
        n_train=(500, 2_000, 6_000, 12_000, 24_000, 60_000),
        n_unseen=0,
        scale={"subsets": 2, "subset_networks": 25},
    ),
    quick=Options(
        task="auto",
        networks=6,
        n_train=(100, 400),
        n_unseen=1_000,
        quick=True,
        scale={"subsets": 0, "subset_networks": 0},
    ),
    grid=grid,
    train=train,
    measure=measure,
    measurement=measurement,
    analyse=analyse,
    figures=figures,
    batch_size=batch_size,
    cost=cost,
)
