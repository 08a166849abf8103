"""Can any measure choose the better of many networks that were all trained alike?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from invariance import measures as M
from invariance.core.rng import generator
from invariance.data import Task
from invariance.studies.claims import Claim, Region
from invariance.studies.config import Config, Setting
from invariance.studies.correlations import correlation_rows, split
from invariance.studies.recipes import figures as draw
from invariance.studies.recipes.judging import (
    POSITIVE,
    Row,
    dependent_difference,
    fixed_claim,
    fixed_table,
    partial_claim,
    partial_table,
    rho_claim,
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
    widths,
)
from invariance.studies.recipes.perceptrons import PUBLISHED_TRAIN_SEED, perceptron, train
from invariance.studies.recipes.profile import Profile, profile, regions_of
from invariance.studies.recipes.subsets import (
    cell_of,
    draws_table,
    is_published,
    subset_table,
    width_table,
)
from invariance.studies.study import Context, Findings, Options, Record, Study, Trained

HIDDEN = (64, 16)

#: The paper's rank correlations with test accuracy over 300 networks.
PUBLISHED_SIZE = 250
PAPER = {
    "hessian_trace": -0.079,
    "parameter_norm": -0.061,
    "parameter_norm_l1": 0.011,
    "activation_patterns_2": 0.113,
    "free_parameters": 0.067,
    "free_regions": 0.117,
}

#: Fixed before any result was seen: below this a measure is no help in choosing a network.
NO_HELP = Region(-0.2, 0.2)

#: Points in each further draw of unseen points.
DRAWN = 1_000

WEAKNESS = ("activation_patterns_2", "free_regions", "free_parameters")
GIVEN = ("train_loss", "epochs", "parameter_norm")
TARGETS = ("test_accuracy", "generalization_gap", "loss_gap")


def _size(options: Options, name: str) -> int:
    return int(options.scale.get(name, 0))  # type: ignore[arg-type]


def networks_on(
    options: Options, hidden: tuple[int, ...], task: str, count: int, train_seed: int
) -> list[Config]:
    """Return small networks that memorise: SGD at 0.1, batches of 64.

    Args:
        options: The study's options.
        hidden: Widths of the hidden layers.
        task: Data set.
        count: Networks at each training-set size.
        train_seed: Seed of the training subset.

    Returns:
        One configuration a network.
    """
    about = describe_task(task)
    return [
        perceptron(
            options.seed + i,
            task=about.name,
            n_train=n_train,
            sizes=(about.n_features, *hidden, about.n_classes),
            lr=0.1,
            batch_size=64,
            train_seed=train_seed,
        )
        for n_train in options.n_train
        for i in range(count)
    ]


def grid(options: Options) -> Sequence[Config]:
    """Return the networks of the published subset, and fewer of further subsets."""
    configs = networks_on(options, HIDDEN, options.task, options.networks, PUBLISHED_TRAIN_SEED)
    fewer = min(options.networks, _size(options, "subset_networks"))
    for train_seed in range(1, _size(options, "subsets") + 1):
        configs += networks_on(options, HIDDEN, options.task, fewer, train_seed)
    return configs


def measure(
    configs: Sequence[Config], trained: Sequence[Trained], context: Context
) -> Sequence[Mapping[str, Any]]:
    """Measure curvature, norms and regions over the unseen points, and pairs on a few."""
    found = []
    for place, (config, weights) in enumerate(zip(configs, trained, strict=True)):
        context.tell(place / len(configs))
        found.append(_measure(config, weights, context))
    return found


def _measure(config: Config, weights: Trained, context: Context) -> Mapping[str, Any]:
    pool, _ = pool_of(config, context.options.n_unseen)
    task = measured_task(config, context, n_unseen=_size(context.options, "pair_points"))
    units, classes = widths(config)[-2:]
    seen: list[tuple[Profile, Profile]] = []

    def suite(model: nn.Module, task: Task) -> Values:
        train_points, unseen = profile(model, task.x_train), profile(model, pool)
        seen.append((train_points, unseen))
        regions = regions_of(train_points.bits[-1], unseen.bits[-1], units, classes)
        pairs = M.pair_proxy(model, task.x_train, task.y_train, task.x_unseen)
        separable = pairs.exact and pairs.detail["policy_feasible"]
        return {
            **curvature_values(model, task, eigenvalues=True),
            **norm_values(model),
            "activation_patterns_1": float(unseen.patterns[0]),
            "activation_patterns_2": float(regions.patterns),
            "free_regions": float(regions.free),
            "free_parameters": float(regions.parameters),
            "pair_proxy": float(pairs) if separable else float("nan"),
        }

    entry = measure_one(config, weights, task, suite)
    return {**entry, "draws": _draws(seen[0], units, classes, context.options)}


def _draws(
    seen: tuple[Profile, Profile], units: int, classes: int, options: Options
) -> Mapping[str, Mapping[str, float]]:
    """Count regions on further random draws of unseen points, from patterns read already."""
    import torch

    train_points, unseen = seen
    found = {}
    for seed in range(_size(options, "unseen_draws")):
        order = torch.randperm(len(unseen.labels), generator=generator(seed, "unseen draw"))
        rows = unseen.bits[-1][order[:DRAWN].numpy()]
        regions = regions_of(train_points.bits[-1], rows, units, classes)
        found[str(seed)] = {
            "activation_patterns_2": float(regions.patterns),
            "free_regions": float(regions.free),
            "free_parameters": float(regions.parameters),
        }
    return found


def measurement(options: Options) -> Mapping[str, Setting]:
    """Return what decides the numbers beyond the networks."""
    return {
        "version": 1,
        "n_unseen": options.n_unseen,
        "pair_points": _size(options, "pair_points"),
        "unseen_draws": _size(options, "unseen_draws"),
    }


def analyse(records: Sequence[Record], options: Options) -> Findings:
    """Correlate every measure with test accuracy, on the published subset and on others."""
    main = [record for record in records if is_published(record)]
    others = [record for record in records if not is_published(record)]
    rows = correlation_rows(
        main, group=cell_of, targets=TARGETS, given=GIVEN, pooled=False, seed=options.seed
    )
    further = (
        correlation_rows(
            others, group=cell_of, given=GIVEN, pooled=False, seed=options.seed, resamples=2_000
        )
        if others
        else []
    )
    every = [*rows, *further]
    shown = [*PAPER, "pair_proxy", "minimum_sharpness"]
    reached = sum(bool(record.facts["reached_target"]) for record in main)
    claims, tables = [], []
    for name, members in split(main, cell_of).items():
        groups = [g for g in dict.fromkeys(row["group"] for row in every) if _same(g, name)]
        claims += _claims(name, members, rows, options)
        tables += [
            subset_table(every, groups, shown),
            draws_table(members, WEAKNESS, name),
            width_table(rows, [name], shown, (100, 300, 1_000)),
            partial_table(rows, [name], shown),
            fixed_table(rows, name),
        ]
    return Findings(
        correlations=tuple(every),
        claims=tuple(claims),
        tables=tuple(tables),
        notes=(
            f"{reached} of {len(main)} networks of the published subset reached full train "
            "accuracy; the others are kept. Where all do, the generalization gap is one minus "
            "test accuracy and its correlations are the same with the other sign; the gap of "
            "losses is a target of its own.",
            "Test accuracy of networks trained alike on the same points differs by chance of "
            "initialisation and order alone; a measure that ranks them at 0.2 explains 4 % of "
            "the variance of ranks.",
            "Patterns and regions are counted over all points that are not in the training "
            "subset unless the options say otherwise; the paper does not say over how many. "
            "Traces are exact, over all training points.",
        ),
    )


def _same(group: str, name: str) -> bool:
    """Whether a group is this one, or another training subset of its size."""
    return group == name or group.startswith(f"{name}, ")


def _claims(
    name: str, main: Sequence[Record], rows: Sequence[Row], options: Options
) -> list[Claim]:
    settings = main[0].config.settings
    published = settings["task"] == "mnist" and settings["n_train"] == PUBLISHED_SIZE
    paper = PAPER if published else {}
    end = "" if len(options.n_train) == 1 else f" {name}"
    claims = [
        rho_claim(
            rows,
            measure_name + end,
            f"Among networks trained alike ({name}) {words} does not help to choose.",
            measure=measure_name,
            group=name,
            region=NO_HELP,
            paper=paper.get(measure_name),
        )
        for measure_name, words in (
            ("hessian_trace", "the Hessian trace"),
            ("parameter_norm", "the L2 norm"),
            ("parameter_norm_l1", "the L1 norm"),
        )
    ]
    claims += [
        rho_claim(
            rows,
            measure_name + end,
            f"Among networks trained alike ({name}) more {words} go with better test accuracy.",
            measure=measure_name,
            group=name,
            region=POSITIVE,
            paper=paper.get(measure_name),
        )
        for measure_name, words in (
            ("activation_patterns_2", "patterns in the last hidden layer"),
            ("free_parameters", "free parameters"),
            ("free_regions", "free regions"),
            ("pair_proxy", "feasible pairs"),
        )
    ]
    gap, n = dependent_difference(
        main, "free_regions", "hessian_trace", signs=(1.0, -1.0), seed=options.seed
    )
    claims.append(
        sampled_claim(
            "free regions beat trace" + end,
            "Free regions predict test accuracy better than the trace does, each in its own "
            "direction.",
            "rho(free_regions) plus rho(hessian_trace), bootstrap over the same networks",
            gap,
            region=POSITIVE,
            n=n,
            paper=PAPER["free_regions"] + PAPER["hessian_trace"] if published else None,
        )
    )
    claims.append(
        partial_claim(
            rows,
            "free regions, all held fixed" + end,
            "Free regions predict test accuracy beyond train loss, epochs and weight norm.",
            measure="free_regions",
            group=name,
            region=POSITIVE,
        )
    )
    claims.append(
        fixed_claim(
            rows,
            "weakness stays fixed" + end,
            "Counts of regions do not change when a network is rescaled.",
            measures=WEAKNESS,
            group=name,
        )
    )
    return claims


def figures(
    records: Sequence[Record], findings: Findings, folder: Path
) -> Sequence[tuple[Path, str]]:
    """Draw all correlations, and the networks themselves."""
    made = []
    main = [record for record in records if is_published(record)]
    for name, members in split(main, cell_of).items():
        rows = [
            row
            for row in findings.correlations
            if row["group"] == name and row["target"] == "test_accuracy"
        ]
        settings = members[0].config.settings
        published = settings["task"] == "mnist" and settings["n_train"] == PUBLISHED_SIZE
        title = f"{len(members)} networks trained alike, {name}"
        stem = name.replace("=", "")
        forest = draw.forest(rows, title, PAPER if published else None)
        scatter = draw.scatter(
            {name: members},
            ("hessian_trace", "parameter_norm", "free_regions", "pair_proxy"),
            title=title,
        )
        made += [
            (
                draw.save(forest, folder, f"correlations_{stem}.png"),
                "Rank correlations with test accuracy, as trained and after a random rescaling "
                "of every network.",
            ),
            (draw.save(scatter, folder, f"networks_{stem}.png"), "Every network."),
        ]
    return made


def batch_size(config: Config) -> int:
    """Return how many networks train together."""
    return 50


def cost(config: Config) -> float:
    """Return relative work: all networks cost the same."""
    return 1.0


STUDY = Study(
    name="model-selection",
    title="Choosing among networks that were trained alike",
    paper='M. T. Bennett, "Are Flat Minima an Illusion?", arXiv 2605.05209',
    question=(
        "Networks of one architecture, trained in one way on the same points, differ by their "
        "seed alone. Does any measure, computed without test data, tell the better ones from "
        "the worse?"
    ),
    full=Options(
        networks=300,
        n_train=(250,),
        n_unseen=0,
        scale={"subsets": 3, "subset_networks": 50, "pair_points": 100, "unseen_draws": 3},
    ),
    quick=Options(
        task="auto",
        networks=24,
        n_train=(100,),
        n_unseen=1_500,
        quick=True,
        scale={"subsets": 1, "subset_networks": 8, "pair_points": 20, "unseen_draws": 2},
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
