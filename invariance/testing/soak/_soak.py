"""The gate against itself: correct measures on random cases must never set it off.

``python -m invariance.testing.soak --cases 500 --runs 20`` draws networks, data and maps
under every seed and holds every registered measure to its declaration (invariance and laws
alike) until it was compared 500 times a seed. One false alarm or crash fails the run.

Each network is drawn, trained, traced and transformed once, and all measures are put through
it by the code that ``assert_invariant`` runs. A case depends on its seed and number alone, so
an alarm is shown again, explained, by ``... soak NAME --seed 3 --case 17``. With ``--progress
FILE`` a run that was stopped goes on where it was; measures registered since then catch up.

Measures that sample owe a twenty-fifth of the cases, and two that trace the network anew at
every call a fifth, unless ``--full`` asks for all. One that gives only estimates on such
networks has nothing to compare and is listed as given up: its place is
:func:`invariance.testing.assert_equal_in_law`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import invariance.measures  # noqa: F401 - importing fills the registry
from invariance.cells import BrokenTransformError, FaultyMeasureError
from invariance.cells._faults import first_change, model_state
from invariance.core._errors import InvarianceError
from invariance.core._groups import Group
from invariance.measures._registry import Measure, all_measures, get_measure
from invariance.testing.gate._bound_measure import bind
from invariance.testing.gate._examine import examine
from invariance.testing.gate._findings import Certificate, Finding
from invariance.testing.soak._cases import SoakCase, draw_case
from invariance.transforms._base import Transform

#: Refusals for each network that was compared (plus one) before a measure is given up: one that
#: gives estimates only, or that knows another architecture, has nothing to compare.
PATIENCE = 10

#: A measure that samples or counts by search costs a hundred times one that does not.
SAMPLING_SHARE = 25

#: Measures that reduce the network's width first: a third of all time for a fifteenth of all
#: measures. They owe the cases divided by this.
SHARES: Mapping[str, int] = {"repaired_activation_patterns": 5, "repaired_free_regions": 5}


@dataclass(frozen=True)
class Tally:
    """What came of one measure under one seed, so far.

    Attributes:
        measure: The measure's name.
        compared: Comparisons: a network, data and a map each.
        networks: Different networks among them.
        refused: Networks that the measure declined.
        declined: Comparisons that it declined after the map only.
        alarms: Broken declarations and crashes: false alarms, if the measure is correct.
        kinds: Comparisons by kind of map.
        reason: The last reason for a refusal.
        cursor: Number of the next case.
        seconds: Wall-clock time of the measure alone.
    """

    measure: str
    compared: int = 0
    networks: int = 0
    refused: int = 0
    declined: int = 0
    alarms: tuple[str, ...] = ()
    kinds: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""
    cursor: int = 0
    seconds: float = 0.0

    @property
    def given_up(self) -> bool:
        """True for a measure that refused too often to go on."""
        return self.refused >= PATIENCE * (self.networks + 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the tally as plain data, for JSON."""
        return {**vars(self), "alarms": list(self.alarms)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tally:
        """Return the tally that :meth:`to_dict` wrote."""
        return cls(**{**data, "alarms": tuple(data["alarms"])})

    def __str__(self) -> str:
        state = f"{len(self.alarms)} ALARMS" if self.alarms else "no alarm"
        refused = f", {self.refused} refused ({self.reason[:80]})" if self.refused else ""
        given_up = ", given up" if self.given_up else ""
        return (
            f"{self.measure}: {self.compared} cases of {self.networks} networks, {state}{refused}"
            f"{given_up}, {self.seconds:.1f} s"
        )


def budget(measure: Measure, cases: int) -> int:
    """Return how many comparisons a measure owes when others owe ``cases``."""
    share = SAMPLING_SHARE if measure.cost == "sampling" else SHARES.get(measure.name, 1)
    return max(1, cases // share)


def soak(measures: Sequence[Measure], cases: int, seed: int) -> dict[str, Tally]:
    """Hold measures to their declarations on the random cases of one seed."""
    owed = {entry.name: budget(entry, cases) for entry in measures}
    tallies = {entry.name: Tally(entry.name) for entry in measures}
    while open_measures(measures, owed, tallies):
        tallies = advance(measures, owed, tallies, seed, networks=1)
    return tallies


def open_measures(
    measures: Sequence[Measure], owed: Mapping[str, int], tallies: Mapping[str, Tally]
) -> list[Measure]:
    """Return the measures that still owe comparisons."""
    return [
        entry
        for entry in measures
        if tallies[entry.name].compared < owed[entry.name] and not tallies[entry.name].given_up
    ]


def advance(
    measures: Sequence[Measure],
    owed: Mapping[str, int],
    tallies: Mapping[str, Tally],
    seed: int,
    *,
    networks: int,
) -> dict[str, Tally]:
    """Put the measures that still owe comparisons through the next networks."""
    current = dict(tallies)
    for _ in range(networks):
        waiting = open_measures(measures, owed, current)
        if not waiting:
            break
        number = min(current[entry.name].cursor for entry in waiting)
        ready = [entry for entry in waiting if current[entry.name].cursor == number]
        case = draw_case(seed, number)
        left = {entry.name: owed[entry.name] - current[entry.name].compared for entry in ready}
        for tally in one_case(case, ready, left):
            current[tally.measure] = _added(current[tally.measure], tally)
    return current


def one_case(case: SoakCase, measures: Sequence[Measure], left: Mapping[str, int]) -> list[Tally]:
    """Put measures through one case."""
    tallies = []
    try:
        maps = {
            entry.name: case.admitted(declared_kinds(entry))[: left[entry.name]]
            for entry in measures
        }
    except BrokenTransformError as error:
        return [_tally(entry, case, alarms=(f"{case}: {error}",)) for entry in measures]
    before = [model_state(model) for model in case.network.models()]
    for entry in measures:
        started = time.perf_counter()
        tally = _compare(case, entry, maps[entry.name])
        tallies.append(replace(tally, seconds=time.perf_counter() - started))
    for state, model in zip(before, case.network.models(), strict=True):
        if what := first_change(state, model_state(model)):
            alarm = f"{case}: one of the measures changed a transformed network ({what})."
            return [replace(tally, alarms=(*tally.alarms, alarm)) for tally in tallies]
    return tallies


def _compare(case: SoakCase, measure: Measure, maps: Sequence[Transform]) -> Tally:
    if not maps:
        return _tally(measure, case)
    kinds: dict[str, int] = {}
    try:
        certificate, findings = judged(case, measure, maps)
    except FaultyMeasureError as error:
        return _tally(measure, case, compared=len(maps), alarms=(f"{case}: {error}",))
    except InvarianceError as error:
        return _tally(measure, case, refused=1, reason=str(error))
    except Exception as error:  # a crash is an alarm too; say where, and go on
        crash = f"{case}: {measure.name} raised {type(error).__name__}: {error}"
        return _tally(measure, case, compared=len(maps), alarms=(crash,))
    for row in certificate.rows:
        kinds[row.transform] = kinds.get(row.transform, 0) + 1
    reasons = [entry.reason for entry in certificate.refused]
    return _tally(
        measure,
        case,
        compared=len(certificate.rows),
        declined=len(reasons),
        alarms=tuple(f"{case}: {finding}" for finding in findings),
        kinds=kinds,
        reason=reasons[-1] if reasons else "",
    )


def judged(
    case: SoakCase, measure: Measure, maps: Sequence[Transform], *, explained: bool = False
) -> tuple[Certificate, tuple[Finding, ...]]:
    """Compare a measure before and after maps by the code of ``assert_invariant``."""
    bound = bind(
        measure,
        case.model,
        case.x,
        case.y,
        seed=case.member_seed,
        allow_constant=True,
        network=case.network,
    )
    return examine(bound, maps, judged=True, explained=explained)


def declared_kinds(measure: Measure) -> frozenset[Group]:
    """Return the kinds of map under which a measure declares invariance or a law."""
    return measure.invariant_under | frozenset(measure.laws)


def chosen(names: Iterable[str]) -> list[Measure]:
    """Return the named measures, or all that declare anything."""
    found = [get_measure(name) for name in list(names) or all_measures()]
    return [entry for entry in found if declared_kinds(entry)]


def _tally(measure: Measure, case: SoakCase, **facts: Any) -> Tally:
    networks = int(facts.get("compared", 0) > 0)
    return Tally(measure.name, networks=networks, cursor=case.number + 1, **facts)


def _added(total: Tally, part: Tally) -> Tally:
    kinds = dict(total.kinds)
    for kind, count in part.kinds.items():
        kinds[kind] = kinds.get(kind, 0) + count
    return Tally(
        measure=total.measure,
        compared=total.compared + part.compared,
        networks=total.networks + part.networks,
        refused=total.refused + part.refused,
        declined=total.declined + part.declined,
        alarms=total.alarms + part.alarms,
        kinds=kinds,
        reason=part.reason or total.reason,
        cursor=part.cursor,
        seconds=total.seconds + part.seconds,
    )
