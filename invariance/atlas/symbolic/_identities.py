"""What a reading is: identities between the old network and the new, checked by algebra."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal
from zlib import crc32

import sympy as sp

from invariance.atlas.symbolic._maps import SymbolicMap
from invariance.atlas.symbolic._networks import Expr, Key, Network
from invariance.core._groups import ABOUT


@dataclass(frozen=True)
class Identity:
    """One equation that has to hold for all values of all symbols.

    Attributes:
        label: Its name in words.
        left: The new network's quantity, in the old network's symbols.
        right: What it has to be.
    """

    label: str
    left: Expr
    right: Expr

    @cached_property
    def holds(self) -> bool:
        """Whether the two sides are one rational function."""
        if self.left == self.right:
            return True
        # A false equation shows at the first point, in exact arithmetic and at little cost.
        if _value(self.left) != _value(self.right):
            return False
        difference = sp.expand(self.left - self.right)
        if difference == 0:
            return True
        return bool(sp.expand(sp.fraction(sp.together(difference))[0]) == 0)


def _value(expression: Expr) -> Expr:
    """Evaluate at a point of primes, each symbol at its own."""
    symbols = sorted(sp.S(expression).free_symbols, key=str)
    point = {symbol: sp.Integer(_prime(str(symbol))) for symbol in symbols}
    return sp.S(expression).xreplace(point)


def _prime(name: str) -> int:
    return int(sp.prime(3 + crc32(name.encode()) % 400))


class NotReadError(Exception):
    """The map's form alone rules the reading out."""


Checks = Callable[[SymbolicMap], Iterator[Identity]]


@dataclass(frozen=True)
class Reading:
    """What some measures are a function of.

    Attributes:
        name: How measures refer to it.
        says: What is compared, in words.
        lemma: Why a measure that is determined by it does not move.
        checks: The identities for one map.
        kind: What follows: the value stays, or the stated law holds.
        of_function: Whether it is the same in any coordinates of the parameters: a property of
            the function and its units, not of the numbers that are differentiated by.
    """

    name: str
    says: str
    lemma: str
    checks: Checks
    kind: Literal["invariant", "law"] = "invariant"
    of_function: bool = False


def shared(made: SymbolicMap, checks: Checks) -> list[Identity]:
    """Return what several readings ask of a map, so that it is checked once."""
    if checks not in made.shared:
        made.shared[checks] = list(checks(made))
    found: list[Identity] = made.shared[checks]
    return found


def parameter_name(key: Key) -> str:
    return f"{key[0]}[{', '.join(map(str, key[1:]))}]"


def head_of(values: list[Expr], head: tuple[int, ...]) -> Expr:
    return values[head[0]] - (values[head[1]] if len(head) > 1 else 0)


def head_name(head: tuple[int, ...]) -> str:
    return f"f_{head[0]}" if len(head) == 1 else f"(f_{head[0]} - f_{head[1]})"


def logits(made: SymbolicMap) -> Iterator[Identity]:
    for head in made.heads:
        yield Identity(
            f"{head_name(head)}(x)", made.at(head_of(made.new.logits, head)),
            head_of(made.old.logits, head),
        )  # fmt: skip


def raw(checks: Checks) -> Checks:
    """Refuse maps that move the logits themselves."""

    def strict(made: SymbolicMap) -> Iterator[Identity]:
        if not ABOUT[made.group].keeps_logits:
            raise NotReadError
        yield from checks(made)

    return strict


def sourced(made: SymbolicMap) -> Mapping[Key, tuple[Key, Expr] | None]:
    if not made.sources:
        raise NotReadError
    return made.sources


def of_both(made: SymbolicMap, new: Key, old: Key) -> tuple[tuple[Network, Key], ...]:
    return (made.new, new), (made.old, old)


def signs(made: SymbolicMap) -> dict[Key, tuple[Key, Expr]]:
    """Each parameter's source, where the map is a signed permutation."""
    pairs = sourced(made)
    found = {key: pair for key, pair in pairs.items() if pair is not None and pair[1] in (1, -1)}
    if not made.one_to_one or len(found) != len(pairs):
        raise NotReadError
    return found
