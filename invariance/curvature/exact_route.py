"""The front doors: trace and diagonal of the Hessian, by the best method that applies.

``method="auto"`` takes the exact sweep where the network is piecewise linear in its
parameters. The method that was used, and why, is in the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from torch import Tensor, nn

from invariance.core.errors import unknown_name
from invariance.core.estimate import Estimate
from invariance.curvature.batches import Data
from invariance.curvature.exact import exact_curvature
from invariance.curvature.exact_result import DEFAULT_MEMORY_BUDGET, DiagonalResult
from invariance.curvature.losses import Loss

Method = Literal["auto", "exact"]


def hessian_trace(
    model: nn.Module,
    x: Data,
    y: Tensor | None = None,
    *,
    loss: str | nn.Module | Callable[[Tensor, Tensor], Tensor] | Loss = "cross_entropy",
    parameters: Iterable[str] | None = None,
    method: Method = "auto",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Estimate:
    """Return the trace of the Hessian of the mean loss, with its parts by parameter.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs, or a re-iterable of ``(x, y)`` batches.
        y: Targets; left out when ``x`` is a re-iterable of batches.
        loss: See :func:`~invariance.curvature.losses.resolve_loss`.
        parameters: Names of parameters or modules to cover; all trainable ones by default.
        method: ``"auto"`` or ``"exact"``.
        memory_budget: Bytes for temporaries.

    Returns:
        The trace; ``parts`` maps each parameter to the trace of its diagonal block.
    """
    if method not in ("auto", "exact"):
        raise unknown_name("method", method, ("auto", "exact"))
    result = exact_curvature(
        model, x, y, loss=loss, parameters=parameters, memory_budget=memory_budget
    )
    return Estimate(result.trace, method=result.method, parts=result.traces)


def hessian_diagonal(
    model: nn.Module,
    x: Data,
    y: Tensor | None = None,
    *,
    loss: str | nn.Module | Callable[[Tensor, Tensor], Tensor] | Loss = "cross_entropy",
    parameters: Iterable[str] | None = None,
    method: Method = "auto",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> DiagonalResult:
    """Return the diagonal of the Hessian of the mean loss, parameter by parameter.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs, or a re-iterable of ``(x, y)`` batches.
        y: Targets; left out when ``x`` is a re-iterable of batches.
        loss: See :func:`~invariance.curvature.losses.resolve_loss`.
        parameters: Names of parameters or modules to cover; all trainable ones by default.
        method: ``"auto"`` or ``"exact"``.
        memory_budget: Bytes for temporaries.

    Returns:
        The diagonal.
    """
    if method not in ("auto", "exact"):
        raise unknown_name("method", method, ("auto", "exact"))
    result = exact_curvature(
        model, x, y, loss=loss, parameters=parameters, diagonal=True, memory_budget=memory_budget
    )
    return DiagonalResult(result.diagonal, method=result.method)
