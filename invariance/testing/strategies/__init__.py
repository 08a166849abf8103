"""Hypothesis strategies: networks, data and maps that shrink to the smallest failing case.

Everything random is drawn inside a strategy, seeds included, so a failure replays from
what Hypothesis prints. Sizes shrink to one unit, exponents of factors to zero, flags to
off: what is left is the smallest net, the fewest units and the smallest factor that break
a claim.

>>> from hypothesis import given
>>> from invariance.testing import strategies
>>> @given(strategies.cases(groups=["neuron_scaling"]))
... def test_mine(case):
...     case.assert_invariant(my_measure)
"""

from __future__ import annotations

from invariance.testing.strategies._maps import DRAWABLE, transforms
from invariance.testing.strategies._networks import SEEDS, DrawnNetwork, architectures, data, mlps
from invariance.testing.strategies._whole_cases import Case, cases

__all__ = [
    "DRAWABLE",
    "SEEDS",
    "Case",
    "DrawnNetwork",
    "architectures",
    "cases",
    "data",
    "mlps",
    "transforms",
]
