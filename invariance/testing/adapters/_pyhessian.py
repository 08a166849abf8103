"""PyHessian: its trace and its top eigenvalue."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from invariance.core._modules import clone
from invariance.testing.adapters._guests import as_a_guest, import_library
from invariance.testing.adapters._signatures import Loss, PlainMeasure
from invariance.testing.gate._assert_equal_in_law import NoisyMeasure


def pyhessian_trace(*, loss: Loss | None = None, probes: int = 100, seed: int = 0) -> PlainMeasure:
    """Adapt PyHessian's Hutchinson estimate of the Hessian's trace.

    The stopping rule is switched off: it can quit after two probes. The same seed is used
    before and after a map, so the measure is deterministic, but it is an estimate still;
    see :func:`pyhessian_trace_noisy` for a statistical comparison.

    Args:
        loss: ``loss(predictions, y)``; mean cross-entropy by default.
        probes: Random vectors.
        seed: Their seed.

    Returns:
        A measure.
    """
    noisy_trace = pyhessian_trace_noisy(loss=loss, probes=probes)

    def pyhessian_trace(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        return noisy_trace(model, x, y, seed)

    return pyhessian_trace


def pyhessian_trace_noisy(*, loss: Loss | None = None, probes: int = 10) -> NoisyMeasure:
    """As :func:`pyhessian_trace`, with the seed as an argument."""
    objective = loss or nn.functional.cross_entropy

    def pyhessian_trace(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> float:
        hessian = import_library("pyhessian", "PyHessian").hessian
        network = _with_used_parameters(clone(model), x)
        with as_a_guest(seed):
            found = hessian(network, objective, data=(x, y), cuda=x.is_cuda)
            # Its stopping rule divides by the running mean without taking the absolute value,
            # so any tolerance but this one ends at the first negative mean.
            values = [float(v) for v in found.trace(maxIter=probes, tol=float("-inf"))]
        return sum(values) / len(values)

    return pyhessian_trace


def pyhessian_eigenvalue(
    *, loss: Loss | None = None, iterations: int = 1000, tol: float = 1e-12, seed: int = 0
) -> PlainMeasure:
    """Adapt PyHessian's power iteration for the top Hessian eigenvalue.

    Args:
        loss: ``loss(predictions, y)``; mean cross-entropy by default.
        iterations: Steps at most.
        tol: Relative change at which it stops.
        seed: Seed of the start vector.

    Returns:
        A measure.
    """
    objective = loss or nn.functional.cross_entropy

    def pyhessian_eigenvalue(model: nn.Module, x: Tensor, y: Tensor) -> float:
        hessian = import_library("pyhessian", "PyHessian").hessian
        network = _with_used_parameters(clone(model), x)
        with as_a_guest(seed):
            found = hessian(network, objective, data=(x, y), cuda=x.is_cuda)
            values, _ = found.eigenvalues(maxIter=iterations, tol=tol, top_n=1)
        return float(values[0])

    return pyhessian_eigenvalue


def _with_used_parameters(model: nn.Module, x: Tensor) -> nn.Module:
    """Freeze parameters that the output does not read: PyHessian fails on them."""
    with torch.enable_grad():
        named = [p for p in model.parameters() if p.requires_grad]
        output = model(x[:1]).sum()
        grads = torch.autograd.grad(output, named, allow_unused=True)
    for parameter, grad in zip(named, grads, strict=True):
        parameter.requires_grad_(grad is not None)
    return model
