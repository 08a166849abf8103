"""The study's claims; their regions were fixed before any network was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from invariance.papers.mason_williams.regularisation._methods import PUBLISHED_METHODS
from invariance.papers.mason_williams.regularisation._reading import reader
from invariance.studies._study import Record
from invariance.studies.claims._claims import Claim, Region
from invariance.studies.claims._paired_treatments import (
    Effect,
    Pair,
    Ratio,
    effect,
    ratio_at_equal,
    share_of,
)

#: The sharpness measures that the paper reports, under our names.
PUBLISHED_MEASURES = ("fisher_rao_norm", "relative_flatness", "sam_sharpness")

#: Safety outcome to words, and the sign that is better.
SAFETY: Mapping[str, tuple[str, int]] = {
    "calibration_error": ("are better calibrated", -1),
    "corruption_accuracy": ("are more robust to corruptions", 1),
    "pgd_accuracy": ("are more robust to adversarial examples", 1),
    "disagreement": ("agree more with each other", -1),
}

#: Relative change of a measure that counts as none.
FIXED = 1e-6

TITLES = {
    "fisher_rao_norm": "the Fisher-Rao norm",
    "relative_flatness": "relative flatness",
    "sam_sharpness": "SAM sharpness",
}


def claims_of(pairs: Mapping[str, Sequence[Pair]], *, seed: int = 0) -> list[Claim]:
    """Judge every claim over all data sets, architectures, batch sizes and rates."""
    methods = [name for name in PUBLISHED_METHODS if name in pairs]
    together = [pair for name in methods for pair in pairs[name]]
    claims = [_better(name, pairs[name], seed) for name in methods]
    claims += [_sharper_and_better(name, pairs[name], seed) for name in methods]
    claims += [_outcome(name, outcome, pairs[name], seed) for name in methods for outcome in SAFETY]
    claims += [_fisher_rao(name, pairs[name], seed) for name in methods]
    claims.append(_simplicity(together, seed))
    for name in PUBLISHED_MEASURES:
        claims += [
            _sharper(name, together, seed),
            _sharper_at_equal_loss(name, together, seed),
            _about_the_function(name, together, seed),
        ]
    return claims


def block_claims(
    pairs: Mapping[str, Mapping[str, Sequence[Pair]]], *, seed: int = 0
) -> list[Claim]:
    """Judge block by block whether a method's networks are sharper and better.

    Data sets that disagree cancel in the pooled share, and its interval would not show it.
    """
    return [
        _sharper_and_better(name, found[name], seed, block)
        for name in PUBLISHED_METHODS
        for block, found in pairs.items()
        if name in found
    ]


def sharper_and_better(treated: Record, untreated: Record) -> bool | None:
    """Say whether a network has the higher test accuracy and most published measures higher."""
    accuracy = reader("targets", "test_accuracy")
    gain = accuracy(treated) - accuracy(untreated)
    rises = [
        reader("measures", name)(treated) - reader("measures", name)(untreated)
        for name in PUBLISHED_MEASURES
    ]
    if not all(math.isfinite(value) for value in (gain, *rises)):
        return None
    return gain > 0 and sum(value > 0 for value in rises) * 2 > len(rises)


def same_after_rescaling(name: str, treated: Record, untreated: Record) -> bool | None:
    """Say whether a pair is ordered alike by a measure as trained and after rescaling."""
    before, after = reader("measures", name), reader("rescaled", name)
    signs = [read(treated) - read(untreated) for read in (before, after)]
    if not all(math.isfinite(value) and value != 0 for value in signs):
        return None
    return signs[0] * signs[1] > 0


def _numbers(found: Effect | Ratio) -> dict[str, Any]:
    """What a claim says of a paired comparison: its value, interval, p-value and units."""
    measured: dict[str, Any] = (
        {"value": found.rank_biserial, "p_value": found.p_value}
        if isinstance(found, Effect)
        else {"value": found.value}
    )
    return measured | {
        "ci_low": found.ci_low,
        "ci_high": found.ci_high,
        "n": found.n,
        "clusters": found.seeds,
    }


def _better(name: str, pairs: Sequence[Pair], seed: int) -> Claim:
    found = effect(name, "test_accuracy", pairs, reader("targets", "test_accuracy"), seed=seed)
    return Claim(
        name=f"better-{name}",
        statement=f"Networks trained with {name} generalise better than those without.",
        quantity="rank-biserial effect on test accuracy, pair by pair",
        paper=None,
        region=Region(low=0.0),
        **_numbers(found),
    )


def _outcome(name: str, outcome: str, pairs: Sequence[Pair], seed: int) -> Claim:
    words, sign = SAFETY[outcome]
    found = effect(name, outcome, pairs, reader("targets", outcome), sign=sign, seed=seed)
    return Claim(
        name=f"{outcome.replace('_', '-')}-{name}",
        statement=f"Networks trained with {name} {words} than those without.",
        quantity=f"rank-biserial effect on {outcome}, positive for better, pair by pair",
        paper=None,
        region=Region(low=0.0),
        **_numbers(found),
    )


def _fisher_rao(name: str, pairs: Sequence[Pair], seed: int) -> Claim:
    ratio = ratio_at_equal(
        pairs, reader("measures", "fisher_rao_norm"), reader("facts", "train_loss"), seed=seed
    )
    return Claim(
        name=f"fisher-rao-at-equal-loss-{name}",
        statement=f"By the Fisher-Rao norm networks trained with {name} are sharper at equal "
        "train loss.",
        quantity="factor on fisher_rao_norm at equal train loss",
        paper=None,
        region=Region(low=1.0),
        **_numbers(ratio),
        note="Drawn beyond the data: no pair has equal train loss." if ratio.extrapolated else "",
        ours=True,
    )


def _simplicity(pairs: Sequence[Pair], seed: int) -> Claim:
    """Judge whether the smaller norm of a pair is the better network, more often than not."""
    norm, accuracy = reader("measures", "parameter_norm"), reader("targets", "test_accuracy")

    def holds(a: Record, b: Record) -> bool | None:
        signs = (norm(a) - norm(b), accuracy(a) - accuracy(b))
        known = all(math.isfinite(value) and value != 0 for value in signs)
        return signs[0] * signs[1] < 0 if known else None

    share = share_of(pairs, holds, seed=seed)
    return Claim(
        name="simplicity-predicts-nothing",
        statement="Simplicity (a smaller weight norm) does not tell which network is better.",
        quantity="share of pairs whose network of smaller norm has the higher test accuracy",
        paper=None,
        region=Region(0.4, 0.6),
        **_numbers(share),
    )


def _sharper_and_better(name: str, pairs: Sequence[Pair], seed: int, block: str = "") -> Claim:
    share = share_of(pairs, sharper_and_better, seed=seed)
    statement = (
        f"networks trained with {name} are, more often than not, sharper and better than those "
        "without."
    )
    return Claim(
        name=f"sharper-and-better-{name}{' ' if block else ''}{block}",
        statement=f"On {block}, {statement}" if block else f"{statement[0].upper()}{statement[1:]}",
        quantity=(
            "share of pairs with the higher test accuracy and at least two of Fisher-Rao norm, "
            "relative flatness and SAM sharpness higher"
        ),
        paper=None,
        region=Region(low=0.5),
        **_numbers(share),
    )


def _sharper(name: str, pairs: Sequence[Pair], seed: int) -> Claim:
    found = effect("all", name, pairs, reader("measures", name), seed=seed)
    return Claim(
        name=f"sharper-{name}",
        statement=f"By {TITLES[name]} regularised networks are sharper than the baseline.",
        quantity=f"rank-biserial effect on {name} over all methods, as trained",
        paper=None,
        region=Region(low=0.0),
        **_numbers(found),
    )


def _sharper_at_equal_loss(name: str, pairs: Sequence[Pair], seed: int) -> Claim:
    ratio = ratio_at_equal(
        pairs, reader("measures", name), reader("facts", "train_loss"), seed=seed
    )
    return Claim(
        name=f"sharper-at-equal-loss-{name}",
        statement=f"By {TITLES[name]} they are sharper at equal train loss, too.",
        quantity=f"factor on {name} at equal train loss, over all methods",
        paper=None,
        region=Region(low=1.0),
        **_numbers(ratio),
        ours=True,
        note="Drawn beyond the data: no pair has equal train loss." if ratio.extrapolated else "",
    )


def _about_the_function(name: str, pairs: Sequence[Pair], seed: int) -> Claim:
    share = share_of(pairs, lambda a, b: same_after_rescaling(name, a, b), seed=seed)
    # A measure that no network's rescaling moves keeps every order: nothing is left to chance.
    exact = share.value == 1.0 and _fixed(name, pairs)
    return Claim(
        name=f"about-the-function-{name}",
        statement=f"Which of two networks is sharper by {TITLES[name]} is about their functions.",
        quantity=(
            f"share of pairs that {name} orders alike as trained and after a random "
            "function-preserving rescaling of each; 1 if it is, about 0.5 if it is not"
        ),
        paper=None,
        region=Region(low=0.9),
        value=share.value,
        ci_low=share.value if exact else share.ci_low,
        ci_high=share.value if exact else share.ci_high,
        n=share.n,
        exact=exact,
        basis="theorem" if exact else "sample",
        ours=True,
        clusters=share.seeds,
        note="Not asked in the paper."
        + (" No network's value moves when it is rescaled." if exact else ""),
    )


def _fixed(name: str, pairs: Sequence[Pair]) -> bool:
    before, after = reader("measures", name), reader("rescaled", name)
    return all(
        math.isclose(before(record), after(record), rel_tol=FIXED)
        for pair in pairs
        for record in pair
        if math.isfinite(before(record))
    )
