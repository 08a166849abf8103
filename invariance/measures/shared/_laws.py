"""Laws that several measures share: what a transform's action predicts."""

from __future__ import annotations

import torch
from torch import Tensor

from invariance.core._groups import Group
from invariance.curvature._trace_diagonal import hessian_diagonal
from invariance.curvature.exact._result import DiagonalResult
from invariance.measures._registry import Setting

#: Groups under which every new parameter entry moves the outputs a known multiple of
#: what one old entry did, so that the Hessian's diagonal follows.
DIAGONAL_GROUPS = (
    Group.LAYER_SCALING,
    Group.NEURON_SCALING,
    Group.BATCHNORM_FOLD,
    Group.BATCHNORM_SCALING,
    Group.UNIT_SPLIT,
)

_SHARED = "hessian_diagonal"
_PASSED_ON = ("x", "y", "loss", "memory_budget")


def old_diagonal(setting: Setting) -> DiagonalResult:
    """Return the Hessian diagonal before the transform, computed once for all laws."""
    inputs = {name: value for name, value in setting.inputs.items() if name in _PASSED_ON}
    key = (_SHARED, str(inputs.get("loss")), id(inputs.get("x")), id(inputs.get("y")))
    shared: dict[object, DiagonalResult] = setting.shared  # type: ignore[assignment]
    if key not in shared:
        shared[key] = hessian_diagonal(setting.model, **inputs)
    return shared[key]


def predicted_diagonal(setting: Setting) -> dict[str, Tensor] | None:
    """Predict the Hessian diagonal after the transform: ``H'_ii = c_i^2 H_jj``."""
    action = setting.applied.action
    if action is None:
        return None
    old = old_diagonal(setting)
    shapes = {name: value.shape for name, value in old.values.items()}
    reshaped = any(
        act.source is not None and shapes.get(act.source) != act.gradient.shape
        for act in action.parameters.values()
    )
    missing = any(
        act.source is not None and act.source not in shapes for act in action.parameters.values()
    )
    if not old.exact or missing or (reshaped and not old.gauss_newton):
        return None
    return action.diagonal(old.values)


def trace_law(setting: Setting) -> float | None:
    """Predict the trace of the Hessian: ``sum_i c_i^2 H_jj``."""
    predicted = predicted_diagonal(setting)
    if predicted is None:
        return None
    return float(sum(float(part.cpu().double().sum()) for part in predicted.values()))


def adaptive_trace_law(setting: Setting) -> float | None:
    """Predict ``sum_i theta_i^2 H_ii`` from the new parameters and the old diagonal."""
    predicted = predicted_diagonal(setting)
    if predicted is None:
        return None
    new = dict(setting.applied.model.named_parameters())
    with torch.no_grad():
        parts = [
            float((new[name].cpu().double().square() * part.cpu().double()).sum())
            for name, part in predicted.items()
        ]
    return float(sum(parts))
