"""Extreme eigenvalues of many networks of one shape at once.

Correlation studies measure hundreds of small networks, where the cost of a single one is
mostly overhead. Here every network advances by one Lanczos step in one batched product.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invariance.core.errors import DataError, MeasureError, unknown_name
from invariance.core.estimate import Estimate
from invariance.core.rng import generator
from invariance.curvature.batches import collect_batches
from invariance.curvature.chain import Chain, ChainLayer, read_chain
from invariance.curvature.eigen import Criterion, default_tolerance, hessian_eigenvalues
from invariance.curvature.engines import DEFAULT_BUDGET, load_forward_rules
from invariance.curvature.lanczos_stack import LanczosStack
from invariance.curvature.losses import Loss, LossLike, resolve_loss
from invariance.curvature.objective import Objective, build_objective
from invariance.curvature.outer import summed
from invariance.curvature.space import ParameterSpace

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
        tolerance: As for :func:`~invariance.curvature.eigen.eigenpairs`.
        criterion: As for :func:`~invariance.curvature.eigen.eigenpairs`.
        seed: Determines the start vectors; network i's does not depend on the others.
        memory_budget: Bytes of Lanczos vectors; larger ensembles are solved in groups.

    Returns:
        One estimate a network, with its own residual, iterations and convergence.

    Raises:
        MeasureError: An empty ensemble.
        UsageError: An unknown end.
        ModelError: See :class:`~invariance.curvature.operators.CurvatureOperator`.
        DataError: Likewise.
    """
    if which not in ("largest", "smallest"):
        raise unknown_name("which", which, ("largest", "smallest"))
    if not models:
        raise MeasureError("The ensemble is empty. Give at least one network.")
    if not isinstance(x, Tensor):
        raise DataError(f"x must be a tensor of rows for all networks. Got {type(x).__name__}.")
    batches = collect_batches(x, y)  # checked once for all
    objectives = [build_objective(model, batches, loss=loss) for model in models]
    asked = default_tolerance(objectives[0].dtype) if tolerance is None else float(tolerance)
    if not 0 < asked < 1:
        raise MeasureError(f"tolerance must lie between 0 and 1. Got {tolerance}.")
    stack = _build_stack(objectives, resolve_loss(loss))
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


class _Stack(ABC):
    """Products with the Hessians of many networks at once.

    Attributes:
        description: How, in words.
        space: The common parameter space.
        dtype: Precision.
        device: Where.
    """

    description: str

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self.objectives = tuple(objectives)
        self.space: ParameterSpace = objectives[0].space
        self.dtype, self.device = objectives[0].dtype, objectives[0].device
        self.x, self.y = next(objectives[0].chunks())

    def reduced(self) -> _Stack:
        """Return the same matrices without directions known to be flat, or the stack itself."""
        return self

    def lift(self, vectors: Tensor) -> Tensor:
        """Write vectors of this stack in the coordinates of the stack that it reduces."""
        return vectors

    @abstractmethod
    def select(self, members: Tensor) -> None:
        """Multiply with the Hessians of these networks from now on."""

    @abstractmethod
    def products(self, vectors: Tensor) -> Tensor:
        """Return the products with ``(M, d)`` vectors, one for each selected network."""


class _ChainStack(_Stack):
    """Chains of Linear layers by the batched R-operator."""

    description = "batched R-operator of the layer chains"

    def __init__(
        self, objectives: Sequence[Objective], layers: tuple[ChainLayer, ...], loss: Loss
    ) -> None:
        super().__init__(objectives)
        self.x = self.x.flatten(1)
        self._layers, self._loss = layers, loss
        named = [dict(objective.model.named_parameters()) for objective in objectives]
        self._all = {
            name: torch.stack([each[name].detach() for each in named]) for name in named[0]
        }
        self._rows: Tensor | None = None

    def reduced(self) -> _Stack:
        """Rotate the first layer to the row space of x and leave out the rest of it.

        A move of the first weights that is orthogonal to every row of x changes no output:
        its curvature is exactly zero, and products never leave the row space.
        """
        name = self._layers[0].weight
        if self.x.shape[0] >= self.x.shape[1] or name not in self.space.names:
            return self
        left, sizes, right = torch.linalg.svd(self.x.double(), full_matrices=False)
        keep = sizes > sizes[0] * self.x.shape[1] * torch.finfo(torch.float64).eps
        other = copy.copy(self)
        other._rows = right[keep].to(self.dtype)
        other.x = (left[:, keep] * sizes[keep]).to(self.dtype)
        other._all = {**self._all, name: self._all[name] @ other._rows.mT}
        shapes = [
            torch.Size((shape[0], other.x.shape[1])) if own == name else shape
            for own, shape in zip(self.space.names, self.space.shapes, strict=True)
        ]
        other.space = ParameterSpace(self.space.names, tuple(shapes), self.space.frozen)
        return other

    def lift(self, vectors: Tensor) -> Tensor:
        """Rotate the first layer's part back."""
        if self._rows is None:
            return vectors
        parts = dict(zip(self.space.names, self.space.split(vectors), strict=True))
        name = self._layers[0].weight
        parts[name] = parts[name] @ self._rows
        return self.space.join(list(parts.values()), 1)

    def select(self, members: Tensor) -> None:
        picked = {name: stack[members.to(self.device)] for name, stack in self._all.items()}
        self._chain = Chain(
            self._layers,
            [picked[layer.weight] for layer in self._layers],
            [picked[layer.bias] if layer.bias else None for layer in self._layers],
            self._loss,
            self.objectives[0].total_mass,
        )
        targets = self.y.repeat(len(members), *[1] * (self.y.ndim - 1))
        with torch.no_grad():
            self._state = self._chain.prepare(self.x, targets)

    @torch.no_grad()
    def products(self, vectors: Tensor) -> Tensor:
        parts = dict(zip(self.space.names, self.space.split(vectors), strict=True))
        vw = [parts.get(layer.weight) for layer in self._layers]
        vb = [parts.get(layer.bias) if layer.bias else None for layer in self._layers]
        out_w, out_b = self._chain.hessian(self._state, vw, vb)
        found: dict[str, Tensor] = {}
        for layer, w, b in zip(self._layers, out_w, out_b, strict=True):
            assert w is not None
            found[layer.weight] = w
            if layer.bias and b is not None:
                found[layer.bias] = b
        return self.space.join([found[name] for name in self.space.names], 1)


