"""Quadratic forms ``v^T A v`` of layer chains: a forward pass, no backward pass at all.

Along the line theta + t v the outputs of a chain are f + t Rf + t^2 R2f / 2 + ..., so that

    v^T H v = sum over rows of  Rf^T H_f Rf + <dL/df, R2f> .

Both derivatives travel forward with the activations (Taylor-mode differentiation; Griewank &
Walther 2008, "Evaluating Derivatives", chapter 13):

    Rz = a V^T + v + Ra W^T,             Ra  = s'(z) Rz
    R2z = 2 Ra V^T + R2a W^T,            R2a = s'(z) R2z + s''(z) Rz^2

An outer matrix J^T B J leaves out the second term. This costs less than half of a product
``A v``, which is what an eigenvalue's certificate in double precision needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from invariance.core._perceptron import derivatives
from invariance.curvature.products._chain import Chain
from invariance.curvature.products._output_space import OutputMatrixKind, outer_product


class ChainQuadratic:
    """The quadratic form of one direction, chunk by chunk.

    Shapes: ``vw (out, in)``, ``vb (out,)``.
    """

    def __init__(
        self,
        chain: Chain,
        vw: Sequence[Tensor | None],
        vb: Sequence[Tensor | None],
        kind: OutputMatrixKind | None,
    ) -> None:
        self._chain, self._shifts, self._kind = chain, tuple(vb), kind
        # [W; V], so that every activation is multiplied once for both.
        self._both = tuple(
            weight if v is None else torch.cat([weight, v])
            for weight, v in zip(chain.weights, vw, strict=True)
        )

    def on(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the share of these rows, a scalar.

        Shapes: ``x (n, w)``.
        """
        chain, curved = self._chain, self._kind is None
        a, first, second = x, None, None
        for index, layer in enumerate(chain.layers):
            z, rz, r2z = self._linear(index, a, first, second)
            a, slope, bend = derivatives(layer.activation, z, second=curved)
            first, second = _times(slope, rz), _times(slope, r2z) if curved else None
            if curved and bend is not None and rz is not None:
                second = _plus(second, bend * rz.square())
        total = x.new_zeros(())
        if first is not None:
            outer = outer_product(self._kind or "ggn", chain.loss, a, y, chain.total_mass)
            total = total + (first * outer(first)).sum()
        if second is not None:
            total = total + (chain.loss.gradients(a, y) * second).sum() / chain.total_mass
        return total

    def _linear(
        self, index: int, a: Tensor, first: Tensor | None, second: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return ``z``, ``Rz`` and ``R2z`` of a layer; ``None`` for zero."""
        weight, bias = self._chain.weights[index], self._chain.biases[index]
        shift, width = self._shifts[index], weight.shape[0]
        z, rz = _halves(a @ self._both[index].T, width)
        r2z: Tensor | None = None
        if first is not None:
            through, twice = _halves(first @ self._both[index].T, width)
            rz = _plus(rz, through)
            r2z = None if twice is None else 2 * twice
        if second is not None:
            r2z = _plus(r2z, second @ weight.T)
        if bias is not None:
            z = z + bias
        if shift is not None:
            rz = _plus(rz, shift.expand_as(z))
        return z, rz, r2z


def _halves(product: Tensor, width: int) -> tuple[Tensor, Tensor | None]:
    more = product.shape[1] > width
    return product[:, :width], product[:, width:] if more else None


def _plus(one: Tensor | None, two: Tensor) -> Tensor:
    return two if one is None else one + two


def _times(slope: Tensor | None, moved: Tensor | None) -> Tensor | None:
    return moved if slope is None or moved is None else slope * moved
