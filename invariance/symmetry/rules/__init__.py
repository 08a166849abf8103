"""What every torch operation does to threads: one file for each family of operations.

To teach the engine an operation, write a function ``rule(context, call)`` and register it
with :func:`~invariance.symmetry.rules._registry.rule` under the operation's name. Whatever
has no rule stops every symmetry that touches it.
"""

from __future__ import annotations

# Importing a family registers its rules.
import invariance.symmetry.rules._attention
import invariance.symmetry.rules._composed
import invariance.symmetry.rules._contraction
import invariance.symmetry.rules._elementwise
import invariance.symmetry.rules._normalization
import invariance.symmetry.rules._pairwise
import invariance.symmetry.rules._recurrent
import invariance.symmetry.rules._reduction
import invariance.symmetry.rules._structure
import invariance.symmetry.rules._weight  # noqa: F401
from invariance.symmetry.rules._registry import find

__all__ = ["find"]
