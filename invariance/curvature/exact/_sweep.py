"""Exact curvature by one sweep: traces, diagonals and relative flatness without probes.

With everything else fixed, a network of linear layers and piecewise-linear functions is
piecewise linear in each parameter tensor, so the diagonal blocks of the Hessian carry no
second derivative of the network: they equal the Gauss-Newton blocks, and their traces
follow from K - 1 cotangents per row. Nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from invariance.core._errors import DataError, MeasureError, ModelError
from invariance.core._finite import all_finite
from invariance.core._modules import in_train_mode
from invariance.core._perceptron import Dense, Slope, Step, read_perceptron
from invariance.curvature._batches import Batches, Data, collect_batches
from invariance.curvature.exact._directional import move_like
from invariance.curvature.exact._general import make_plan, sweep_module
from invariance.curvature.exact._linearity import analyse_linearity
from invariance.curvature.exact._mlp import (
    bytes_per_row,
    chunk_rows,
    first_step,
    first_triangle,
    sweep_chunk,
)
from invariance.curvature.exact._result import DEFAULT_MEMORY_BUDGET, ExactCurvature, Sums, Wants
from invariance.curvature.losses._resolve import Loss, resolve_loss
from invariance.curvature.products._parameter_space import select_parameters


def exact_curvature(
    model: nn.Module,
    x: Data,
    y: Tensor | None = None,
    *,
    loss: str | nn.Module | Callable[[Tensor, Tensor], Tensor] | Loss = "cross_entropy",
    parameters: Iterable[str] | None = None,
    relative_flatness: bool = False,
    diagonal: bool = False,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> ExactCurvature:
    """Sweep a piecewise-linear network once for its exact diagonal-block curvature.

    Args:
        model: A network that is piecewise linear in each of its parameter tensors, in eval
            mode if it has BatchNorm or dropout. It is left as it is.
        x: ``(n, ...)`` inputs, or a re-iterable of ``(x, y)`` batches.
        y: Targets; left out when ``x`` is a re-iterable of batches.
        loss: See :func:`~invariance.curvature.losses._resolve.resolve_loss`.
        parameters: Names of parameters or modules to cover; all trainable ones by default.
        relative_flatness: Also compute every covered weight layer's relative flatness.
        diagonal: Also compute the Hessian's diagonal.
        memory_budget: Bytes for temporaries; rows are chunked to stay within it. A single
            row is always swept whole.

    Returns:
        The traces, and what else was asked for.

    Raises:
        MeasureError: The network is not piecewise linear in a parameter tensor.
        ModelError: It is in train mode where that matters, or has NaN parameters.
        DataError: Malformed data.

    Example:
        One row with ``p = (1/2, 1/2)``: ``H = S (x) x x^T`` with ``Tr S = 1/2`` and ``|x|^2 = 4``.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> found = inv.curvature.exact_curvature(model, x, y, relative_flatness=True)
        >>> round(float(found.trace), 9)
        2.0
    """
    resolved = resolve_loss(loss, model)
    batches = collect_batches(x, y)
    space = select_parameters(model, parameters)
    require_deterministic(model)
    check_budget(memory_budget)
    wants = Wants(relative_flatness, diagonal)
    steps = read_perceptron(model)
    if steps is not None and batches.first()[0].ndim == 2:
        return sweep_steps(steps, batches, resolved, space.names, wants, memory_budget)
    row = move_like(batches.first()[0][:1], next(iter(model.parameters())))
    linearity = analyse_linearity(model, row)
    refused = [name for name in space.names if name in linearity.reasons]
    if refused:
        raise MeasureError(
            f"The network is not piecewise linear in {refused[0]!r}: "
            f"{linearity.reasons[refused[0]]}. The exact sweep covers networks of linear layers "
            "and piecewise-linear functions; name the parameters that qualify, or use "
            "hessian_trace, which picks another method."
        )
    plan = make_plan(model, linearity, space.names, row)
    sums = sweep_module(model, plan, batches, resolved, wants, memory_budget)
    method = f"exact sweep ({resolved.name})"
    if plan.silent:
        method += f"; no influence, hence zero: {', '.join(plan.silent)}"
    return finished(sums, space.names, method)


def sweep_steps(
    steps: Sequence[Step],
    batches: Batches,
    loss: Loss,
    names: Sequence[str] | None,
    wants: Wants,
    memory_budget: int,
) -> ExactCurvature:
    """Run the hand-written sweep of :mod:`~invariance.curvature.exact._mlp`.

    Args:
        steps: A parsed multilayer perceptron.
        batches: The data.
        loss: The loss.
        names: The parameters to cover; ``None`` for all.
        wants: What to compute besides the traces.
        memory_budget: Bytes for temporaries.

    Returns:
        The curvature of those parameters.
    """
    check_budget(memory_budget)
    dense = [step for step in steps if isinstance(step, Dense)]
    weight = dense[0].weight
    sums = Sums()
    chunk = chunk_rows(
        bytes_per_row(steps, channels=dense[-1].weight.shape[0]), memory_budget, weight.device
    )
    with torch.no_grad():
        first = 0 if names is None else first_step(steps, names)
        triangle = first_triangle(steps[first], wants)
        for bx, by in batches:
            check_width(bx, weight)
            for px, py in zip(torch.split(bx, chunk), torch.split(by, chunk), strict=True):
                rows, labels = px.to(weight), py.to(weight.device)
                sweep_chunk(steps, rows, labels, loss, wants, triangle, sums, first)
    smooth = any(isinstance(step, Slope) and step.smooth for step in steps[first:])
    how = "exact recursion, with second derivatives of the activations" if smooth else "exact sweep"
    return replace(finished(sums, names, f"{how} ({loss.name})"), gauss_newton=not smooth)


def finished(sums: Sums, names: Sequence[str] | None, method: str) -> ExactCurvature:
    """Divide the sums by the total mass and keep the chosen parameters.

    Raises:
        DataError: No row counts (every label is ignored, or has class weight 0).
    """
    mass = float(sums.mass)
    if mass <= 0:
        raise DataError(
            "No row counts towards the loss: every label is ignored or has class weight 0."
        )
    traces = sums.of("trace")
    chosen = list(reversed(traces)) if names is None else list(names)
    layers = {name.rpartition(".")[0] for name in chosen if name.endswith("weight")}
    return ExactCurvature(
        traces={name: float(traces[name]) for name in chosen},
        relative_flatness={
            name: float(value)
            for name, value in reversed(sums.of("kappa").items())
            if name in layers
        },
        diagonal={name: sums.diagonals[name] / mass for name in chosen if name in sums.diagonals},
        rows=sums.rows,
        method=method,
    )


def check_width(x: Tensor, weight: Tensor) -> None:
    """Refuse rows that do not fit the first linear layer."""
    if x.ndim != 2 or x.shape[1] != weight.shape[-1]:
        raise DataError(
            f"The model takes rows of {weight.shape[-1]} features. "
            f"Got x of shape {tuple(x.shape)}; reshape x to (n, {weight.shape[-1]})."
        )


def check_budget(memory_budget: int) -> None:
    """Refuse a memory budget that is not a positive number of bytes."""
    if not memory_budget > 0:
        raise MeasureError(
            f"memory_budget must be a positive number of bytes. Got {memory_budget!r}."
        )


def require_deterministic(model: nn.Module) -> None:
    """Refuse a model whose output in its present mode is random or depends on the batch.

    Args:
        model: Any module.

    Raises:
        ModelError: Names the first BatchNorm or dropout in train mode.
    """
    name = in_train_mode(model)
    if name is not None:
        raise ModelError(
            f"Module {name!r} is in train mode, where the function depends on the batch or on "
            "chance. Call model.eval() first."
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ModelError(
                f"BatchNorm {name!r} keeps no running statistics, so it uses the batch's even in "
                "eval mode. Build it with track_running_stats=True."
            )
    for name, parameter in model.named_parameters():
        if not all_finite(parameter):
            raise ModelError(
                f"Parameter {name!r} contains NaN or infinity: training diverged. "
                "Curvature is not defined there."
            )
