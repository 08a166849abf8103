"""The table: every measure under every kind of map, with how each cell is known."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from invariance.atlas._algorithms import algorithm_rows
from invariance.atlas._cells import AtlasError, Cell, Entry
from invariance.atlas._counterexamples import Counterexample, stored
from invariance.atlas._knowledge import KNOWLEDGE, Known
from invariance.atlas.symbolic._readings import Proof, prove_reading
from invariance.core._groups import Group
from invariance.measures._registry import Declaration, Measure, all_measures, get_measure


@dataclass(frozen=True)
class Atlas:
    """The whole table.

    Attributes:
        measures: One row a measure.
        algorithms: One row a training algorithm, whose ``invariant`` reads equivariant.
    """

    measures: tuple[Entry, ...]
    algorithms: tuple[Entry, ...] = ()

    def __getitem__(self, name: str) -> Entry:
        return next(entry for entry in self.measures if entry.name == name)

    @property
    def groups(self) -> tuple[str, ...]:
        """The kinds of map, in the order of the columns."""
        return tuple(group.value for group in Group)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        return {
            "schema": 1,
            "groups": list(self.groups),
            "measures": [entry.to_dict() for entry in self.measures],
            "algorithms": [entry.to_dict() for entry in self.algorithms],
        }


def known_of(name: str) -> Known:
    """Return what is known of a measure; one that nobody wrote about has nothing."""
    return KNOWLEDGE.get(name, Known(""))


def proofs_of(name: str, group: Group) -> list[Proof]:
    """Return every proof by algebra about one cell, whatever is declared."""
    found = [prove_reading(reading, group) for reading in known_of(name).readings]
    return [proof for proof in found if proof is not None]


def cell_of(measure: Measure, group: Group) -> Cell:
    """Collect the evidence of one cell, and refuse a declaration that it contradicts."""
    if not measure.claims([group]):
        return Cell(group.value, "undeclared", None, "Nothing is claimed.")
    declared = measure.declared([group])
    where = f"{measure.name} under {group.value} is declared {declared!r}"
    example = stored().get(measure.name, {}).get(group.value)
    proofs = proofs_of(measure.name, group)
    text = known_of(measure.name).arguments.get(group, "")
    _consistent(where, declared, example, proofs, text)
    if declared == "varies":
        assert example is not None
        return Cell(group.value, declared, "counterexample", f"{example}.")
    for proof in proofs:
        if proof.reading.kind == declared:
            return Cell(group.value, declared, "symbolic", in_words(proof))
    return Cell(group.value, declared, "argument", text)


def _consistent(
    where: str,
    declared: Declaration,
    example: Counterexample | None,
    proofs: Iterable[Proof],
    text: str,
) -> None:
    kinds = {proof.reading.kind for proof in proofs}
    if declared == "invariant":
        if example is not None:
            raise AtlasError(f"{where}, but {example}.")
        if "invariant" not in kinds and not text:
            raise AtlasError(f"{where}, and neither a proof nor an argument is given.")
        return
    if example is None:
        raise AtlasError(f"{where}, but no network is known on which it moves.")
    if "invariant" in kinds:
        raise AtlasError(f"{where}, but it is provably invariant: the declaration is too weak.")
    if declared == "law" and "law" not in kinds and not text:
        raise AtlasError(f"{where}, and neither a proof nor an argument is given.")
    if declared == "varies" and ("law" in kinds or text):
        raise AtlasError(f"{where}, but a law is proved: the declaration is too weak.")


def in_words(proof: Proof) -> str:
    """Say in a paragraph what was proved and how a measure follows."""
    maps = "; ".join(proof.titles)
    return (
        f"Reads {proof.reading.says}. Map: {maps}. sympy: {len(proof.identities)} identities in "
        f"all weights, inputs and activation patterns hold. Lemma: {proof.reading.lemma}"
    )


def entry_of(name: str) -> Entry:
    """Build one row."""
    measure, known = get_measure(name), known_of(name)
    return Entry(
        name,
        known.source,
        measure.cost,
        measure.summary,
        known.pitfall,
        tuple(cell_of(measure, group) for group in Group),
    )


@cache
def build() -> Atlas:
    """Build the atlas: every registered measure that ships with the package.

    Returns:
        The table.

    Raises:
        AtlasError: A declaration without evidence, or against it.
    """
    importlib.import_module("invariance.measures")
    rows = tuple(entry_of(name) for name in all_measures() if name in KNOWLEDGE)
    return Atlas(rows, algorithm_rows())
