"""Assertions that turn a claim of invariance into a regression test.

>>> import torch
>>> import invariance as inv
>>> model = inv.models.mlp([5, 7, 4], dtype=torch.float64).eval()
>>> x, y = torch.rand(20, 5), torch.randint(0, 4, (20,))
>>> def sharpness(model, x, y):
...     return float(inv.measures.hessian_trace(model, x, y))
>>> inv.testing.assert_invariant(sharpness, model, x, y)
Traceback (most recent call last):
    ...
invariance.testing.gate._findings.NotInvariantError: measure 'sharpness' is not invariant under ...

Everything is imported on first use: pytest loads :mod:`invariance.testing._plugin` in every
project that has this package installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import invariance.testing.adapters as adapters  # noqa: PLR0402 - the name is public here
    import invariance.testing.strategies as strategies  # noqa: PLR0402
    from invariance.cells import BrokenTransformError, FaultyMeasureError
    from invariance.testing._networks import Networks, TrainedNetwork
    from invariance.testing.blame._at_site import AtSite
    from invariance.testing.blame._trends import Trend, fit_trend
    from invariance.testing.gate._assert_covariant import assert_covariant
    from invariance.testing.gate._assert_equal_in_law import EqualityTest, assert_equal_in_law
    from invariance.testing.gate._assert_equivariant import assert_equivariant
    from invariance.testing.gate._assert_invariant import Replay, assert_invariant, replay
    from invariance.testing.gate._assert_law import LawResult, assert_law
    from invariance.testing.gate._findings import Certificate, Finding, NotInvariantError
    from invariance.testing.project._describe import Description, describe
    from invariance.transforms._members import MemberOf, draw_member

_HOMES = {
    "invariance.cells": ("BrokenTransformError", "FaultyMeasureError"),
    "invariance.testing.blame._at_site": ("AtSite",),
    "invariance.testing.gate._assert_invariant": ("Replay", "assert_invariant", "replay"),
    "invariance.testing.gate._assert_covariant": ("assert_covariant",),
    "invariance.testing.gate._assert_equivariant": ("assert_equivariant",),
    "invariance.testing.project._describe": ("Description", "describe"),
    "invariance.testing.gate._findings": ("Certificate", "Finding", "NotInvariantError"),
    "invariance.testing.gate._assert_law": ("LawResult", "assert_law"),
    "invariance.transforms._members": ("MemberOf", "draw_member"),
    "invariance.testing._networks": ("Networks", "TrainedNetwork"),
    "invariance.testing.gate._assert_equal_in_law": ("EqualityTest", "assert_equal_in_law"),
    "invariance.testing.blame._trends": ("Trend", "fit_trend"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = ("adapters", "strategies")

__all__ = [
    "AtSite",
    "BrokenTransformError",
    "Certificate",
    "Description",
    "EqualityTest",
    "FaultyMeasureError",
    "Finding",
    "LawResult",
    "MemberOf",
    "Networks",
    "NotInvariantError",
    "Replay",
    "TrainedNetwork",
    "Trend",
    "adapters",
    "assert_covariant",
    "assert_equal_in_law",
    "assert_equivariant",
    "assert_invariant",
    "assert_law",
    "describe",
    "draw_member",
    "fit_trend",
    "replay",
    "strategies",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _HOME_OF:
        globals()[name] = found = getattr(import_module(_HOME_OF[name]), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
