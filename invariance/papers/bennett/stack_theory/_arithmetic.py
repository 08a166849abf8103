"""Binary arithmetic from examples: the weakest correct hypothesis against the shortest.

The setting follows the experiment of Bennett, arXiv 2301.12987, whose text leaves open
how hypotheses are searched; this is our own version, stated in full.

* Two ``b``-bit numbers are added or multiplied. A situation is a string of 2b input bits
  and the output bits. A child task shows the right output for k of the ``4^b`` inputs.
* A program is a rule "if the input lies in this cube, output bit j is v"; a cube fixes up
  to ``max_literals`` input bits. As a set of situations, it forbids those in the cube
  whose bit j is not v. A hypothesis is a set of rules.
* It is correct for the child if at every shown input it permits the right output only.
* The shortest correct hypothesis minimises the total length of its rules (literals
  plus one each). The weakest permits the most situations of each output bit. Both are
  found exactly: every irredundant cover of the shown inputs by admissible cubes is
  visited. Ties are averaged over, uniformly over distinct hypotheses (as sets).
* Scores on the held-out inputs. ``survives``: the right output is permitted at every one
  (the theory's criterion). ``extent``: share of them where it is. ``decided``: share
  where the right output is the only one permitted. ``exact``: so at every one.
  ``accuracy``: chance to be right when each output bit is drawn uniformly from what is
  permitted (from both values if neither is).

A warning that the numbers bear out: where rules may name single inputs, the weakest
hypothesis only memorises; it survives every demand and decides nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from invariance.core._errors import MeasureError, unknown_name
from invariance.core._rng import generator
from invariance.papers.bennett.stack_theory._vocabulary import bits, union

Operation = Literal["addition", "multiplication"]
SCORES = ("survives", "extent", "decided", "exact", "accuracy")
#: Set of covered inputs to the length of the shortest rule list that covers just that.
Covers = dict[int, int]


@dataclass(frozen=True)
class Arithmetic:
    """A binary operation on two small numbers, and the rules that may describe it.

    Attributes:
        operation: ``"addition"`` or ``"multiplication"``.
        width: Bits b of each number; inputs are numbered ``left * 2^b + right``.
        max_literals: How many input bits a rule's condition may fix, 0 to 2b.
    """

    operation: Operation = "addition"
    width: int = 2
    max_literals: int = 3

    def __post_init__(self) -> None:
        if self.operation not in ("addition", "multiplication"):
            raise unknown_name("operation", self.operation, ("addition", "multiplication"))
        if not 1 <= self.width <= 2:
            raise MeasureError(f"width must be 1 or 2 (exact search). Got {self.width}.")
        if not 0 <= self.max_literals <= 2 * self.width:
            raise MeasureError(
                f"max_literals must be between 0 and {2 * self.width}. Got {self.max_literals}."
            )

    @property
    def inputs(self) -> int:
        """Number of different inputs, ``4^b``."""
        return 1 << (2 * self.width)

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """For each output bit that is not constant, the set of inputs where it is 1."""
        side = 1 << self.width
        results = [
            left + right if self.operation == "addition" else left * right
            for left, right in itertools.product(range(side), repeat=2)
        ]
        sets = (
            union(1 << x for x, value in enumerate(results) if value >> j & 1)
            for j in range(max(results).bit_length())
        )
        return tuple(ones for ones in sets if 0 < ones.bit_count() < self.inputs)

    @cached_property
    def cubes(self) -> tuple[tuple[int, int], ...]:
        """Every condition: the set of inputs that meet it, and how many bits it fixes."""
        width = 2 * self.width
        found = []
        for fixed in itertools.product((None, 0, 1), repeat=width):
            literals = sum(value is not None for value in fixed)
            if literals <= self.max_literals:
                members = union(
                    1 << x
                    for x in range(self.inputs)
                    if all(v is None or x >> i & 1 == v for i, v in enumerate(fixed))
                )
                found.append((members, literals))
        return tuple(found)


@lru_cache(maxsize=4096)
def irredundant_covers(problem: Arithmetic, wanted: int, forbidden: int) -> Covers:
    """Every union of an irredundant cover of ``wanted`` by cubes that avoid ``forbidden``.

    Takes the wanted inputs in order; whenever one is not yet covered, tries every
    admissible cube that holds it. Every irredundant cover is reached that way.
    """
    cubes = [(cube, size + 1) for cube, size in problem.cubes if not cube & forbidden]
    frontier: Covers = {0: 0}
    for x in bits(wanted):
        holding = [(cube, cost) for cube, cost in cubes if cube >> x & 1]
        grown: Covers = {}
        for covered, length in frontier.items():
            moves = [(0, 0)] if covered >> x & 1 else holding
            for cube, cost in moves:
                key, total = covered | cube, length + cost
                if total < grown.get(key, total + 1):
                    grown[key] = total
        frontier = grown
    return frontier


@dataclass(frozen=True)
class _Side:
    """The tied best sets of inputs at which one output bit is denied one value."""

    choices: tuple[int, ...]

    def chance(self, test: int, *, covers: bool) -> Fraction:
        """Share of the choices that contain (or else avoid) all of ``test``."""
        good = sum((not test & ~c) if covers else (not test & c) for c in self.choices)
        return Fraction(good, len(self.choices))


def _best(covers: Covers, rule: str) -> _Side:
    cost = {u: length if rule == "shortest" else u.bit_count() for u, length in covers.items()}
    least = min(cost.values())
    return _Side(tuple(u for u, value in cost.items() if value == least))


def score(problem: Arithmetic, shown: int, rule: str) -> dict[str, Fraction] | None:
    """Score the hypotheses that ``rule`` picks from one child task, exactly."""
    if rule not in ("weakest", "shortest"):
        raise unknown_name("rule", rule, ("weakest", "shortest"))
    everything = (1 << problem.inputs) - 1
    held = everything & ~shown
    if not 0 < shown < everything:
        raise MeasureError("Show at least one input and hold out at least one.")
    sides = []
    for ones in problem.columns:
        pair = []
        for right in (ones, everything & ~ones):
            # Where the right value is v, deny the other; never deny v where it is shown.
            covers = irredundant_covers(problem, shown & right, shown & ~right)
            if not covers:
                return None
            pair.append((_best(covers, rule), right))
        sides.append(pair)

    survives = exact = Fraction(1)
    for pair in sides:
        for denial, right in pair:
            survives *= denial.chance(held & ~right, covers=False)
            good = [c for c in denial.choices if c & held == right & held]
            exact *= Fraction(len(good), len(denial.choices))
    extent = decided = accuracy = Fraction(0)
    for x in bits(held):
        permitted = settled = guessed = Fraction(1)
        for pair in sides:
            denies_wrong, denies_right = (
                side.chance(1 << x, covers=True)
                for side, _ in sorted(pair, key=lambda entry: not entry[1] >> x & 1)
            )
            permitted *= 1 - denies_right
            settled *= (1 - denies_right) * denies_wrong
            both_or_none = denies_wrong * denies_right + (1 - denies_wrong) * (1 - denies_right)
            guessed *= denies_wrong * (1 - denies_right) + both_or_none / 2
        extent, decided, accuracy = extent + permitted, decided + settled, accuracy + guessed
    count = held.bit_count()
    values = (survives, extent / count, decided / count, exact, accuracy / count)
    return dict(zip(SCORES, values, strict=True))


@dataclass(frozen=True)
class ArithmeticResult:
    """Mean scores of both rules over child tasks of one size.

    Attributes:
        problem: The operation and its rules.
        shown: How many inputs each child task shows.
        tasks: How many child tasks were scored.
        unrepresentable: How many more had no correct hypothesis in the vocabulary.
        enumerated: True if these are all child tasks of that size: means are then exact.
        weakest: Score name to its mean.
        shortest: Score name to its mean.
        difference: Score name to the mean of weakest minus shortest.
        half_width: Score name to the half-width of a 95 % confidence interval of
            ``difference`` over the draw of child tasks (0 when enumerated).
        half_widths: Rule name to the same for its own means.
    """

    problem: Arithmetic
    shown: int
    tasks: int
    unrepresentable: int
    enumerated: bool
    weakest: dict[str, Fraction]
    shortest: dict[str, Fraction]
    difference: dict[str, Fraction]
    half_width: dict[str, float]
    half_widths: dict[str, dict[str, float]]


def _child_tasks(problem: Arithmetic, shown: int, tasks: int, seed: int) -> tuple[list[int], bool]:
    total = math.comb(problem.inputs, shown)
    if total <= tasks:
        chosen = itertools.combinations(range(problem.inputs), shown)
        return [union(1 << x for x in group) for group in chosen], True
    stream = generator(seed, "arithmetic", problem.operation, problem.width, shown)
    drawn: set[int] = set()
    while len(drawn) < tasks:
        order = torch.randperm(problem.inputs, generator=stream).tolist()
        drawn.add(union(1 << x for x in order[:shown]))
    return sorted(drawn), False


def _half_width(values: Sequence[Fraction], total: int) -> float:
    """Half-width of a 95 % t-interval of the mean, for a draw without replacement."""
    from scipy import stats

    n = len(values)
    if n < 2 or n == total:
        return 0.0 if n == total else math.inf
    column: npt.NDArray[np.float64] = np.array([float(value) for value in values])
    correction = math.sqrt((total - n) / (total - 1))
    return float(stats.t.ppf(0.975, n - 1) * column.std(ddof=1) / math.sqrt(n) * correction)


def arithmetic_experiment(
    problem: Arithmetic, shown: int, *, tasks: int = 200, seed: int = 0
) -> ArithmeticResult:
    """Compare the weakest with the shortest correct hypothesis over child tasks.

    Args:
        problem: The operation, its width and the rules.
        shown: Inputs that each child task shows, from 1 to all but one.
        tasks: Child tasks to draw, all different; all of them when there are no more.
        seed: Seed of the draw.

    Returns:
        Exact means over the scored tasks, and confidence intervals for the draw.

    Raises:
        MeasureError: If ``shown`` is out of range or no task can be represented.
    """
    if not 1 <= shown < problem.inputs:
        raise MeasureError(f"shown must be between 1 and {problem.inputs - 1}. Got {shown}.")
    chosen, enumerated = _child_tasks(problem, shown, tasks, seed)
    pairs = []
    for child in chosen:
        weak = score(problem, child, "weakest")
        short = score(problem, child, "shortest")
        if weak is not None and short is not None:
            pairs.append((weak, short))
    if not pairs:
        raise MeasureError(
            f"Rules of at most {problem.max_literals} literals cannot describe any child task "
            f"with {shown} shown inputs. Raise max_literals."
        )
    total = len(pairs) if enumerated else math.comb(problem.inputs, shown)
    columns = {
        "weakest": {name: [weak[name] for weak, _ in pairs] for name in SCORES},
        "shortest": {name: [short[name] for _, short in pairs] for name in SCORES},
        "difference": {
            name: [weak[name] - short[name] for weak, short in pairs] for name in SCORES
        },
    }
    means = {
        key: {name: sum(values, Fraction(0)) / len(values) for name, values in column.items()}
        for key, column in columns.items()
    }
    widths = {
        key: {name: _half_width(values, total) for name, values in column.items()}
        for key, column in columns.items()
    }
    return ArithmeticResult(
        problem=problem,
        shown=shown,
        tasks=len(pairs),
        unrepresentable=len(chosen) - len(pairs),
        enumerated=enumerated,
        weakest=means["weakest"],
        shortest=means["shortest"],
        difference=means["difference"],
        half_width=widths["difference"],
        half_widths={key: widths[key] for key in ("weakest", "shortest")},
    )
