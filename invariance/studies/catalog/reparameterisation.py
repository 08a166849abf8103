"""One function in many parameterisations: what becomes of sharpness, and of weakness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from invariance import measures as M
from invariance import transforms as T
from invariance.data import Task
from invariance.studies.catalog.model_selection import networks_on
from invariance.studies.catalog.vanishing_advantage import regime_configs
from invariance.studies.claims import Claim, Region
from invariance.studies.config import Config, Setting
from invariance.studies.correlations import correlation_rows, split
from invariance.studies.recipes import figures as draw
from invariance.studies.recipes.judging import (
    counted_claim,
    fixed_claim,
    fixed_table,
    mean_interval,
    sampled_claim,
)
from invariance.studies.recipes.measuring import (
    Values,
    curvature_values,
    measure_one,
    measured_task,
    norm_values,
    pool_of,
    predicted,
    whole,
    widths,
)
from invariance.studies.recipes.perceptrons import PUBLISHED_TRAIN_SEED, network, train
from invariance.studies.recipes.profile import (
    Bits,
    Profile,
    agreement,
    pack,
    profile,
    unpack,
    with_agreement,
)
from invariance.studies.study import Context, Findings, Options, Record, Study, Table, Trained

#: A second, narrow network, on which the pair proxy is not saturated.
NARROW, NARROW_SIZE = (64, 8), 250
WIDE_NAME, NARROW_NAME = "wide", "narrow"

#: The published factors: T_beta scales layer 1 against 2, T_gamma layer 2 against 3.
FACTORS = (1.0, 2.0, 5.0, 10.0, 20.0)
AXES: Mapping[str, int] = {"beta": 0, "gamma": 1}

#: The paper's traces, a Hutchinson estimate with 50 probes, at beta = 1 and 20.
PAPER_INFLATION = 6_525.9 / 66.1
PUBLISHED_SIZE = 6_000

#: Fixed before any result was seen.
INFLATED = Region(low=50.0)
ON_THE_LAW = Region(high=1e-9)
NOTHING = Region(-0.5, 0.5)

GIVEN = ("train_loss", "epochs", "parameter_norm")


class Law(NamedTuple):
    """``Tr H(a) = A / a^2 + C + B a^2`` along one axis."""

    a: float
    b: float
    c: float

    def __call__(self, factor: float) -> float:
        """Return the trace at a factor."""
        return self.a / factor**2 + self.c + self.b * factor**2


def _size(options: Options, name: str) -> int:
    return int(options.scale.get(name, 0))  # type: ignore[arg-type]


def grid(options: Options) -> Sequence[Config]:
    """Return wide networks of the published kind, and narrow ones."""
    configs = [
        config
        for n_train in options.n_train
        for config in regime_configs(options, n_train, "small")
    ]
    narrow = options.but(n_train=(min(NARROW_SIZE, *options.n_train),))
    count = min(options.networks, _size(options, "narrow_networks"))
    return [*configs, *networks_on(narrow, NARROW, options.task, count, PUBLISHED_TRAIN_SEED)]


def kind_of(record: Record) -> str:
    """Return which kind of network a record is, with its training-set size."""
    kind = NARROW_NAME if _is_narrow(record.config) else WIDE_NAME
    return f"{kind}, n={record.config.settings['n_train']}"


def _is_narrow(config: Config) -> bool:
    return widths(config)[1:-1] == NARROW


def measure(
    configs: Sequence[Config], trained: Sequence[Trained], context: Context
) -> Sequence[Mapping[str, Any]]:
    """Move every network along both axes and measure it at each factor."""
    found = []
    for place, (config, weights) in enumerate(zip(configs, trained, strict=True)):
        context.tell(place / len(configs))
        found.append(_measure(config, weights, context))
    return found


def _measure(config: Config, weights: Trained, context: Context) -> Mapping[str, Any]:
    options = context.options
    x, y = pool_of(config, _size(options, "pattern_points"))
    task = measured_task(config, context, n_unseen=options.n_unseen)
    narrow = _is_narrow(config)
    seen: list[Profile] = []

    def suite(model: nn.Module, task: Task) -> Values:
        seen.append(profile(model, x))
        first, *_, last = seen[-1].patterns
        values = {
            **curvature_values(model, task),
            **norm_values(model),
            "activation_patterns_1": float(first),
            "activation_patterns_2": float(last),
        }
        return values | ({"pair_proxy": _pairs(model, task)} if narrow else {})

    entry = measure_one(config, weights, task, suite)
    base = network(config, weights).to(task.x_train.device)
    before = _Base(
        seen[0],
        seen[0].labels != y.numpy(),
        predicted(base, task.x_test),
        entry["measures"],
        _blocks(base, task),
    )
    moved = seen[1].labels != y.numpy()
    return {
        **entry,
        "points": len(y),
        "mistakes": pack(before.mistakes),
        "moved": np.flatnonzero(before.mistakes != moved).tolist(),
        "axes": {
            axis: [_moved(base, axis, factor, before, task, x, y) for factor in FACTORS]
            for axis in AXES
        },
        **_saturation(base, task, config, options),
    }


class _Base(NamedTuple):
    """The untransformed network."""

    seen: Profile
    mistakes: Bits
    test_labels: Tensor
    measures: Values
    blocks: Mapping[str, float]


def _blocks(model: nn.Module, task: Task) -> Mapping[str, float]:
    return dict(M.hessian_trace(model, task.x_train, task.y_train).parts)


def law_of(blocks: Mapping[str, float], first: int) -> Law:
    """Read the law along one axis off the traces of the parameters' blocks.

    The scaled layer's weight and bias shrink their curvature, the next layer's weight grows
    its own, and nothing else is touched.

    Args:
        blocks: Parameter to the trace of its block, layers in order.
        first: Index of the layer that is scaled up.

    Returns:
        The law.
    """
    weights = [name for name in blocks if name.endswith("weight")]
    scaled, following = weights[first], weights[first + 1]
    a = blocks[scaled] + blocks[scaled.removesuffix("weight") + "bias"]
    b = blocks[following]
    return Law(a, b, sum(blocks.values()) - a - b)


def _moved(
    base: nn.Module, axis: str, factor: float, before: _Base, task: Task, x: Tensor, y: Tensor
) -> Mapping[str, Any]:
    """Scale one layer against the next by a factor, and look at everything again."""
    first = AXES[axis]
    factors = [1.0] * len([name for name in before.blocks if name.endswith("weight")])
    factors[first], factors[first + 1] = factor, 1.0 / factor
    model = T.LayerScaling(factors)(base, task.x_train[:8])
    now = profile(model, x)
    labels = predicted(model, task.x_test)
    right = (labels == task.y_test).double().mean()
    mistakes = now.labels != y.numpy()
    found = {
        "factor": factor,
        "hessian_trace": sum(_blocks(model, task).values()),
        "law": law_of(before.blocks, first)(factor),
        "test_accuracy": float(right),
        "labels_changed": int((labels != before.test_labels).sum())
        + int((now.labels != before.seen.labels).sum()),
        "patterns": list(now.patterns),
        "bits_changed": sum(
            int(np.bitwise_count(one ^ two).sum())
            for one, two in zip(now.bits, before.seen.bits, strict=True)
        ),
        "moved": np.flatnonzero(mistakes != before.mistakes).tolist(),
    }
    pairs = before.measures.get("pair_proxy")
    if pairs is not None:
        found["pairs_changed"] = _pairs(model, task) - pairs
    return found


def _pairs(model: nn.Module, task: Task) -> float:
    found = M.pair_proxy(model, task.x_train, task.y_train, task.x_unseen)
    return float(found) if found.exact and found.detail["policy_feasible"] else float("nan")


def _saturation(base: nn.Module, task: Task, config: Config, options: Options) -> Mapping[str, Any]:
    """Count pairs of a few wide networks on a few points: all of them are feasible."""
    points = _size(options, "wide_pair_points")
    if _is_narrow(config) or not points or config.seed >= options.seed + WIDE_COUNTED:
        return {}
    found = M.pair_proxy(base, task.x_train, task.y_train, task.x_unseen[:points])
    return {
        "wide_pairs": {
            "feasible": int(found.detail["feasible"]),
            "pairs": int(found.detail["pairs"]),
            "policy_feasible": found.detail["policy_feasible"],
        }
    }


#: How many wide networks have their pairs counted: each takes seconds, and says the same.
WIDE_COUNTED = 3


def measurement(options: Options) -> Mapping[str, Setting]:
    """Return what decides the numbers beyond the networks."""
    return {
        "version": 1,
        "n_unseen": options.n_unseen,
        "pattern_points": _size(options, "pattern_points"),
        "wide_pair_points": _size(options, "wide_pair_points"),
        "first_seed": options.seed,
    }


def analyse(records: Sequence[Record], options: Options) -> Findings:
    """Compare every network with its moved copies."""
    cells = {name: with_agreement(members) for name, members in split(records, kind_of).items()}
    every = [record for members in cells.values() for record in members]
    rows = correlation_rows(
        every, group=kind_of, given=GIVEN, pooled=False, seed=options.seed, resamples=2_000
    )
    rows = [row for row in rows if row["n"]]  # pairs are not counted on the wide networks
    claims = [claim for name, members in cells.items() for claim in _claims(name, members, rows)]
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


def _claims(name: str, members: Sequence[Record], rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
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
            paper=0.0 if published else None,
        ),
        counted_claim(
            f"accuracy {name}",
            f"It leaves test accuracy alone ({name}).",
            f"largest change of test accuracy ({where})",
            accuracy,
            region=Region(-1e-12, 1e-12),
            n=n,
            paper=0.0 if published else None,
        ),
        counted_claim(
            f"patterns {name}",
            f"It leaves the numbers of patterns of both hidden layers alone ({name}).",
            f"largest change of a number of patterns ({where})",
            float(bits),
            region=NOTHING,
            n=n,
            paper=0.0 if published else None,
        ),
        counted_claim(
            f"law {name}",
            f"The Hessian trace follows A / a^2 + C + B a^2 ({name}).",
            f"largest relative difference of measured and predicted traces ({where})",
            error,
            region=ON_THE_LAW,
            n=n,
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


def figures(
    records: Sequence[Record], findings: Findings, folder: Path
) -> Sequence[tuple[Path, str]]:
    """Draw the law through measured points, and what random rescaling does to correlations."""
    made = []
    for name, members in split(records, kind_of).items():
        stem = name.replace(", ", "_").replace("=", "")
        made.append(
            (
                draw.save(_law_figure(name, members), folder, f"law_{stem}.png"),
                f"The trace of {name} along both axes: measured (points) on the law of each "
                "network (lines). Test accuracy and patterns do not move.",
            )
        )
        rows = [
            row
            for row in findings.correlations
            if row["group"] == name and row["target"] == "test_accuracy"
        ]
        made.append(
            (
                draw.save(
                    draw.forest(rows, f"{len(members)} networks, {name}"),
                    folder,
                    f"correlations_{stem}.png",
                ),
                "Rank correlations with test accuracy before and after a random rescaling of "
                "every network; few networks, hence wide intervals.",
            )
        )
    return made


def _law_figure(name: str, members: Sequence[Record]) -> Figure:
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    fine = np.geomspace(FACTORS[0], FACTORS[-1], 80)
    for axes, axis in zip(panels, AXES, strict=True):
        for record in members:
            points = record.measured["axes"][axis]
            factors = np.array([point["factor"] for point in points])
            # Three unknowns of the law from three of its own values, exactly.
            design = np.stack([factors**-2, np.ones_like(factors), factors**2], axis=1)
            a, c, b = np.linalg.lstsq(design, [p["law"] for p in points], rcond=None)[0]
            axes.loglog(fine, a / fine**2 + c + b * fine**2, color=draw.MOVES, lw=0.6, alpha=0.5)
            axes.loglog(factors, [p["hessian_trace"] for p in points], "o", color=draw.MOVES, ms=3)
        own = axes.twinx()
        base = np.array([r.measured["targets"]["test_accuracy"] for r in members])
        for place, factor in enumerate(FACTORS):
            now = [r.measured["axes"][axis][place]["test_accuracy"] for r in members]
            own.plot([factor] * len(now), np.array(now) - base, "s", color=draw.STAYS, ms=3)
        own.set_ylim(-1, 1)
        own.set_yticks([0])
        own.tick_params(labelsize=8, colors=draw.STAYS)
        own.set_ylabel("change of test accuracy", color=draw.STAYS, fontsize=9)
        axes.set_xlabel(f"factor of T_{axis}")
        axes.set_title(f"layer {AXES[axis] + 1} times it, layer {AXES[axis] + 2} divided")
        draw.plain(axes)
    panels[0].set_ylabel("Hessian trace")
    figure.suptitle(f"One function each, any sharpness ({name})", fontsize=11)
    return figure


def batch_size(config: Config) -> int:
    """Return how many networks train together."""
    return 25 if _is_narrow(config) else 5


def cost(config: Config) -> float:
    """Return relative work: the wide networks see more points, and longer."""
    return 1.0 if _is_narrow(config) else 1.0 + whole(config, "n_train") / 500


STUDY = Study(
    name="reparameterisation",
    title="One function, any sharpness: the trace along rescalings of a network",
    paper='M. T. Bennett, "Are Flat Minima an Illusion?", arXiv 2605.05209',
    question=(
        "Multiply one layer by a factor and divide the next by it: no output changes. How far "
        "does the Hessian trace move, does it follow its exact law, and do test accuracy, "
        "activation patterns, ensemble agreement and the pair proxy stay?"
    ),
    full=Options(
        networks=25,
        n_train=(6_000,),
        n_unseen=100,
        scale={"narrow_networks": 25, "pattern_points": 0, "wide_pair_points": 5},
    ),
    quick=Options(
        task="auto",
        networks=4,
        n_train=(200,),
        n_unseen=20,
        quick=True,
        scale={"narrow_networks": 4, "pattern_points": 1_000, "wide_pair_points": 2},
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
