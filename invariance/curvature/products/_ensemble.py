"""Products with the Hessians of many networks of one shape at once."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from invariance.core._forward import run
from invariance.curvature._objective import Objective
from invariance.curvature._symmetry_probe import require_symmetric
from invariance.curvature.losses._resolve import Loss
from invariance.curvature.products._chain import Chain, ChainLayer, read_chain
from invariance.curvature.products._engines import load_forward_rules
from invariance.curvature.products._parameter_space import ParameterSpace


class ModelStack(ABC):
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

    def reduced(self) -> ModelStack:
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


class ChainStack(ModelStack):
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

    def reduced(self) -> ModelStack:
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
        """Run these networks once and keep what their products need."""
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
        """Multiply by the batched R-operator."""
        return self._chain.multiply(self._state, self.space, None, vectors)


class VmapStack(ModelStack):
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
        require_symmetric(objectives[0], None)
        # One product now, so that a module without batching rules is found out here.
        self.select(torch.arange(len(models)))
        self.products(torch.zeros(len(models), self.space.dim).to(self.device, self.dtype))

    def outputs(self) -> Tensor:
        """Return the stacked outputs of all networks on the first rows, ``(M, r, K)``."""
        head = self.x[:4]
        out: Tensor = torch.func.vmap(lambda p, b: run(self._model, head, {**p, **b}))(
            self._parameters, self._buffers
        )
        return out

    def select(self, members: Tensor) -> None:
        """Pick out these networks' parameters and buffers."""
        where = members.to(self.device)
        self._point = tuple(self._parameters[name][where] for name in self.space.names)
        self._rest = {name: value[where] for name, value in self._fixed.items()}
        self._own = {name: value[where] for name, value in self._buffers.items()}

    def products(self, vectors: Tensor) -> Tensor:
        """Multiply by a forward derivative of the gradient."""
        loss, mass = self.objectives[0].loss, self.objectives[0].total_mass

        def product(
            point: tuple[Tensor, ...],
            rest: dict[str, Tensor],
            own: dict[str, Tensor],
            vector: Tensor,
        ) -> Tensor:
            def value(theta: tuple[Tensor, ...]) -> Tensor:
                state = {**rest, **dict(zip(self.space.names, theta, strict=True))}
                out = run(self._model, self.x, {**state, **own})
                return loss.total(out, self.y) / mass

            moved = torch.func.jvp(torch.func.grad(value), (point,), (self.space.split(vector),))[1]
            return self.space.join(moved)

        found: Tensor = torch.func.vmap(product)(self._point, self._rest, self._own, vectors)
        return found


def build_stack(objectives: Sequence[Objective], loss: Loss) -> ModelStack | None:
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
        return ChainStack(objectives, layers, loss)
    load_forward_rules()
    try:
        stack = VmapStack(objectives)
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