class _VmapStack(_Stack):
    """Any module: forward over reverse, mapped over models."""

    description = "forward over reverse, vmap over models"

    def __init__(self, objectives: Sequence[Objective]) -> None:
        super().__init__(objectives)
        models = [objective.model for objective in objectives]
        parameters, buffers = torch.func.stack_module_state(models)
        self._parameters = {name: value.detach() for name, value in parameters.items()}
        self._buffers = buffers
        self._model = models[0]
        self._fixed = {n: v for n, v in self._parameters.items() if n not in self.space.names}
        # One product now, so that a module without batching rules is found out here.
        self.select(torch.arange(len(models)))
        self.products(torch.zeros(len(models), self.space.dim).to(self.device, self.dtype))

    def outputs(self) -> Tensor:
        """Return the stacked outputs of all networks on the first rows, ``(M, r, K)``."""
        head = self.x[:4]
        out: Tensor = torch.func.vmap(
            lambda p, b: torch.func.functional_call(self._model, (p, b), (head,))
        )(self._parameters, self._buffers)
        return out

    def select(self, members: Tensor) -> None:
        where = members.to(self.device)
        self._point = tuple(self._parameters[name][where] for name in self.space.names)
        self._rest = {name: value[where] for name, value in self._fixed.items()}
        self._own = {name: value[where] for name, value in self._buffers.items()}

    def products(self, vectors: Tensor) -> Tensor:
        loss, mass = self.objectives[0].loss, self.objectives[0].total_mass

        def product(
            point: tuple[Tensor, ...],
            rest: dict[str, Tensor],
            own: dict[str, Tensor],
            vector: Tensor,
        ) -> Tensor:
            def value(theta: tuple[Tensor, ...]) -> Tensor:
                state = {**rest, **dict(zip(self.space.names, theta, strict=True))}
                out = torch.func.functional_call(self._model, (state, own), (self.x,))
                return summed(loss, out, self.y) / mass

            moved = torch.func.jvp(torch.func.grad(value), (point,), (self.space.split(vector),))[1]
            return self.space.join(moved)

        found: Tensor = torch.func.vmap(product)(self._point, self._rest, self._own, vectors)
        return found


def _build_stack(objectives: Sequence[Objective], loss: Loss) -> _Stack | None:
    """Stack networks of one architecture; ``None`` if they are not of one."""
    first = objectives[0]
    for other in objectives[1:]:
        same = (
            repr(other.model) == repr(first.model)
            and other.space.names == first.space.names
            and other.space.shapes == first.space.shapes
            and (other.dtype, other.device) == (first.dtype, first.device)
            and other.total_mass == first.total_mass
        )
        if not same:
            return None
    chains = [read_chain(objective.model) for objective in objectives]
    layers = chains[0]
    if layers is not None and all(chain is not None for chain in chains):
        return _ChainStack(objectives, layers, loss)
    load_forward_rules()
    try:
        stack = _VmapStack(objectives)
        stacked = stack.outputs()
    except (RuntimeError, NotImplementedError):
        return None  # an operation without a batching or forward rule: one by one
    # Equal names and shapes do not prove equal code: compare what the networks compute.
    slack = 10 * torch.finfo(first.dtype).eps ** 0.5
    for objective, rows in zip(objectives, stacked, strict=True):
        own = objective.forward(objective.point, stack.x[:4])
        if float((own - rows).abs().max()) > slack * float(own.abs().max().clamp_min(1e-30)):
            return None
    return stack


def _solve_group(
    stack: _Stack,
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
        bound = _bound(residual, gap, criterion)
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
        bounds = _bound(residuals, gap, criterion)
        errors = _bound(residuals, gap, "value")
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


def _bound(residuals: Tensor, gaps: Tensor, criterion: Criterion) -> Tensor:
    if criterion == "residual":
        return residuals
    sharper = torch.where(gaps > 0, residuals**2 / gaps.clamp_min(1e-300), residuals)
    return torch.minimum(residuals, sharper)
