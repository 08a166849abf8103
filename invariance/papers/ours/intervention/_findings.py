"""What is claimed of pushed networks; the regions stand in ``papers/regions``."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np

from invariance.papers._declared import declared
from invariance.papers.recipes import _figures as draw
from invariance.papers.recipes._claim_shapes import counted_claim
from invariance.studies._study import Findings, Options, Record, Table
from invariance.studies.claims._claims import Claim
from invariance.studies.claims._correlations import column, correlation_rows
from invariance.studies.claims._paired_treatments import Pair, effect, pairs_of

SHAM = "sham"

#: Treatment to the measure it is to move, and the direction.
TARGETS: Mapping[str, tuple[str, int]] = {
    "trace": ("hessian_trace", -1),
    "minimum sharpness": ("minimum_sharpness", -1),
    "openness": ("margin_pair_proxy", 1),
}

#: Outcome to the direction that is better, and words.
OUTCOMES: Mapping[str, tuple[int, str]] = {
    "test_accuracy": (1, "improves test accuracy"),
    "calibration_error": (-1, "improves calibration"),
    "fgsm_accuracy": (1, "improves robustness to FGSM"),
}

VERBS = {
    "trace": "Lowering the trace",
    "minimum sharpness": "Lowering the minimum sharpness",
    "openness": "Leaving unseen points more open",
}


def treatment_of(record: Record) -> str:
    """Return what was done to a network."""
    return str(record.config.settings["treatment"])


def _match(record: Record) -> Hashable:
    return record.config.settings["n_train"], record.config.seed


def _reader(part: str, name: str) -> Callable[[Record], float]:
    def read(record: Record) -> float:
        value = record.measured[part].get(name)
        return math.nan if value is None else float(value)

    return read


def analyse(records: Sequence[Record], options: Options) -> Findings:
    """Compare every treatment with the sham of the same seed."""
    pairs = pairs_of(records, treatment_of, _match, SHAM)
    rows = (
        correlation_rows(
            records,
            targets=("test_accuracy",),
            given=("train_loss",),
            group=treatment_of,
            seed=options.seed,
            resamples=2_000,
        )
        if len(records) >= 4 * (len(TARGETS) + 1)
        else []
    )
    return Findings(
        correlations=tuple(rows),
        claims=tuple(_claims(records, pairs, options)),
        tables=(_table(records), _change_table(pairs)),
        notes=(
            "Every step has one length, relative to the weights, whatever is pushed; its part "
            "along the loss's gradient is taken out, and the loss is led back to where it was.",
            "A treatment is compared with a random walk of the same length from the same "
            "checkpoint: pairs share the seed, and seeds are the units of every test.",
            "Openness stands in for the pair proxy: gaps of unseen points' logits to their "
            "largest, in units of the training points' logits. It reads unseen inputs and no "
            "labels of theirs. Whether it moves the count with a margin is a claim of its own.",
        ),
    )


def _claims(
    records: Sequence[Record], pairs: Mapping[str, Sequence[Pair]], options: Options
) -> list[Claim]:
    regions = declared("intervention")
    drift = max(abs(math.log(r.facts["train_loss"] / r.facts["loss_before"])) for r in records)
    claims = [
        counted_claim(
            "loss is matched",
            "Train loss ends where it began.",
            "largest absolute change of log train loss over all networks",
            drift,
            region=regions["loss is matched"],
            n=len(records),
            ours=True,
        )
    ]

    def judge(name: str, statement: str, treatment: str, part: str, what: str, sign: int) -> Claim:
        found = effect(
            treatment, what, pairs[treatment], _reader(part, what), sign=sign, seed=options.seed
        )
        return Claim(
            name,
            statement,
            f"rank-biserial effect on {what} beside the sham, positive for what is claimed",
            None,
            regions[name],
            found.rank_biserial,
            found.ci_low,
            found.ci_high,
            found.n,
            p_value=found.p_value,
            clusters=found.seeds,
            ours=True,
        )

    for treatment, (measure, sign) in TARGETS.items():
        if treatment not in pairs:
            continue
        words = "raises" if sign > 0 else "lowers"
        claims.append(
            judge(
                f"{treatment}: moved",
                f"{VERBS[treatment]} {words} {measure}: the treatment takes.",
                treatment,
                "measures",
                measure,
                sign,
            )
        )
        claims += [
            judge(
                f"{treatment}: {outcome}",
                f"{VERBS[treatment]} at a fixed train loss {better}.",
                treatment,
                "targets",
                outcome,
                direction,
            )
            for outcome, (direction, better) in OUTCOMES.items()
        ]
    return claims


def _table(records: Sequence[Record]) -> Table:
    lines: list[tuple[str | float | int | None, ...]] = []
    for name in dict.fromkeys(treatment_of(record) for record in records):
        members = [record for record in records if treatment_of(record) == name]
        means = [
            float(np.nanmean(found)) if np.isfinite(found).any() else None
            for found in (
                *(column(members, "measures", m) for m in ("hessian_trace", "minimum_sharpness",
                                                           "margin_pair_proxy", "parameter_norm")),
                *(column(members, "targets", outcome) for outcome in OUTCOMES),
            )
        ]  # fmt: skip
        loss = float(np.mean([record.facts["train_loss"] for record in members]))
        moved = float(np.mean([record.facts["moved"] for record in members]))
        lines.append((name, len(members), loss, moved, *means))
    return Table(
        "Where each treatment ends",
        (
            "treatment", "networks", "train loss", "way", "trace", "minimum sharpness",
            "pairs with margin", "weight norm", "test accuracy", "calibration error",
            "FGSM accuracy",
        ),
        tuple(lines),
        "Means over networks.",
    )  # fmt: skip


def _change_table(pairs: Mapping[str, Sequence[Pair]]) -> Table:
    lines: list[tuple[str | float | int | None, ...]] = []
    for treatment, found in pairs.items():
        for outcome in OUTCOMES:
            read = _reader("targets", outcome)
            changes = np.array([read(a) - read(b) for a, b in found])
            lines.append(
                (
                    treatment,
                    outcome,
                    len(found),
                    float(np.mean(changes)),
                    float(np.std(changes, ddof=1)) if changes.size > 1 else None,
                    int((changes > 0).sum()),
                )
            )
    return Table(
        "Treated minus sham, pair by pair",
        ("treatment", "outcome", "pairs", "mean", "spread", "higher in"),
        tuple(lines),
        "Spread is the standard deviation over seeds.",
    )


def figures(
    records: Sequence[Record], findings: Findings, folder: Path
) -> Sequence[tuple[Path, str]]:
    """Draw what each treatment moved against what became of the outcomes."""
    from matplotlib.figure import Figure

    pairs = pairs_of(records, treatment_of, _match, SHAM)
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    panels = figure.subplots(1, len(OUTCOMES))
    for axes, outcome in zip(panels, OUTCOMES, strict=True):
        read = _reader("targets", outcome)
        for place, (colour, (_, found)) in enumerate(
            zip((draw.MOVES, draw.STAYS, draw.THIRD), pairs.items(), strict=False)
        ):
            changes = [read(a) - read(b) for a, b in found]
            across = place + np.linspace(-0.25, 0.25, len(changes))
            axes.plot(across, changes, "o", color=colour, markersize=3, alpha=0.7)
            axes.plot([place - 0.3, place + 0.3], [np.mean(changes)] * 2, color=draw.INK)
        axes.axhline(0, color=draw.INK, lw=0.8)
        axes.set_xticks(range(len(pairs)), [name.replace(" ", "\n") for name in pairs])
        axes.set_ylabel(f"{outcome.replace('_', ' ')}, minus sham")
        draw.plain(axes)
    return [
        (
            draw.save(figure, folder, "intervention.png"),
            "Each treatment beside the sham of the same seed (a dot a seed, bars are means).",
        )
    ]
