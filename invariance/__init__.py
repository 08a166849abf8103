"""Function-preserving reparameterizations of networks, and the measures that survive them.

>>> import invariance as inv
>>> task = inv.load_task("digits", n_train=200, n_unseen=20)
>>> network = inv.fit(inv.models.mlp([64, 16, 10]), task).model
>>> report = inv.check(network, task, measures=["hessian_trace", "relative_flatness"])
>>> report.contradictions
()

Everything is imported on first use, so that importing the package (as the pytest plugin
does in every project that has it installed) costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from invariance.core._version import __version__

if TYPE_CHECKING:
    from invariance import (
        atlas,
        curvature,
        data,
        measures,
        models,
        outcomes,
        stats,
        studies,
        symmetry,
        testing,
        training,
        transforms,
        weakness,
    )
    from invariance.checking import Report, check
    from invariance.core._errors import (
        DataError,
        InvarianceError,
        MeasureError,
        ModelError,
        TracingError,
        TransformError,
        UsageError,
    )
    from invariance.core._estimate import Estimate
    from invariance.core._groups import Group
    from invariance.data import Task, load_task
    from invariance.measures._registry import measure
    from invariance.symmetry import canonicalize, gauge_fixed, same_orbit, symmetries
    from invariance.training import Fit, fit, fit_ensemble

_HOMES = {
    "invariance.checking": ("Report", "check"),
    "invariance.core._errors": (
        "DataError",
        "InvarianceError",
        "MeasureError",
        "ModelError",
        "TracingError",
        "TransformError",
        "UsageError",
    ),
    "invariance.core._estimate": ("Estimate",),
    "invariance.core._groups": ("Group",),
    "invariance.data": ("Task", "load_task"),
    "invariance.measures._registry": ("measure",),
    "invariance.symmetry": ("canonicalize", "gauge_fixed", "same_orbit", "symmetries"),
    "invariance.training": ("Fit", "fit", "fit_ensemble"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_SUBPACKAGES = (
    "atlas",
    "curvature",
    "data",
    "measures",
    "models",
    "outcomes",
    "stats",
    "studies",
    "symmetry",
    "testing",
    "training",
    "transforms",
    "weakness",
)

__all__ = [
    "DataError",
    "Estimate",
    "Fit",
    "Group",
    "InvarianceError",
    "MeasureError",
    "ModelError",
    "Report",
    "Task",
    "TracingError",
    "TransformError",
    "UsageError",
    "__version__",
    "atlas",
    "canonicalize",
    "check",
    "curvature",
    "data",
    "fit",
    "fit_ensemble",
    "gauge_fixed",
    "load_task",
    "measure",
    "measures",
    "models",
    "outcomes",
    "same_orbit",
    "stats",
    "studies",
    "symmetries",
    "symmetry",
    "testing",
    "training",
    "transforms",
    "weakness",
]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f"{__name__}.{name}")
    if name in _HOME_OF:
        globals()[name] = found = getattr(import_module(_HOME_OF[name]), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
