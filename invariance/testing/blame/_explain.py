"""From a broken claim to the layer, the smallest factor and the parameters to blame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from invariance.cells import Cell, CellEngine
from invariance.core._errors import InvarianceError
from invariance.testing.blame._causes import blame
from invariance.testing.blame._narrowing import Ladder, family_of, ladders
from invariance.testing.blame._trends import FACTORS, Trend, fit_trend
from invariance.testing.gate._findings import Finding, SiteFinding, replay_line
from invariance.transforms._base import Transform

#: Sites whose trend is fitted; each costs one evaluation a factor.
MAX_TRENDS = 4


def explained(finding: Finding, made: CellEngine, transform: Transform) -> Finding:
    """Narrow a broken claim down to its sites and look for its cause."""
    sites: list[SiteFinding] = []
    intact: list[Ladder] = []
    breakers: list[Transform] = []
    try:
        for ladder in ladders(transform, made.model, made.example):
            found = _climb(made, ladder, fit=len(sites) < MAX_TRENDS)
            if found is None:
                intact.append(ladder)
            else:
                sites.append(found[0])
                breakers.append(found[1])
    except InvarianceError:
        pass  # the graph cannot be analysed; the whole transform is then the smallest known
    smallest = next((s for s in sites if s.trend is not None and not s.trend.flat), None)
    smallest = smallest or next(iter(sites), None)
    if smallest is None:
        smallest = _whole(made, transform)
        breakers = [transform]
    cause = blame(made, [transform, *breakers])
    label = smallest.transform if smallest else repr(transform)
    return replace(
        finding,
        sites=tuple(sites),
        intact=tuple(ladder.site for ladder in intact if ladder.site),
        responsible=responsible(sites, [ladder.layers for ladder in intact]),
        smallest=smallest,
        cause=cause[0] if cause else "",
        explanation=cause[1] if cause else "",
        replay=replay_line(label, finding.dtype),
    )


def responsible(
    broken: Sequence[SiteFinding], intact: Sequence[tuple[str, ...]]
) -> tuple[str, ...]:
    """Name the layers to blame, by elimination.

    A map at one site moves several layers. One that also takes part where the value stays is
    cleared; if a single remaining layer takes part in every failure, and every failure is a
    pure power (one factor, not a sum over layers), it is to blame alone.
    """
    cleared = {name for layers in intact for name in layers}
    suspects = list(dict.fromkeys(name for site in broken for name in site.layers))
    left = [name for name in suspects if name not in cleared] or suspects
    pure = all(site.trend is not None and site.trend.exponent is not None for site in broken)
    if pure:
        common = [name for name in left if all(name in site.layers for site in broken)]
        # Only ends of a chain share all their failures; the one in the middle is the cause.
        if common and len(broken) > 1:
            left = common
    return tuple(left)


def _climb(made: CellEngine, ladder: Ladder, *, fit: bool) -> tuple[SiteFinding, Transform] | None:
    """Return the first step of a ladder that breaks the claim, made as small as it goes."""
    step = _first_moved(made, ladder.steps)
    if step is None:
        return None
    cell = _first_moved(made, ladder.finer) or step
    trend = trend_along(made, ladder.site, ladder.family) if fit and ladder.family else None
    factor = getattr(cell.transform, "factor", None) if ladder.family else None
    if factor is None and ladder.family is not None:
        factor = next((f for f in getattr(cell.transform, "factors", ()) if float(f) != 1.0), None)
    found = SiteFinding(
        site=ladder.site,
        transform=repr(cell.transform),
        factor=None if factor is None else float(factor),
        before=cell.row.before,
        after=cell.row.after,
        trend=trend,
        layers=ladder.layers,
    )
    return found, cell.transform


def _first_moved(made: CellEngine, steps: Iterable[Transform]) -> Cell | None:
    for step in steps:
        try:
            cell = made.cell(step)
        except InvarianceError:
            continue
        if cell.moved:
            return cell
    return None


def _whole(made: CellEngine, transform: Transform) -> SiteFinding | None:
    """A transform whose sites are unknown, or only jointly to blame, at its smallest factor."""
    family = family_of(transform)
    if family is None:
        return None
    ladder = Ladder("", tuple(family(factor) for factor in (2.0, 4.0, 16.0)), family)
    found = _climb(made, ladder, fit=True)
    return found[0] if found else None


def trend_along(made: CellEngine, site: str, family: Callable[[float], Transform]) -> Trend | None:
    """Sample the value along one scaling; ``None`` if it is not finite everywhere."""
    values = []
    try:
        for factor in FACTORS:
            if factor == 1.0:
                values.append(float(made.before))
                continue
            with_factor = made.cell(family(factor))
            values.append(with_factor.row.after)
    except InvarianceError:
        return None
    return fit_trend(site, FACTORS, values)
