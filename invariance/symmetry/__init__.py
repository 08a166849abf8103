"""Which function-preserving maps a module admits, read off its own graph.

``structures`` says what is found, ``analysis`` finds it: ``tracing`` watches one forward
pass, ``rules`` write what each operation allows into a ``ledger``, ``solve`` solves that,
and ``groups`` reads the symmetry groups off the solution.
"""

from __future__ import annotations

from invariance.symmetry.analysis import symmetries
from invariance.symmetry.structures import (
    SCALING_KINDS,
    Kind,
    Leg,
    NormSite,
    Role,
    Stop,
    Symmetries,
    SymmetryGroup,
    WeightUse,
)

__all__ = [
    "SCALING_KINDS",
    "Kind",
    "Leg",
    "NormSite",
    "Role",
    "Stop",
    "Symmetries",
    "SymmetryGroup",
    "WeightUse",
    "symmetries",
]
