"""The Hessian trace along one layer scaling, against the law that it must follow.

With the first weight layer multiplied by ``a`` and the second divided by it,
``Tr H(a) = A / a^2 + C + B a^2`` exactly: ``A`` is the trace of the first layer's
blocks, ``B`` that of the second's weights, ``C`` everything else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

import invariance.transforms as T
from invariance.core._errors import MeasureError
from invariance.core._modules import clone, model_device, weight_layers
from invariance.curvature import hessian_diagonal
from invariance.data import Task, cast_task
from invariance.measures import hessian_trace, relative_flatness
from invariance.reporting import AxisSweep

#: Powers of two, so that every point of the sweep has bitwise equal logits.
ALPHAS = tuple(2.0**k for k in range(-3, 8))


def alpha_sweep(
    model: nn.Module,
    task: Task,
    *,
    alphas: Sequence[float] = ALPHAS,
    dtype: torch.dtype = torch.float64,
) -> AxisSweep:
    """Measure the trace along the scaling of the first two weight layers.

    Args:
        model: A network whose first two weight layers admit a scaling between them.
        task: The data of the loss.
        alphas: Factors of the first layer.
        dtype: Precision of the measurements.

    Returns:
        Measured and predicted traces.

    Raises:
        MeasureError: If there is a single weight layer.
        TransformError: If the scaling does not apply to this network.

    Example:
        The trace follows ``A / a^2 + C + B a^2``:

        >>> import invariance as inv
        >>> from invariance.checking import alpha_sweep
        >>> task = inv.load_task("digits", n_train=100)
        >>> found = alpha_sweep(inv.models.mlp([64, 8, 10]), task, alphas=[0.5, 2.0])
        >>> max(abs(a / b - 1) for a, b in zip(found.measured, found.predicted)) < 1e-9
        True
    """
    base = clone(model).to(dtype)
    data = cast_task(task, dtype, model_device(base))
    layers = len(weight_layers(base))
    if layers < 2:
        raise MeasureError(f"Expected at least two weight layers to scale between. Got {layers}.")
    x, y = data.x_train, data.y_train
    a, b, c = _coefficients(base, x, y, layers)
    measured, flatness, bitwise = [], [], True
    with torch.no_grad():
        reference = base(data.x_test)
    for alpha in alphas:
        moved = _scaled(base, alpha, layers, x[:8])
        measured.append(float(hessian_trace(moved, x, y)))
        flatness.append(float(relative_flatness(moved, x, y)))
        with torch.no_grad():
            bitwise = bitwise and bool(torch.equal(moved(data.x_test), reference))
    predicted = tuple(a / alpha**2 + c + b * alpha**2 for alpha in alphas)
    return AxisSweep(tuple(alphas), tuple(measured), predicted, tuple(flatness), a, b, c, bitwise)


def _scaled(model: nn.Module, alpha: float, layers: int, example: torch.Tensor) -> nn.Module:
    return T.LayerScaling([alpha, 1 / alpha] + [1.0] * (layers - 2))(model, example)


def _coefficients(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, layers: int
) -> tuple[float, float, float]:
    """Split the diagonal by how each parameter's gradient reacts to a factor of two."""
    applied = T.LayerScaling([2.0, 0.5] + [1.0] * (layers - 2)).apply(model, x[:8])
    if applied.action is None:
        raise MeasureError("The layer scaling reports no action on the parameters.")
    diagonal = hessian_diagonal(model, x, y)
    a = b = c = 0.0
    for name, act in applied.action.parameters.items():
        entries, factor = diagonal[name].to(act.gradient), act.gradient
        a += float(entries[factor < 1].sum())
        b += float(entries[factor > 1].sum())
        c += float(entries[factor == 1].sum())
    return a, b, c
