"""Exact curvature of many equal-shaped networks in one call, batched over networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from invariance.core._errors import DataError, MeasureError
from invariance.core._perceptron import (
    Dense,
    Step,
    qualified,
    read_perceptron,
    slice_perceptrons,
    stack_perceptrons,
)
from invariance.curvature.exact._mlp import (
    bytes_per_row,
    chunk_rows,
    first_triangle,
    sweep_chunk,
)
from invariance.curvature.exact._result import DEFAULT_MEMORY_BUDGET, Sums, Wants
from invariance.curvature.exact._sweep import check_budget, exact_curvature, require_deterministic
from invariance.curvature.losses._resolve import Loss, check_batch, resolve_loss

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EnsembleCurvature:
    """Exact diagonal-block curvature of M networks.

    Attributes:
        traces: Parameter name to the ``(M,)`` traces of its diagonal blocks.
        relative_flatness: Weight layer to its ``(M,)`` relative flatness; empty unless
            asked for.
        diagonal: Parameter name to the ``(M, *shape)`` diagonals; empty unless asked for.
        method: How it was computed.
    """

    traces: Mapping[str, Array]
    relative_flatness: Mapping[str, Array] = field(default_factory=dict)
    diagonal: Mapping[str, Tensor] = field(default_factory=dict)
    method: str = ""

    def __post_init__(self) -> None:
        for name in ("traces", "relative_flatness", "diagonal"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def trace(self) -> Array:
        """``(M,)`` traces of the whole Hessians."""
        total: Array = np.sum(list(self.traces.values()), axis=0)
        return total


def hessian_trace_ensemble(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    loss: str | nn.Module | Callable[[Tensor, Tensor], Tensor] | Loss = "cross_entropy",
    relative_flatness: bool = False,
    diagonal: bool = False,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> EnsembleCurvature:
    """Sweep M networks at once for their exact diagonal-block curvature.

    Multilayer perceptrons of one architecture are stacked and swept by batched matrix
    products; any other collection of networks is swept one by one, with equal results.
    Unlike :func:`~invariance.curvature.exact._sweep.exact_curvature` it covers all parameters,
    frozen ones too.

    Args:
        models: The networks, in eval mode if they have BatchNorm or dropout.
        x: ``(n, ...)`` rows for all networks, or ``(M, n, d)``, rows for each.
        y: ``(n,)`` labels, or ``(M, n)`` (with per-network targets the first dimension
            is M).
        loss: The mean loss.
        relative_flatness: Also compute every layer's relative flatness.
        diagonal: Also compute the Hessians' diagonals.
        memory_budget: Bytes for temporaries.

    Returns:
        One entry a network, in their order.

    Raises:
        MeasureError: No networks, or one that the exact sweep does not cover.
        ModelError: A network in train mode where that matters.
        DataError: Malformed data.

    Example:
        One row with ``p = (1/2, 1/2)``: ``H = S (x) x x^T`` with ``Tr S = 1/2`` and ``|x|^2 = 4``.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> found = inv.curvature.hessian_trace_ensemble([model, model], x, y)
        >>> [round(float(trace), 9) for trace in found.trace]
        [2.0, 2.0]
    """
    if not models:
        raise MeasureError("The ensemble is empty. Give at least one network.")
    resolved = resolve_loss(loss, *models)
    check_budget(memory_budget)
    check_batch(x, y)
    for model in models:
        require_deterministic(model)
    wants = Wants(relative_flatness, diagonal)
    stack = stack_steps(models)
    if stack is None:
        return _one_by_one(models, x, y, resolved, wants, memory_budget)
    own_rows = x.ndim == 3
    if (x.shape[0] != len(models) or y.shape[:2] != x.shape[:2]) if own_rows else x.ndim != 2:
        raise DataError(
            f"x must be (n, d), or (M, n, d) with y (M, n) for M = {len(models)} networks. "
            f"Got x {tuple(x.shape)} and y {tuple(y.shape)}."
        )
    return _sweep_stack(stack, len(models), x, y, resolved, wants, memory_budget)


def stack_steps(models: Sequence[nn.Module]) -> tuple[Step, ...] | None:
    """Read and stack equal-shaped MLPs; ``None`` if they are not MLPs of one architecture."""
    parsed = [read_perceptron(model) for model in models]
    known = [steps for steps in parsed if steps is not None]
    return stack_perceptrons(known) if len(known) == len(parsed) else None


def _sweep_stack(
    steps: Sequence[Step],
    count: int,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    wants: Wants,
    memory_budget: int,
) -> EnsembleCurvature:
    """Sweep groups of networks that fit the budget with as many rows as fit with them."""
    dense = [step for step in steps if isinstance(step, Dense)]
    weight = dense[0].weight
    rows = x.shape[-2]
    if x.shape[-1] != weight.shape[-1]:
        raise DataError(f"The networks take {weight.shape[-1]} features. Got {x.shape[-1]}.")
    at_once = chunk_rows(
        bytes_per_row(steps, channels=dense[-1].weight.shape[-2]), memory_budget, weight.device
    )
    group = max(1, min(count, at_once // rows))
    chunk = max(1, at_once // group)
    x, y = x.to(weight), y.to(weight.device)
    own_rows = x.ndim == 3
    found = []
    with torch.no_grad():
        for low in range(0, count, group):
            part = slice_perceptrons(steps, low, min(low + group, count))
            sums = Sums((min(low + group, count) - low,))
            triangle = first_triangle(part[0], wants)
            px = x[low : low + group] if own_rows else x
            py = y[low : low + group] if own_rows else y.expand(sums.mass.shape[0], *y.shape)
            for start in range(0, rows, chunk):
                sweep_chunk(
                    part,
                    px[..., start : start + chunk, :],
                    py[:, start : start + chunk],
                    loss,
                    wants,
                    triangle,
                    sums,
                    0,
                )
            found.append(sums)
    order = [
        name
        for step in steps
        for name in (step.name, qualified(step.name, "weight"), qualified(step.name, "bias"))
    ]
    return _joined(found, order, f"exact sweep of {count} stacked networks ({loss.name})")


def _joined(found: Sequence[Sums], order: Sequence[str], method: str) -> EnsembleCurvature:
    """Concatenate the groups of networks, divide by their masses, put names in ``order``."""
    masses = torch.cat([sums.mass for sums in found])
    if bool((masses <= 0).any()):
        raise DataError(
            "No row counts towards the loss: every label is ignored or has class weight 0."
        )
    traces, kappas = (
        {
            name: torch.cat([sums.of(kind)[name] for sums in found]).numpy()
            for name in order
            if name in found[0].of(kind)
        }
        for kind in ("trace", "kappa")
    )
    diagonal = {}
    for name in order:
        if name not in found[0].diagonals:
            continue
        whole = torch.cat([sums.diagonals[name] for sums in found])
        diagonal[name] = whole / masses.to(whole).view(-1, *[1] * (whole.ndim - 1))
    return EnsembleCurvature(traces, kappas, diagonal, method)


def _one_by_one(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    loss: Loss,
    wants: Wants,
    memory_budget: int,
) -> EnsembleCurvature:
    """Sweep networks that cannot be stacked in turn."""
    results = [
        exact_curvature(
            model,
            x,
            y,
            loss=loss,
            parameters=[name for name, _ in model.named_parameters()],
            relative_flatness=wants.relative_flatness,
            diagonal=wants.diagonal,
            memory_budget=memory_budget,
        )
        for model in models
    ]
    head = results[0]
    if any(result.traces.keys() != head.traces.keys() for result in results):
        raise MeasureError("The networks have parameters of different names. Measure them apart.")
    return EnsembleCurvature(
        {name: np.array([result.traces[name] for result in results]) for name in head.traces},
        {
            name: np.array([result.relative_flatness[name] for result in results])
            for name in head.relative_flatness
        },
        {name: torch.stack([r.diagonal[name] for r in results]) for name in head.diagonal},
        f"exact sweep of {len(models)} networks one by one ({loss.name})",
    )
