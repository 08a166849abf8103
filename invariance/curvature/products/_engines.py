"""How products with second derivatives are computed; one interface, several engines.

* :class:`ChainEngine`: plain chains of Linear layers, by the R-operator (``_chain.py``).
* :class:`GraphEngine`: any module, by differentiating the graph of the gradient, which is
  built once and kept while it fits in memory (reverse over reverse).
* :class:`DualEngine`: any module, by a forward derivative of the gradient (forward over
  reverse); nothing is kept, so it serves data whose graphs do not fit.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from invariance.curvature._objective import Objective
from invariance.curvature.products._chain import Chain, ChainState, read_chain
from invariance.curvature.products._chain_quadratic import ChainQuadratic
from invariance.curvature.products._output_space import (
    OuterProduct,
    OutputMatrixKind,
    outer_product,
)

#: Bytes of graphs or activations that an operator keeps for reuse, unless told otherwise.
DEFAULT_BUDGET = 2 << 30

_PROBE_ROWS = 4

#: Rows a chunk of a quadratic form: its few temporaries then stay in the cache.
_QUADRATIC_ROWS = 512


class ProductEngine(ABC):
    """Multiplies the matrix of one objective with vectors.

    Attributes:
        description: How, in words for ``Estimate.method``.
        batched: True if many vectors at once are cheaper than one after the other.
    """

    description: str
    batched: bool = True

    @abstractmethod
    def __init__(
        self, objective: Objective, kind: OutputMatrixKind | None, budget: int
    ) -> None: ...

    @abstractmethod
    def products(self, vectors: Tensor) -> Tensor:
        """Return the products with ``(k, d)`` vectors, ``(k, d)``."""

    def quadratic(self, vector: Tensor, dtype: torch.dtype) -> float | None:
        """Return ``v^T A v`` in another precision, or ``None`` if a product is no dearer.

        Shapes: ``vector (d,)``.
        """
        return None


class ChainEngine(ProductEngine):
    """The R-operator of a chain, with activations kept while they fit in the budget."""

    def __init__(self, objective: Objective, kind: OutputMatrixKind | None, budget: int) -> None:
        layers = read_chain(objective.model)
        assert layers is not None
        named = dict(objective.model.named_parameters())
        weights = [named[layer.weight].detach() for layer in layers]
        biases = [named[layer.bias].detach() if layer.bias else None for layer in layers]
        self._objective, self._kind = objective, kind
        self._chain = Chain(layers, weights, biases, objective.loss, objective.total_mass)
        width = sum(3 * (weight.shape[0] + weight.shape[1]) for weight in weights)
        self._rows = max(1, budget // (width * weights[0].element_size()))
        self._kept: list[ChainState] | None = [] if self._rows >= objective.batches.rows else None
        self.description = "R-operator of the layer chain" + (
            "" if self._kept is not None else f", recomputed in chunks of {self._rows} rows"
        )

    def _states(self) -> Iterator[ChainState]:
        if self._kept:
            yield from self._kept
            return
        for x, y in self._objective.chunks(self._rows):
            state = self._chain.prepare(x.flatten(1), y, self._kind)
            if self._kept is not None:
                self._kept.append(state)
            yield state

    @torch.no_grad()
    def products(self, vectors: Tensor) -> Tensor:
        """Return the products with ``(k, d)`` vectors."""
        space = self._objective.space
        single = vectors.shape[0] == 1
        flat = vectors[0] if single else vectors
        total: Tensor | None = None
        for state in self._states():
            share = self._chain.multiply(state, space, self._kind, flat)
            total = share if total is None else total.add_(share)
        assert total is not None
        return total.reshape(vectors.shape)

    @torch.no_grad()
    def quadratic(self, vector: Tensor, dtype: torch.dtype) -> float | None:
        """Return ``v^T A v`` by one forward pass."""
        space, chain = self._objective.space, self._chain
        parts = dict(zip(space.names, space.split(vector.to(dtype)), strict=True))
        precise = Chain(
            chain.layers,
            [weight.to(dtype) for weight in chain.weights],
            [None if bias is None else bias.to(dtype) for bias in chain.biases],
            chain.loss,
            chain.total_mass,
        )
        form = ChainQuadratic(
            precise,
            [parts.get(layer.weight) for layer in chain.layers],
            [parts.get(layer.bias) if layer.bias else None for layer in chain.layers],
            self._kind,
        )
        total = 0.0
        for x, y in self._objective.chunks_in(dtype, min(self._rows, _QUADRATIC_ROWS)):
            total += float(form.on(x.flatten(1), y))
        return total


class GraphEngine(ProductEngine):
    """Reverse over reverse through graphs of the gradient, kept while they fit."""

    def __init__(self, objective: Objective, kind: OutputMatrixKind | None, budget: int) -> None:
        self._objective, self._kind = objective, kind
        self._rows = max(1, budget // max(1, _graph_bytes(objective, kind)))
        fits = self._rows >= objective.batches.rows
        self._kept: list[Graph] | None = [] if fits else None
        self.description = "reverse over reverse, " + (
            "graph reused" if fits else f"graph rebuilt in chunks of {self._rows} rows"
        )

    def _graphs(self) -> Iterator[Graph]:
        if self._kept:
            yield from self._kept
            return
        for x, y in self._objective.chunks(self._rows):
            graph = Graph(self._objective, self._kind, x, y)
            if self._kept is not None:
                self._kept.append(graph)
            yield graph

    def products(self, vectors: Tensor) -> Tensor:
        """Return the products with ``(k, d)`` vectors."""
        total = torch.zeros_like(vectors)
        for graph in self._graphs():
            if vectors.shape[0] > 1 and self.batched:
                try:
                    total += graph.products(vectors, batched=True)
                    continue
                except RuntimeError:
                    # Some backward functions have no batching rule: one vector at a time.
                    self.batched = False
            for row, vector in enumerate(vectors):
                total[row] += graph.products(vector, batched=False)
        return total


class Graph:
    """The graph of one chunk's gradient (or outputs), ready to be differentiated again."""

    def __init__(
        self, objective: Objective, kind: OutputMatrixKind | None, x: Tensor, y: Tensor
    ) -> None:
        self.space = objective.space
        self.leaves = objective.leaves()
        self._outer: OuterProduct | None = None
        self._build_outer: Callable[[], OuterProduct] | None = None
        with torch.enable_grad():
            if kind is None:
                target = objective.value(self.leaves, x, y)
                upstream = None
            else:
                target = objective.forward(self.leaves, x)
                outputs = target.detach()
                # Built at the first product: a user's loss may not be differentiated under the
                # hooks that measure this graph's size.
                self._build_outer = lambda: outer_product(
                    kind, objective.loss, outputs, y, objective.total_mass
                )
                # J v by two reverse passes: differentiate u -> J^T u at u = 0.
                upstream = torch.zeros_like(target, requires_grad=True)
            found = torch.autograd.grad(
                target, self.leaves, upstream, create_graph=True, allow_unused=True
            )
        self.outputs, self.upstream = target, upstream
        self.kept = [i for i, grad in enumerate(found) if grad is not None and grad.requires_grad]
        self.gradients = [grad for grad in found if grad is not None and grad.requires_grad]

    def products(self, vectors: Tensor, *, batched: bool) -> Tensor:
        """Return the product with a ``(d,)`` vector, or with ``(k, d)`` at once."""
        lead = 1 if batched else 0
        if not self.gradients:
            return torch.zeros_like(vectors)
        parts = self.space.split(vectors)
        ups = [parts[index] for index in self.kept]
        if self.upstream is None or self._build_outer is None:
            found = torch.autograd.grad(
                self.gradients,
                self.leaves,
                ups,
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=batched,
            )
        else:
            self._outer = self._outer or self._build_outer()
            (moved,) = torch.autograd.grad(
                self.gradients, self.upstream, ups, retain_graph=True, is_grads_batched=batched
            )
            found = torch.autograd.grad(
                self.outputs,
                self.leaves,
                self._outer(moved),
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=batched,
            )
        filled = [
            vectors.new_zeros(*vectors.shape[:lead], *shape) if part is None else part
            for part, shape in zip(found, self.space.shapes, strict=True)
        ]
        return self.space.join(filled, lead)


