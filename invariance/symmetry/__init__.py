"""Which function-preserving maps a module admits, read off its own graph.

``structures`` says what is found, ``analysis`` finds it: ``tracing`` watches one forward
pass, ``rules`` write what each operation allows into a ``relations``, ``solve`` solves that,
and ``groups`` reads the symmetry groups off the solution.
"""

from __future__ import annotations

from invariance.symmetry._structures import (
    SCALING_KINDS,
    Leg,
    NormSite,
    Role,
    Stop,
    Symmetries,
    SymmetryGroup,
    SymmetryKind,
    WeightUse,
)
from invariance.symmetry.analysis._symmetries import symmetries
from invariance.symmetry.balance._canonical import (
    CanonicalForm,
    canonical_form,
    canonicalize,
    scaling_design,
)
from invariance.symmetry.balance._gauge import gauge_fixed
from invariance.symmetry.balance._scalings import (
    BalanceResult,
    ScalingDesign,
    ScalingLeg,
    minimise_over_scalings,
)
from invariance.symmetry.elements._group_elements import Element, GroupElement
from invariance.symmetry.elements._orbit import OrbitResult, same_orbit
from invariance.symmetry.elements._reduce_width import reduce_width

__all__ = [
    "SCALING_KINDS",
    "BalanceResult",
    "CanonicalForm",
    "Element",
    "GroupElement",
    "Leg",
    "NormSite",
    "OrbitResult",
    "Role",
    "ScalingDesign",
    "ScalingLeg",
    "Stop",
    "Symmetries",
    "SymmetryGroup",
    "SymmetryKind",
    "WeightUse",
    "canonical_form",
    "canonicalize",
    "gauge_fixed",
    "minimise_over_scalings",
    "reduce_width",
    "same_orbit",
    "scaling_design",
    "symmetries",
]
