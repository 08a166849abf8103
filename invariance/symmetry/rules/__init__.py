"""What every torch operation does to threads: one file for each family of operations.

To teach the engine an operation, write a function ``rule(context, call)`` and register it
with :func:`~invariance.symmetry.rules.registry.rule` under the operation's name. Whatever
has no rule stops every symmetry that touches it.
"""

from __future__ import annotations

# Importing a family registers its rules.
import invariance.symmetry.rules.attention
import invariance.symmetry.rules.contraction
import invariance.symmetry.rules.elementwise
import invariance.symmetry.rules.normalization
import invariance.symmetry.rules.pairwise
import invariance.symmetry.rules.reduction
import invariance.symmetry.rules.structure
import invariance.symmetry.rules.weight  # noqa: F401
from invariance.symmetry.rules.registry import find

__all__ = ["find"]
