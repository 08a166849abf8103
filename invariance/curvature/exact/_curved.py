"""What smooth activations add to the Hessian in a layer's output: the full recursion.

With a smooth activation ``a = s(z)`` the Hessian of the loss in z is not the Gauss-Newton
part alone but

    H_z = D H_a D + diag(s''(z) * dL/da),   D = diag(s'(z)),   H_a = W^T H_z' W,

with H_z' the Hessian in the next layer's output (Botev, Ritter & Barber 2017, "Practical
Gauss-Newton optimisation for deep learning"). The sweep carries the
Gauss-Newton part in factored form; this file carries the rest, row by row: first as a
diagonal, and as a matrix only where the next layer needs one.
"""

from __future__ import annotations

from torch import Tensor


class Remainder:
    """The part of every row's Hessian that second derivatives of activations make.

    Shapes: ``gradient (*lead, n, K)``.
    """

    def __init__(self, gradient: Tensor) -> None:
        self.gradient = gradient
        self._diagonal: Tensor | None = None
        self._matrix: Tensor | None = None

    @property
    def diagonal(self) -> Tensor | None:
        """``(*lead, n, d)``: its diagonal; ``None`` while it is zero."""
        if self._matrix is not None:
            return self._matrix.diagonal(dim1=-2, dim2=-1)
        return self._diagonal

    def through_activation(self, first: Tensor, second: Tensor | None) -> None:
        """Go from an activation's output to its input.

        Shapes: ``first (*lead, n, d)``.
        """
        added = None if second is None else second * self.gradient
        self.scale(first)
        if added is None:
            return
        if self._matrix is not None:
            self._matrix.diagonal(dim1=-2, dim2=-1).add_(added)
        else:
            self._diagonal = added if self._diagonal is None else self._diagonal + added

    def scale(self, factor: Tensor) -> None:
        """Go back through an elementwise product with ``factor``."""
        self.gradient = self.gradient * factor
        if self._matrix is not None:
            self._matrix = self._matrix * factor.unsqueeze(-1) * factor.unsqueeze(-2)
        elif self._diagonal is not None:
            self._diagonal = self._diagonal * factor.square()

    def through_linear(self, weight: Tensor, *, whole: bool) -> None:
        """Go from a linear layer's output to its input.

        Shapes: ``weight (*lead, out, in)``.
        """
        self.gradient = self.gradient @ weight
        if self._matrix is None and self._diagonal is None:
            return
        if self._matrix is not None:
            half = self._matrix @ weight.unsqueeze(-3)
        elif whole:
            half = self._diagonal.unsqueeze(-1) * weight.unsqueeze(-3)  # type: ignore[union-attr]
        else:
            self._diagonal = self._diagonal @ weight.square()  # type: ignore[operator]
            return
        if whole:
            self._matrix = weight.mT.unsqueeze(-3) @ half
            self._diagonal = None
        else:
            self._diagonal = (half * weight.unsqueeze(-3)).sum(-2)
            self._matrix = None

    def carried(self, weight: Tensor) -> Tensor | None:
        """Return ``tr(W^T H W)`` of each row, ``(*lead, n)``; ``None`` while it is zero."""
        if self._matrix is not None:
            gram = weight @ weight.mT
            return (self._matrix * gram.unsqueeze(-3)).sum((-2, -1))
        if self._diagonal is not None:
            norms = weight.square().sum(-1)
            return (self._diagonal * norms.unsqueeze(-2)).sum(-1)
        return None
