"""Finite Stack Theory: vocabularies, statements, extensions and weakness.

Everything is finite, so everything can be enumerated. An environment has states
``0 .. n - 1``. A program is a set of states, held as the bits of an integer. A
vocabulary is a list of programs; a statement is a subset of the vocabulary whose
programs share a state, held as the bits of an integer over the vocabulary; the
language ``L_v`` is the set of all statements. The extension of a statement is the set
of statements that contain it, held as the bits of an integer over the language, and
its weakness is how many there are.

Source: Bennett, "Are Flat Minima an Illusion?", arXiv 2605.05209, section on Stack
Theory, and "The Optimal Choice of Hypothesis Is the Weakest, Not the Shortest", arXiv
2301.12987.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np

from invariance.core._errors import MeasureError

#: Languages larger than this are refused: extensions take a bit a pair of statements.
MAX_STATEMENTS = 1 << 14


def bits(mask: int) -> Iterator[int]:
    """Yield the positions of the set bits of ``mask``, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def union(masks: Iterable[int]) -> int:
    """Return the bitwise or of ``masks`` (0 for none)."""
    return reduce(lambda a, b: a | b, masks, 0)


@dataclass(frozen=True)
class Vocabulary:
    """A set of programs over a finite environment.

    Attributes:
        states: Number of states of the environment Phi.
        programs: One bit set of states a program.
        names: One name a program, for reading.
    """

    states: int
    programs: tuple[int, ...]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.states < 1:
            raise MeasureError(f"An environment needs at least one state. Got {self.states}.")
        object.__setattr__(self, "programs", tuple(self.programs))
        names = tuple(self.names) or tuple(f"p{i}" for i in range(len(self.programs)))
        object.__setattr__(self, "names", names)
        if len(names) != len(self.programs) or len(set(names)) != len(names):
            raise MeasureError(
                f"Give each of the {len(self.programs)} programs its own name. Got {names}."
            )
        if len(set(self.programs)) != len(self.programs):
            raise MeasureError("A vocabulary is a set: two of its programs are the same.")
        for name, program in zip(names, self.programs, strict=True):
            if not 0 <= program <= self.everything:
                raise MeasureError(
                    f"Program {name!r} is not a set of states 0 to {self.states - 1}: {program:#x}."
                )

    @classmethod
    def of(cls, states: int, rules: Mapping[str, Callable[[int], bool]]) -> Vocabulary:
        """Build a vocabulary from predicates on states.

        Args:
            states: Number of states.
            rules: Name to a predicate; the program is the set of states where it holds.
        """
        programs = tuple(
            union(1 << state for state in range(states) if rule(state)) for rule in rules.values()
        )
        return cls(states, programs, tuple(rules))

    @property
    def everything(self) -> int:
        """The set of all states."""
        return (1 << self.states) - 1

    def truth(self, statement: int) -> int:
        """Return the set of states in which every program of ``statement`` holds."""
        return reduce(lambda a, i: a & self.programs[i], bits(statement), self.everything)

    def spell(self, statement: int) -> str:
        """Write a statement with the programs' names, ``{}`` for the empty one."""
        return "{" + ", ".join(self.names[i] for i in bits(statement)) + "}"

    @cached_property
    def language(self) -> Language:
        """The language L_v: every consistent subset of the vocabulary.

        Raises:
            MeasureError: If it has more than ``MAX_STATEMENTS`` statements.
        """
        found: list[tuple[int, int]] = [(0, self.everything)]
        for i, program in enumerate(self.programs):
            found += [(s | 1 << i, t & program) for s, t in found if t & program]
            if len(found) > MAX_STATEMENTS:
                raise MeasureError(
                    f"This vocabulary of {len(self.programs)} programs has more than "
                    f"{MAX_STATEMENTS} statements. Use fewer programs."
                )
        statements = sorted((s for s, _ in found), key=lambda s: (s.bit_count(), s))
        return Language(self, tuple(statements))


@dataclass(frozen=True)
class Language:
    """All statements of a vocabulary, with their extensions.

    Sets of statements are integers: bit i stands for ``statements[i]``.

    Attributes:
        vocabulary: The vocabulary.
        statements: The statements, shortest first; the first is the empty one.
    """

    vocabulary: Vocabulary
    statements: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.statements)

    @property
    def everything(self) -> int:
        """The set of all statements."""
        return (1 << len(self.statements)) - 1

    @cached_property
    def _places(self) -> dict[int, int]:
        return {statement: i for i, statement in enumerate(self.statements)}

    @cached_property
    def _extensions(self) -> tuple[int, ...]:
        # Containment of every pair at once, 64 programs a word.
        words = -(-max(1, len(self.vocabulary.programs)) // 64)
        low = (1 << 64) - 1
        table = np.array(
            [[s >> (64 * w) & low for w in range(words)] for s in self.statements], dtype=np.uint64
        )
        rows = []
        for row in table:
            contained = ((table & row) == row).all(axis=1)
            packed = np.packbits(contained, bitorder="little").tobytes()
            rows.append(int.from_bytes(packed, "little"))
        return tuple(rows)

    def place(self, statement: int) -> int:
        """Return the position of ``statement`` in the language.

        Raises:
            MeasureError: If it is not a statement: its programs exclude each other.
        """
        if statement not in self._places:
            raise MeasureError(
                f"{self.vocabulary.spell(statement)} is not a statement: no state satisfies all "
                "of its programs."
            )
        return self._places[statement]

    def collect(self, statements: Iterable[int]) -> int:
        """Return the set of the given statements."""
        return union(1 << self.place(statement) for statement in statements)

    def members(self, chosen: int) -> tuple[int, ...]:
        """Return the statements in a set of statements."""
        return tuple(self.statements[i] for i in bits(chosen))

    def extension(self, statement: int) -> int:
        """Return Ext(statement): the set of statements that contain it."""
        return self._extensions[self.place(statement)]

    def extension_of_set(self, chosen: int) -> int:
        """Return Ext of a set of statements: the union of their extensions."""
        return union(self._extensions[i] for i in bits(chosen))

    def weakness(self, statement: int) -> int:
        """Return w(statement) = |Ext(statement)|."""
        return self.extension(statement).bit_count()
