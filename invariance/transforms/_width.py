"""What the transforms that change a network's width share."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from invariance.core._applied import Action, ParameterAction, Verification
from invariance.core._errors import TransformError, unknown_name
from invariance.symmetry._structures import SCALING_KINDS, Symmetries
from invariance.symmetry._verify import verify
from invariance.symmetry.elements._width_surgery import Surgery


def begin_surgery(
    model: nn.Module, x: tuple[Any, ...], who: str, *, track: bool = False
) -> Surgery:
    """Analyse a network and copy it for surgery."""
    from invariance.symmetry.analysis._symmetries import symmetries as analyse

    return Surgery(model, analyse(model, x), who, track=track)


def check_count(who: str, count: object) -> None:
    """Raise unless ``count`` is a whole number of at least 1."""
    if isinstance(count, bool) or not (isinstance(count, numbers.Integral) and int(count) >= 1):
        raise TransformError(f"{who}: count must be an integer, at least 1. Got {count!r}.")


def chosen_places(
    surgery: Surgery, sites: Sequence[str] | None, who: str
) -> tuple[tuple[int, ...], dict[str, str]]:
    """Resolve site names to groups; without names, all groups that can change."""
    groups = surgery.found.groups
    reasons = {groups[place].site: reason for place, reason in surgery.refused.items()}
    if sites is None:
        if not surgery.places:
            raise TransformError(
                f"{who}: no group of hidden units can change its size. "
                + (" ".join(reasons.values()) or "The network has no permutable hidden units.")
            )
        return surgery.places, reasons
    known = {groups[place].site: place for place in (*surgery.places, *surgery.refused)}
    places = []
    for site in sites:
        if site not in known:
            raise unknown_name("group of units", site, known)
        if known[site] in surgery.refused:
            raise TransformError(surgery.refused[known[site]])
        places.append(known[site])
    return tuple(places), reasons


def operate(
    surgery: Surgery,
    places: Sequence[int],
    step: Callable[[Surgery, int], object],
    reference: tuple[nn.Module, tuple[Any, ...]],
    *,
    strict: bool,
) -> tuple[Surgery, dict[str, object], dict[str, str], Verification]:
    """Run one step a group, each verified; keep what holds and say why the rest does not."""
    old, x = reference
    done: dict[str, object] = {}
    refused: dict[str, str] = {}
    evidence: Verification | None = None
    if not strict and len(places) > 1:
        # One verification of everything together; one by one only to find what does not hold.
        together = surgery.copy()
        with suppress(TransformError):
            for place in places:
                did = step(together, place)
                if did is not None:
                    done[surgery.found.groups[place].site] = did
            if done:
                return together, done, {}, _run(old, together, x, ", ".join(done))
        done = {}
    for place in places:
        site = surgery.found.groups[place].site
        attempt = surgery.copy()
        try:
            did = step(attempt, place)
            if did is None:
                continue
            evidence = _run(old, attempt, x, site)
        except TransformError as error:
            if strict:
                raise
            refused[site] = str(error)
            continue
        surgery, done[site] = attempt, did
    if evidence is None:
        raise TransformError(
            f"{surgery.who}: no group of hidden units could be changed. "
            + " ".join(refused.values())
        )
    return surgery, done, refused, evidence


def _run(old: nn.Module, attempt: Surgery, x: tuple[Any, ...], site: str) -> Verification:
    """Run the changed network; a forward pass that fails hard-codes a size."""
    try:
        return verify(old, attempt.model, x, f"{attempt.who} at {site!r}")
    except TransformError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise TransformError(
            f"{attempt.who}: with another number of units at {site!r} the forward pass fails; it "
            f"hard-codes their number: {str(error).splitlines()[0]}"
        ) from error


def per_entry_action(surgery: Surgery) -> Action:
    """Read the action off the surgery's records."""
    return Action(
        {
            name: ParameterAction(name, surgery.gradient[name], surgery.index[name])
            for name in surgery.index
        }
    )


def piecewise_linear(found: Symmetries, place: int) -> bool:
    """Whether a positive scale passes through the units, so that no curvature is in them."""
    stream = found.groups[place].stream
    return any(g.stream == stream and g.kind in SCALING_KINDS for g in found.groups)
