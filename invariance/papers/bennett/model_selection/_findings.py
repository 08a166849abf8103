"""What is claimed of networks trained alike, with the regions fixed before any result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from invariance.papers.bennett._networks import COVARIATES, PUBLISHED_SMALL_SIZE, TARGETS
from invariance.papers.recipes import _figures as draw
from invariance.papers.recipes._claim_shapes import (
    NO_RANK,
    NO_RANK_WORDS,
    POSITIVE,
    TableRow,
    dependent_difference,
    fixed_claim,
    fixed_table,
    partial_claim,
    partial_table,
    rho_claim,
    sampled_claim,
)
from invariance.papers.recipes._subsets import (
    cell_of,
    draws_table,
    is_published,
    subset_table,
    width_table,
)
from invariance.studies._study import Findings, Options, Record
from invariance.studies.claims._claims import Claim
from invariance.studies.claims._correlations import correlation_rows, split

PAPER = {
    "hessian_trace": -0.079,
    "parameter_norm": -0.061,
    "parameter_norm_l1": 0.011,
    "activation_patterns_2": 0.113,
    "free_parameters": 0.067,
    "free_regions": 0.117,
}


WEAKNESS = ("activation_patterns_2", "free_regions", "free_parameters")


def analyse(records: Sequence[Record], options: Options) -> Findings:
    """Correlate every measure with test accuracy, on the published subset and on others."""
    main = [record for record in records if is_published(record)]
    others = [record for record in records if not is_published(record)]
    rows = correlation_rows(
        main, group=cell_of, targets=TARGETS, given=COVARIATES, pooled=False, seed=options.seed
    )
    further = (
        correlation_rows(
            others,
            group=cell_of,
            given=COVARIATES,
            pooled=False,
            seed=options.seed,
            resamples=2_000,
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
    name: str, main: Sequence[Record], rows: Sequence[TableRow], options: Options
) -> list[Claim]:
    settings = main[0].config.settings
    published = settings["task"] == "mnist" and settings["n_train"] == PUBLISHED_SMALL_SIZE
    paper = PAPER if published else {}
    end = "" if len(options.n_train) == 1 else f" {name}"
    claims = [
        rho_claim(
            rows,
            measure_name + end,
            f"Among networks trained alike ({name}) {words} does not help to choose "
            f"{NO_RANK_WORDS}.",
            measure=measure_name,
            group=name,
            region=NO_RANK,
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
    claims += [
        rho_claim(
            rows,
            measure_name + end,
            f"Among networks trained alike ({name}) {words} does not help to choose "
            f"{NO_RANK_WORDS}.",
            measure=measure_name,
            group=name,
            region=NO_RANK,
            paper=None,
            ours=True,
        )
        for measure_name, words in (
            ("spectral_norm_product", "the product of spectral norms"),
            ("path_norm", "the path norm"),
            ("adaptive_trace", "the adaptive trace"),
            ("minimum_sharpness", "minimum sharpness"),
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
            paper=round(PAPER["free_regions"] + PAPER["hessian_trace"], 3) if published else None,
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
        published = settings["task"] == "mnist" and settings["n_train"] == PUBLISHED_SMALL_SIZE
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
