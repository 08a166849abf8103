"""The gate against itself: correct measures on random cases must never set it off.

``python -m invariance.testing.soak --cases 500 --runs 20`` draws, for every registered
measure, that many networks, data sets and maps under every seed, and holds the measure to
its declaration (invariance and laws alike). One false alarm fails the run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

import invariance.measures  # noqa: F401 - importing fills the registry
from invariance import transforms as T
from invariance.core.errors import InvarianceError
from invariance.core.groups import Group
from invariance.core.rng import generator
from invariance.measures.registry import Measure, all_measures, get_measure
from invariance.models import mlp
from invariance.testing.examine import examine
from invariance.testing.faults import FaultyMeasureError
from invariance.testing.findings import Finding
from invariance.testing.members import draw_member
from invariance.testing.strategies import random_data, randomize, train_briefly
from invariance.testing.subject import subject, wanted_groups
from invariance.transforms.base import Transform

#: Kinds that need a BatchNorm in the network, and one that needs an odd activation or none.
NEED_NORM = (Group.BATCHNORM_FOLD, Group.BATCHNORM_SCALING, Group.SIGN_FLIP)

#: Refusals for each compared case (plus one) before a measure is given up: one that gives
#: estimates only, or that knows another architecture, has nothing to compare.
PATIENCE = 10


@dataclass(frozen=True)
class Tally:
    """What came of one measure under one seed.

    Attributes:
        measure: The measure's name.
        checked: Cases that were compared.
        refused: Cases that the measure or the map declined, with a reason each.
        alarms: Broken declarations: false alarms, if the measure is correct.
        reason: The last reason for a refusal.
        seconds: Wall-clock time.
    """

    measure: str
    checked: int
    refused: int
    alarms: tuple[str, ...]
    reason: str
    seconds: float

    def __str__(self) -> str:
        state = f"{len(self.alarms)} ALARMS" if self.alarms else "no alarm"
        refused = f", {self.refused} refused ({self.reason[:80]})" if self.refused else ""
        return f"{self.measure}: {self.checked} cases, {state}{refused}, {self.seconds:.1f} s"


def soak(measure: Measure, cases: int, seed: int) -> Tally:
    """Hold one measure to its declaration on random cases.

    Args:
        measure: A registered measure.
        cases: How many cases to compare.
        seed: Decides all of them.

    Returns:
        What came of it.
    """
    started = time.perf_counter()
    checked, refused, reason = 0, 0, ""
    alarms: list[str] = []
    number = 0
    while checked < cases and refused < PATIENCE * (checked + 1):
        case = f"seed {seed}, case {number}"
        try:
            findings = one_case(measure, seed, number)
        except FaultyMeasureError as error:
            alarms.append(f"{case}: {error}")
        except InvarianceError as error:
            refused, reason = refused + 1, str(error)
            number += 1
            continue
        else:
            alarms += [f"{case}: {finding}" for finding in findings]
        checked += 1
        number += 1
    elapsed = time.perf_counter() - started
    return Tally(measure.name, checked, refused, tuple(alarms), reason, elapsed)


def one_case(measure: Measure, seed: int, number: int) -> tuple[Finding, ...]:
    """Draw one network, data set and map, and compare.

    Args:
        measure: A registered measure.
        seed: Seed of the run.
        number: Number of the case within it.

    Returns:
        Broken declarations, none for a correct measure.
    """
    stream = generator(seed, "soak", measure.name, number)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=stream))

    hidden = [integer(1, 7) for _ in range(integer(1, 3))]
    features, classes, rows = integer(2, 6), integer(2, 4), integer(6, 16)
    declared = set(measure.invariant_under) | set(measure.laws)
    bound_groups = sorted(declared - {Group.COORDINATES, Group.LINEAR_MIXING})
    group = bound_groups[integer(0, len(bound_groups) - 1)]
    norm = group in NEED_NORM or bool(integer(0, 1))
    case_seed = integer(0, 2**30)
    model = mlp(
        (features, *hidden, classes),
        activation=("relu", "leaky_relu")[integer(0, 1)],
        batch_norm=norm,
        bias=bool(integer(0, 3)),
        seed=case_seed,
        dtype=torch.float64,
    ).eval()
    randomize(model, case_seed)
    if integer(0, 1):
        train_briefly(model, features, classes, case_seed, 40)
    x, y = random_data(rows, features, classes, case_seed)
    bound = subject(measure, model, x, y, seed=case_seed, allow_constant=True)
    transform: Transform = draw_member(group, model, case_seed)
    if integer(0, 3) == 0 and Group.PERMUTATION in wanted_groups(bound, None, laws=True):
        transform = T.Compose([transform, T.Permutation(case_seed)])
    _, findings = examine(bound, [transform], strict=True, judged=True, explained=False)
    return findings


def chosen(names: Iterable[str]) -> list[Measure]:
    """Return the named measures, or all that declare anything."""
    wanted = list(names) or list(all_measures())
    found = [get_measure(name) for name in wanted]
    return [entry for entry in found if entry.invariant_under or entry.laws]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns 1 if there was any alarm."""
    parser = argparse.ArgumentParser(prog="python -m invariance.testing.soak", description=__doc__)
    parser.add_argument("measures", nargs="*", help="registered names; all by default")
    parser.add_argument("--cases", type=int, default=500, help="cases a measure (500)")
    parser.add_argument("--runs", type=int, default=20, help="runs with a seed each (20)")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    options = parser.parse_args(arguments)
    alarms = compared = 0
    for seed in range(options.seed, options.seed + options.runs):
        for measure in chosen(options.measures):
            tally = soak(measure, options.cases, seed)
            alarms, compared = alarms + len(tally.alarms), compared + tally.checked
            sys.stdout.write(f"run {seed}  {tally}\n")
            for alarm in tally.alarms[:3]:
                sys.stdout.write(f"{alarm}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{compared} cases compared, {alarms} alarms\n")
    return int(alarms > 0)


if __name__ == "__main__":
    sys.exit(main())
