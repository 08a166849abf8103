"""Fast second derivatives of plain chains: Linear layers with elementwise functions between.

For such a network the product of the Hessian with a vector needs no graph at all. With
activations, backward signals and the activation's derivatives kept, it is one extra forward
and one extra backward pass of matrix products (Pearlmutter 1994, the R-operator):

    forward   Rz_l = a_{l-1} V_l^T + v_l + Ra_{l-1} W_l^T,     Ra_l = s'(z_l) Rz_l
    outputs   Rd_L = H_f Rf
    backward  Rd_{z,l} = s'(z_l) Rd_{a,l} + s''(z_l) Rz_l d_{a,l}
              Hv_{W_l} = Rd_{z,l}^T a_{l-1} + d_{z,l}^T Ra_{l-1},   Hv_{b_l} = sum Rd_{z,l}
              Rd_{a,l-1} = Rd_{z,l} W_l + d_{z,l} V_l

Parameters may carry a leading dimension M (a stack of networks) and so may the vectors
(several at once): the first layer, whose input is shared, is then a single matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invariance.core._perceptron import Dense, Slope, derivatives, qualified, read_perceptron
from invariance.curvature.losses._resolve import Loss
from invariance.curvature.products._output_space import (
    OuterProduct,
    OutputMatrixKind,
    outer_product,
)
from invariance.curvature.products._parameter_space import ParameterSpace


@dataclass(frozen=True)
class ChainLayer:
    """One Linear layer and the elementwise functions after it.

    Attributes:
        weight: Name of the weight parameter.
        bias: Name of the bias, or ``None``.
        activation: The functions that follow, in order; empty for none.
    """

    weight: str
    bias: str | None
    activation: tuple[Slope, ...]


def read_chain(model: nn.Module) -> tuple[ChainLayer, ...] | None:
    """Read a perceptron that begins with a linear layer and has no BatchNorm, else ``None``."""
    layers: list[ChainLayer] = []
    for step in read_perceptron(model) or ():
        if isinstance(step, Dense):
            bias = None if step.bias is None else qualified(step.name, "bias")
            layers.append(ChainLayer(qualified(step.name, "weight"), bias, ()))
        elif isinstance(step, Slope) and layers:
            layers[-1] = replace(layers[-1], activation=(*layers[-1].activation, step))
        else:
            return None
    return tuple(layers) or None


@dataclass(frozen=True, eq=False)
class ChainState:
    """What one chunk of rows needs for every product at the same point.

    Attributes:
        inputs: ``a_{l-1}`` of each layer, ``(n, w)`` or ``(M, n, w)``.
        slopes: ``s'(z_l)`` of each layer; ``None`` for the identity.
        bends: ``s''(z_l)`` times the backward signal ``d_{a,l}``; ``None`` when zero.
        signals: ``d_{z,l}``, the gradient at each layer's output.
        outer: The product with the loss's Hessian in the outputs.
    """

    inputs: tuple[Tensor, ...]
    slopes: tuple[Tensor | None, ...]
    bends: tuple[Tensor | None, ...]
    signals: tuple[Tensor, ...]
    outer: OuterProduct

    @property
    def nbytes(self) -> int:
        """Bytes held, the shared first input left out."""
        groups = (self.inputs[1:], self.slopes, self.bends, self.signals)
        return sum(tensor.nbytes for group in groups for tensor in group if tensor is not None)


class Chain:
    """The R-operator of one network, or of a stack of M networks of one shape.

    Shapes: ``weights (*M, out, in)``, ``biases (*M, out)``.
    """

    def __init__(
        self,
        layers: Sequence[ChainLayer],
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        loss: Loss,
        total_mass: float,
    ) -> None:
        self.layers = tuple(layers)
        self.weights = tuple(weights)
        self.biases = tuple(biases)
        self.loss = loss
        self.total_mass = total_mass

    def prepare(self, x: Tensor, y: Tensor, kind: OutputMatrixKind | None = None) -> ChainState:
        """Run one forward and one backward pass over a chunk and keep what products need.

        Shapes: ``x (n, w)``.
        """
        a = x
        inputs: list[Tensor] = []
        slopes: list[Tensor | None] = []
        curves: list[Tensor | None] = []
        for layer, weight, bias in zip(self.layers, self.weights, self.biases, strict=True):
            inputs.append(a)
            z = _times_transposed(a, weight, bias)
            a, slope, curve = derivatives(layer.activation, z, second=kind is None)
            slopes.append(slope)
            curves.append(curve)
        flat = a.flatten(0, -2)
        product = outer_product(kind or "ggn", self.loss, flat, y, self.total_mass)
        outer = product if a.ndim == 2 else _unmerge(product, a.shape)
        if kind is not None:
            return ChainState(tuple(inputs), tuple(slopes), (), (), outer)
        signal = (self.loss.gradients(flat, y) / self.total_mass).reshape(a.shape)
        signals: list[Tensor] = []
        bends: list[Tensor | None] = []
        for slope, curve, weight in zip(
            reversed(slopes), reversed(curves), reversed(self.weights), strict=True
        ):
            bends.append(None if curve is None else curve * signal)
            signal = signal if slope is None else slope * signal
            signals.append(signal)
            signal = signal @ weight
        return ChainState(
            tuple(inputs), tuple(slopes), tuple(reversed(bends)), tuple(reversed(signals)), outer
        )

    def multiply(
        self,
        state: ChainState,
        space: ParameterSpace,
        kind: OutputMatrixKind | None,
        vectors: Tensor,
    ) -> Tensor:
        """Multiply flat ``(*B, d)`` vectors, whose coordinates are ``space``."""
        parts = dict(zip(space.names, space.split(vectors), strict=True))
        vw = [parts.get(layer.weight) for layer in self.layers]
        vb = [parts.get(layer.bias) if layer.bias else None for layer in self.layers]
        out_w, out_b = (self.hessian if kind is None else self.gauss_newton)(state, vw, vb)
        names = [name for layer in self.layers for name in (layer.weight, layer.bias)]
        outs = [out for pair in zip(out_w, out_b, strict=True) for out in pair]
        found = dict(zip(names, outs, strict=True))
        tensors = [tensor for name in space.names if (tensor := found[name]) is not None]
        return space.join(tensors, vectors.ndim - 1)

    def hessian(
        self, state: ChainState, vw: Sequence[Tensor | None], vb: Sequence[Tensor | None]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Multiply the Hessian of one chunk with a vector (or a stack of vectors).

        Shapes: ``vw (*B, out, in)``, ``vb (*B, out)``.
        """
        tangents, movements, moved = self._forward(state, vw, vb)
        signal = state.outer(movements[-1] if moved is None else moved)
        depth = len(self.layers)
        out_w: list[Tensor | None] = [None] * depth
        out_b: list[Tensor | None] = [None] * depth
        for index in reversed(range(depth)):
            slope, bend = state.slopes[index], state.bends[index]
            # In place: the signal is this call's own, and fresh memory costs page faults.
            if slope is not None:
                signal = signal.mul_(slope)
            if bend is not None:
                signal = signal.addcmul_(bend, movements[index])
            product = _transposed_times(signal, state.inputs[index])
            tangent = tangents[index]
            if tangent is not None:
                product = _add_product(product, state.signals[index].mT, tangent)
            out_w[index], out_b[index] = product, signal.sum(-2)
            if index:
                back = _times(signal, self.weights[index])
                direction = vw[index]
                if direction is not None:
                    back = _add_product(back, state.signals[index], direction)
                signal = back
        return out_w, out_b

    def gauss_newton(
        self, state: ChainState, vw: Sequence[Tensor | None], vb: Sequence[Tensor | None]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Multiply ``J^T B J`` of one chunk with a vector; arguments as :meth:`hessian`."""
        _, movements, moved = self._forward(state, vw, vb)
        signal = state.outer(movements[-1] if moved is None else moved)
        depth = len(self.layers)
        out_w: list[Tensor | None] = [None] * depth
        out_b: list[Tensor | None] = [None] * depth
        for index in reversed(range(depth)):
            slope = state.slopes[index]
            if slope is not None:
                signal = signal.mul_(slope)
            out_w[index] = _transposed_times(signal, state.inputs[index])
            out_b[index] = signal.sum(-2)
            if index:
                signal = _times(signal, self.weights[index])
        return out_w, out_b

    def _forward(
        self, state: ChainState, vw: Sequence[Tensor | None], vb: Sequence[Tensor | None]
    ) -> tuple[list[Tensor | None], list[Tensor], Tensor | None]:
        """Return ``Ra_{l-1}``, ``Rz_l`` of each layer, and ``Ra_L`` if it is not ``Rz_L``.

        Where no bend will ask for ``Rz_l``, its memory is reused for ``Ra_l``.
        """
        tangents: list[Tensor | None] = []
        movements: list[Tensor] = []
        tangent: Tensor | None = None
        lead = (
            next(v.shape[: v.ndim - 2] for v in vw if v is not None)
            if any(v is not None for v in vw)
            else next(v.shape[: v.ndim - 1] for v in vb if v is not None)
        )
        for index, weight in enumerate(self.weights):
            tangents.append(tangent)
            direction, shift = vw[index], vb[index]
            rz: Tensor | None = None
            if direction is not None:
                rz = _times_transposed(state.inputs[index], direction, shift)
            if tangent is not None:
                through = weight.mT
                rz = _times(tangent, through) if rz is None else _add_shared(rz, tangent, through)
            own = rz is not None
            if shift is not None and direction is None:
                moved = shift.unsqueeze(-2)
                rz = moved if rz is None else rz + moved
            if rz is None:
                rows = state.inputs[index].shape[-2]
                rz = weight.new_zeros(*lead, rows, weight.shape[-2])
            elif rz.shape[-2] == 1:
                rz = rz.expand(*rz.shape[:-2], state.inputs[index].shape[-2], rz.shape[-1])
            movements.append(rz)
            slope = state.slopes[index]
            if own and slope is not None and not (state.bends and state.bends[index] is not None):
                tangent = rz.mul_(slope)
            else:
                tangent = rz if slope is None else slope * rz
        last = tangent if state.slopes[-1] is not None else None
        return tangents, movements, last


def _unmerge(product: OuterProduct, shape: torch.Size) -> OuterProduct:
    return lambda u: product(u.reshape(-1, shape[-1])).reshape(shape)


def _times_transposed(a: Tensor, weight: Tensor, shift: Tensor | None) -> Tensor:
    """Return ``a W^T + b`` with one product when ``a`` is shared by a stack of weights."""
    if a.ndim == 2 and weight.ndim == 2:
        return F.linear(a, weight, shift)
    if a.ndim == 2:
        stack, out, _ = weight.shape
        product = (a @ weight.flatten(0, 1).T).view(-1, stack, out).movedim(1, 0)
    else:
        product = a @ weight.mT
    return product if shift is None else product.add_(shift.unsqueeze(-2))


def _times(signal: Tensor, weight: Tensor) -> Tensor:
    """Return ``signal W`` with one product when ``weight`` is shared by a stack of signals."""
    if signal.ndim == 3 and weight.ndim == 2:
        return (signal.flatten(0, 1) @ weight).view(*signal.shape[:2], -1)
    return signal @ weight


def _transposed_times(signal: Tensor, a: Tensor) -> Tensor:
    """Return ``signal^T a`` with one product when ``a`` is shared by a stack of signals."""
    if signal.ndim == 3 and a.ndim == 2:
        stack, _, out = signal.shape
        flat = signal.permute(0, 2, 1).reshape(stack * out, -1)
        return (flat @ a).view(stack, out, -1)
    return signal.mT @ a


def _add_shared(base: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return ``base + left @ right``, in place where the shapes allow one fused call."""
    if left.ndim == 3 and right.ndim == 2:
        return base + _times(left, right)
    return _add_product(base, left, right)


def _add_product(base: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return ``base + left @ right`` for freshly made ``base``, fused where possible."""
    if base.ndim == 2:
        return base.addmm_(left, right)
    if left.ndim == 3 and right.ndim == 3 and base.is_contiguous():
        return base.baddbmm_(left, right)
    return base + left @ right