class DualEngine(ProductEngine):
    """Forward over reverse, chunk by chunk; keeps nothing between products."""

    def __init__(self, objective: Objective, kind: OutputMatrixKind | None, budget: int) -> None:
        load_forward_rules()
        self._objective, self._kind = objective, kind
        self._rows = max(1, budget // max(1, _graph_bytes(objective, kind)))
        self.description = "forward over reverse"

    def products(self, vectors: Tensor) -> Tensor:
        """Return the products with ``(k, d)`` vectors."""
        objective = self._objective
        total = torch.zeros_like(vectors)
        rows = max(1, self._rows // vectors.shape[0])
        for x, y in objective.chunks(rows):
            multiply = self._multiplier(x, y)
            if vectors.shape[0] == 1:
                total += multiply(vectors[0])
            else:
                total += torch.func.vmap(multiply)(vectors)
        return total

    def _multiplier(self, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        objective, kind = self._objective, self._kind
        point = objective.point

        def value(theta: Sequence[Tensor]) -> Tensor:
            return objective.value(theta, x, y)

        def hessian(vector: Tensor) -> Tensor:
            moved = torch.func.jvp(
                torch.func.grad(value),
                (point,),
                (objective.space.split(vector),),
            )[1]
            return objective.space.join(moved)

        if kind is None:
            return hessian

        def forward(theta: Sequence[Tensor]) -> Tensor:
            return objective.forward(theta, x)

        with torch.no_grad():
            outputs = forward(point)
        outer = outer_product(kind, objective.loss, outputs, y, objective.total_mass)

        def gauss_newton(vector: Tensor) -> Tensor:
            moved = torch.func.jvp(forward, (point,), (objective.space.split(vector),))[1]
            pull = torch.func.vjp(forward, point)[1]
            return objective.space.join(pull(outer(moved))[0])

        return gauss_newton


def load_forward_rules() -> None:
    """Let torch prepare its forward derivatives, once, without its own deprecation warning."""
    # Torch compiles some forward derivatives at their first use, through a function that it
    # has itself deprecated: do it here, where the warning helps nobody.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch._decomp.decompositions_for_jvp  # noqa: F401


def _graph_bytes(objective: Objective, kind: OutputMatrixKind | None) -> int:
    """Measure how many bytes a row's graph keeps, on a few rows."""
    x, y = next(objective.chunks(_PROBE_ROWS))
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        graph = Graph(objective, kind, x, y)
    fixed = {tensor.untyped_storage().data_ptr() for tensor in (*objective.point, *graph.leaves)}
    fixed.add(x.untyped_storage().data_ptr())
    return sum(size for pointer, size in seen.items() if pointer not in fixed) // x.shape[0]
