"""What every torch operation does to threads: one file for each family of operations.

To teach the engine an operation, write a function ``rule(context, call)`` and register it
with :func:`~invariance.symmetry.rules.registry.rule` under the operation's name. Whatever
has no rule stops every symmetry that touches it.
"""

from __future__ import annotations

from invariance.symmetry.rules import (
    attention,
    contraction,
    elementwise,
    normalization,
    pairwise,
    reduction,
    structure,
    weight,
)
from invariance.symmetry.rules.registry import find

__all__ = [
    "attention",
    "contraction",
    "elementwise",
    "find",
    "normalization",
    "pairwise",
    "reduction",
    "structure",
    "weight",
]
