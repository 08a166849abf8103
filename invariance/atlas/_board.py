"""``invariance prove``: a derivation as a teacher would write it on the board."""

from __future__ import annotations

from collections.abc import Iterator

import sympy as sp

from invariance.atlas._atlas import cell_of, known_of, proofs_of
from invariance.atlas._theorems import theorems_about
from invariance.atlas.symbolic._identities import Identity
from invariance.atlas.symbolic._readings import Proof
from invariance.core._groups import Group
from invariance.measures._registry import get_measure

#: Most operations in an equation that is written out.
LONGEST = 30


def derivation(name: str) -> str:
    """Write down why each declaration of a measure holds.

    Args:
        name: A registered measure.

    Returns:
        Plain text: for every kind of map what is claimed and why.

    Raises:
        UsageError: For an unknown measure.

    Example:
        >>> import invariance as inv
        >>> "W_l' = (a_l / a_(l-1)) W_l" in inv.atlas.derivation("path_norm")
        True
    """
    measure, known = get_measure(name), known_of(name)
    lines = [name, "=" * len(name), measure.summary, f"Source: {known.source}"]
    for theorem in theorems_about(name):
        lines += ["", f"THEOREM ({theorem.name})", *theorem.board()]
    for group in Group:
        cell = cell_of(measure, group)
        lines += ["", f"{group.value}: {cell.declared}", "-" * (len(group.value) + 12)]
        proof = next((p for p in proofs_of(name, group) if p.reading.kind == cell.declared), None)
        lines += [cell.evidence] if proof is None else _steps(proof)
    return "\n".join(lines) + "\n"


def _steps(proof: Proof) -> Iterator[str]:
    yield "The map: " + "; ".join(proof.titles) + "."
    yield from (f"    {line}" for line in proof.written)
    yield f"The measure reads {proof.reading.says}."
    shown = _telling(proof)
    if shown is not None:
        yield f"For example {shown.label}:"
        yield f"    after  = {sp.factor(shown.left)}"
        yield f"    before = {sp.factor(shown.right)}"
    yield f"All {len(proof.identities)} such equations hold for all weights, inputs and patterns."
    yield f"Hence: {proof.reading.lemma}  QED"


def _telling(proof: Proof) -> Identity | None:
    """Pick the longest equation that still fits on the board."""
    short = [
        identity
        for identity in proof.identities
        if sp.count_ops(identity.right) < LONGEST and identity.right != 0
    ]
    return max(short, key=lambda identity: int(sp.count_ops(identity.right)), default=None)
