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
invariance.testing.findings.NotInvariantError: measure 'sharpness' is not invariant under ...

Everything is imported on first use: pytest loads :mod:`invariance.testing.plugin` in every
project that has this package installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import invariance.testing.adapters as adapters  # noqa: PLR0402 - the name is public here
    import invariance.testing.strategies as strategies  # noqa: PLR0402
    from invariance.cells import BrokenTransformError, FaultyMeasureError
    from invariance.testing.at_site import AtSite
    from invariance.testing.claims import Replay, assert_invariant, replay
    from invariance.testing.covariance import assert_covariant
    from invariance.testing.description import Description, describe
    from invariance.testing.findings import Certificate, Finding, NotInvariantError
    from invariance.testing.laws import LawResult, assert_law
    from invariance.testing.networks import Networks, TrainedNetwork
    from invariance.testing.statistical import EqualityTest, assert_equal_in_law
    from invariance.testing.trends import Trend, fit_trend
    from invariance.transforms._members import MemberOf, draw_member

_HOMES = {
    "invariance.cells": ("BrokenTransformError", "FaultyMeasureError"),
    "invariance.testing.at_site": ("AtSite",),
    "invariance.testing.claims": ("Replay", "assert_invariant", "replay"),
    "invariance.testing.covariance": ("assert_covariant",),
    "invariance.testing.description": ("Description", "describe"),
    "invariance.testing.findings": ("Certificate", "Finding", "NotInvariantError"),
    "invariance.testing.laws": ("LawResult", "assert_law"),
    "invariance.transforms._members": ("MemberOf", "draw_member"),
    "invariance.testing.networks": ("Networks", "TrainedNetwork"),
    "invariance.testing.statistical": ("EqualityTest", "assert_equal_in_law"),
    "invariance.testing.trends": ("Trend", "fit_trend"),
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
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
