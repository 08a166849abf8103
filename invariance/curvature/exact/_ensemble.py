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
from invariance.core._modules import lifted, require_deterministic
from invariance.core._perceptron import Step, qualified, read_perceptron, stack_perceptrons
from invariance.curvature._batches import check_batch, check_budget
from invariance.curvature._trace_diagonal import exact_curvature
from invariance.curvature.exact._mlp import sweep_perceptrons
from invariance.curvature.exact._result import DEFAULT_MEMORY_BUDGET, Wants
from invariance.curvature.losses._resolve import Loss, resolve_loss

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
    Unlike :func:`~invariance.curvature.exact_curvature` it covers all parameters,
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
    models = [lifted(model) for model in models]
    check_budget(memory_budget)
    check_batch(x, y)
    for model in models:
        require_deterministic(model)
    wants = Wants(relative_flatness, diagonal)
    stack = stack_steps(models)
    if stack is None:
        return _one_by_one(models, x, y, resolved, wants, memory_budget)
    if (x.shape[0] != len(models) or y.shape[:2] != x.shape[:2]) if x.ndim == 3 else x.ndim != 2:
        raise DataError(
            f"x must be (n, d), or (M, n, d) with y (M, n) for M = {len(models)} networks. "
            f"Got x {tuple(x.shape)} and y {tuple(y.shape)}."
        )
    sums = sweep_perceptrons(
        stack, [(x, y)], x.shape[-2], resolved, wants, memory_budget, own_rows=x.ndim == 3
    )
    traces, kappas, diagonals = sums.of("trace"), sums.of("kappa"), sums.mean_diagonals()
    layers = [step.name for step in stack]
    names = [qualified(layer, leaf) for layer in layers for leaf in ("weight", "bias")]
    return EnsembleCurvature(
        {name: traces[name].numpy() for name in names if name in traces},
        {name: kappas[name].numpy() for name in layers if name in kappas},
        {name: diagonals[name] for name in names if name in diagonals},
        f"exact sweep of {len(models)} stacked networks ({resolved.name})",
    )


def stack_steps(models: Sequence[nn.Module]) -> tuple[Step, ...] | None:
    """Read and stack equal-shaped MLPs; ``None`` if they are not MLPs of one architecture."""
    parsed = [read_perceptron(model) for model in models]
    known = [steps for steps in parsed if steps is not None]
    return stack_perceptrons(known) if len(known) == len(parsed) else None


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
