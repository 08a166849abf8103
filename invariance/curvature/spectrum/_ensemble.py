"""Extreme eigenvalues of many networks of one shape at once.

Correlation studies measure hundreds of small networks, where the cost of a single one is
mostly overhead. Here every network advances by one Lanczos step in one batched product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invariance.core._arguments import as_seed
from invariance.core._errors import DataError, MeasureError, unknown_name
from invariance.core._estimate import Estimate
from invariance.core._rng import generator
from invariance.curvature._batches import collect_batches
from invariance.curvature._objective import build_objective
from invariance.curvature.losses._resolve import LossLike, resolve_loss
from invariance.curvature.products._engines import DEFAULT_BUDGET
from invariance.curvature.products._ensemble import ModelStack, build_stack
from invariance.curvature.spectrum._certificates import Criterion, bound_errors, default_tolerance
from invariance.curvature.spectrum._eigenvalues import hessian_eigenvalues
from invariance.curvature.spectrum._lanczos_stack import LanczosStack

#: Lanczos steps of a stack; a network that needs more is solved on its own, with restarts.
_STEPS = 96


def hessian_eigenvalues_ensemble(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    which: str = "largest",
    loss: LossLike = "cross_entropy",
    tolerance: float | None = None,
    criterion: Criterion = "residual",
    seed: int = 0,
    memory_budget: int = DEFAULT_BUDGET,
) -> list[Estimate]:
    """Compute the extreme Hessian eigenvalue of each of M networks, certified one by one.

    Networks of one architecture are stacked: chains of Linear layers multiply by batched
    matrix products, other modules by ``vmap`` over models. Networks that cannot be stacked
    are solved one after the other, with equal results up to the tolerance.

    Args:
        models: The networks, BatchNorm and dropout in eval mode.
        x: ``(n, ...)`` rows for all networks.
        y: Their targets.
        which: ``"largest"`` or ``"smallest"``, algebraically.
        loss: The mean loss.
        tolerance: As for :func:`~invariance.curvature.spectrum._eigenvalues.eigenpairs`.
        criterion: As for :func:`~invariance.curvature.spectrum._eigenvalues.eigenpairs`.
        seed: Determines the start vectors; network i's does not depend on the others.
        memory_budget: Bytes of Lanczos vectors; larger ensembles are solved in groups.

    Returns:
        One estimate a network, with its own residual, iterations and convergence.

    Raises:
        MeasureError: An empty ensemble.
        UsageError: An unknown end.
        ModelError: See :class:`~invariance.curvature.products._operators.CurvatureOperator`.
        DataError: Likewise.

    Example:
        One row with ``p = (1/2, 1/2)``: ``H = S (x) x x^T`` with ``Tr S = 1/2`` and ``|x|^2 = 4``.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> found = inv.curvature.hessian_eigenvalues_ensemble([model, model], x, y)
        >>> [round(float(estimate), 9) for estimate in found]
        [2.0, 2.0]
    """
    if which not in ("largest", "smallest"):
        raise unknown_name("which", which, ("largest", "smallest"))
    seed = as_seed(seed)
    if not models:
        raise MeasureError("The ensemble is empty. Give at least one network.")
    if not isinstance(x, Tensor):
        raise DataError(f"x must be a tensor of rows for all networks. Got {type(x).__name__}.")
    batches = collect_batches(x, y)  # checked once for all
    objectives = [build_objective(model, batches, loss=loss) for model in models]
    asked = default_tolerance(objectives[0].dtype) if tolerance is None else float(tolerance)
    if not 0 < asked < 1:
        raise MeasureError(f"tolerance must lie between 0 and 1. Got {tolerance}.")
    stack = build_stack(objectives, resolve_loss(loss))
    found: list[Estimate | None] = [None] * len(models)
    if stack is not None:
        dim = objectives[0].space.dim
        bytes_each = min(_STEPS, dim) * dim * objectives[0].dtype.itemsize
        group = max(1, memory_budget // bytes_each)
        for start in range(0, len(models), group):
            members = torch.arange(start, min(start + group, len(models)))
            _solve_group(stack, members, found, which, asked, criterion, seed)
    return [
        estimate
        if estimate is not None
        else hessian_eigenvalues(
            model,
            x,
            y,
            which=which,  # type: ignore[arg-type]
            loss=loss,
            tolerance=tolerance,
            criterion=criterion,
            seed=seed,
        )
        for model, estimate in zip(models, found, strict=True)
    ]


def _solve_group(
    stack: ModelStack,
    members: Tensor,
    found: list[Estimate | None],
    which: str,
    tolerance: float,
    criterion: Criterion,
    seed: int,
) -> None:
    """Run the stacked Lanczos processes of ``members`` and fill in what converged."""
    fast = stack.reduced()
    dim = fast.space.dim
    starts = [
        torch.randn(dim, generator=generator(seed, "curvature", "ensemble", int(i)))
        for i in members
    ]
    fast.select(members)
    process = LanczosStack(
        fast.products,
        torch.stack(starts).to(stack.device, stack.dtype),
        min(_STEPS, dim),
    )
    active = members.clone()
    done: list[tuple[Tensor, Tensor, Tensor, Tensor, int]] = []
    while len(active):
        moved = process.step()
        _, index, residual, gap, scale = process.extreme(largest=which == "largest")
        bound = bound_errors(residual, gap, criterion)
        # Half the tolerance: the certificate below is computed afresh, with its own round-off.
        ready = (bound <= 0.5 * tolerance * scale) & ((process.steps > 1) or not moved or dim == 1)
        if not moved:
            ready = torch.ones_like(ready)
        # Dropping converged networks costs a copy of the rest: wait until half are ready.
        if bool(ready.all()) or int(ready.sum()) * 2 >= len(active):
            rows = torch.nonzero(ready)[:, 0]
            vectors = fast.lift(process.vectors(index)[rows.to(stack.device)])
            done.append((active[rows], vectors, gap[rows], scale[rows], process.steps))
            keep = torch.nonzero(~ready)[:, 0]
            active = active[keep]
            if len(active):
                process.select(keep)
                fast.select(active)
    flat = stack.space.dim > dim
    for who, vectors, gap, scale, steps in done:
        stack.select(who)
        images = stack.products(vectors)
        values = (images * vectors).sum(1)
        residuals = (images - values[:, None] * vectors).norm(dim=1).double().cpu()
        bounds = bound_errors(residuals, gap, criterion)
        errors = bound_errors(residuals, gap, "value")
        for row, member in enumerate(who.tolist()):
            # With flat directions left out, an eigenvalue beyond zero is the extreme one.
            beyond = not flat or (values[row] >= 0 if which == "largest" else values[row] <= 0)
            if beyond and bool(bounds[row] <= tolerance * scale[row]):
                found[member] = Estimate(
                    float(values[row]),
                    stderr=float(errors[row]),
                    exact=False,
                    method=(
                        f"{which} of the Hessian: stacked Lanczos, residual "
                        f"{float(residuals[row]):.2g} recomputed; {stack.description}"
                        f"{stack.objectives[member].remarks()}"
                    ),
                    residual=float(residuals[row]),
                    iterations=steps + 1,
                    converged=True,
                    detail={"spectral_norm": float(scale[row]), "which": which},
                )
