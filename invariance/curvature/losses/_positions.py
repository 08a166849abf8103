"""Class losses of models with an output at every position: tokens of a text, pixels of an image.

The outputs of a row come flattened to ``(n, C P)``; its P positions are what the loss averages
over, as ``torch.nn.CrossEntropyLoss`` does: over all positions of all rows that are not ignored,
each with its label's weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invariance.core._errors import DataError, MeasureError
from invariance.curvature._batches import check_outputs
from invariance.curvature.losses._base import HessianFactor, Loss

#: Most bytes of one row's root: its blocks are kept with the zeros between them.
_ROOT_BYTES = 1 << 31


@dataclass(frozen=True, eq=False)
class Positionwise(Loss):
    """A loss of single positions, averaged over all of them.

    Attributes:
        inner: The loss of ``(m, C)`` outputs and ``(m,)`` labels or ``(m, C)`` probabilities.
        shape: The shape of one row's outputs as the model gives them: ``(*positions, C)``, or
            ``(C, *positions)`` as torch has it. Which of the two, the labels' shape decides.
    """

    inner: Loss
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name for ``Estimate.method``."""
        return f"{self.inner.name}, mean over positions"

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Refuse labels that do not fit the positions, or that the inner loss refuses."""
        check_outputs(outputs)
        self.inner.check(*self.positions(outputs, y))

    def _classes_first(self, outputs: Tensor, y: Tensor) -> bool:
        """Whether the classes are the first dimension of a row's outputs, not the last."""
        shape, own = self.shape, tuple(y.shape[1:])
        if y.is_floating_point():
            if own != shape:
                raise self._misfit(y, f"probabilities of shape (n, {_told(shape)})")
            sums = [(y.detach().sum(dim) - 1).abs().max() < 1e-3 for dim in (1, -1)]
            first, last = bool(sums[0]), bool(sums[1])
        else:
            count = outputs.shape[1] / max(1, math.prod(own))
            fits = len(own) == len(shape) - 1
            first, last = fits and count == shape[0], fits and count == shape[-1]
            if first and last:
                first, last = own == shape[1:], own == shape[:-1]
        if first and last:
            raise DataError(
                f"Outputs of shape (n, {_told(shape)}) and targets of shape {tuple(y.shape)} do "
                "not say which dimension holds the classes. Say it in the loss: "
                "loss=lambda f, y: torch.nn.functional.cross_entropy(f, y) takes the second, "
                "cross_entropy(f.movedim(-1, 1), y) the last."
            )
        if not first and not last:
            raise self._misfit(
                y, f"labels of shape (n, {_told(shape[:-1])}) or (n, {_told(shape[1:])})"
            )
        return first

    def _misfit(self, y: Tensor, expected: str) -> DataError:
        return DataError(
            f"The model's outputs have shape (n, {_told(self.shape)}), so the targets must be "
            f"{expected}: one class a position. Got {y.dtype} of shape {tuple(y.shape)}."
        )

    def _rows(self, outputs: Tensor, y: Tensor, *, first: bool) -> Tensor:
        """Bring ``(..., n, C P)`` to ``(..., n, P, C)``."""
        width = math.prod(y.shape[1:])
        if y.is_floating_point():
            width //= self.shape[0 if first else -1]
        lead = outputs.shape[:-1]
        return outputs.reshape(*lead, -1, width).mT if first else outputs.reshape(*lead, width, -1)

    def positions(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs ``(n P, C)`` and targets ``(n P, ...)`` of single positions."""
        first = self._classes_first(outputs, y)
        rows = self._rows(outputs, y, first=first).flatten(0, 1)
        if not y.is_floating_point():
            return rows, y.flatten()
        return rows, self._rows(y.flatten(1), y, first=first).flatten(0, 1)

    def split(self, vectors: Tensor, y: Tensor) -> Tensor:
        """Bring vectors in the space of outputs, ``(..., n, K)``, to ``(..., n P, C)``."""
        rows = self._rows(vectors, y, first=self._classes_first(vectors.flatten(0, -2), y))
        return rows.flatten(-3, -2)

    def merge(self, vectors: Tensor, y: Tensor) -> Tensor:
        """Bring ``(..., n P, C)`` back to ``(..., n, K)``."""
        n = y.shape[0]
        rows = vectors.reshape(*vectors.shape[:-2], n, -1, vectors.shape[-1])
        whole = torch.empty(n, rows.shape[-2] * rows.shape[-1], device="meta")
        if self._classes_first(whole, y):
            rows = rows.mT
        return rows.flatten(-2)

    def values(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return each row's sum over its positions, ``(n,)``."""
        values = self.inner.values(*self.positions(outputs, y))
        return values.view(y.shape[0], -1).sum(1)

    def masses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return each row's weight: that of its positions together."""
        masses = self.inner.masses(*self.positions(outputs, y))
        return masses.view(y.shape[0], -1).sum(1)

    def gradients(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of each row's value in its outputs, ``(n, K)``."""
        return self.merge(self.inner.gradients(*self.positions(outputs, y)), y)

    def _blocks(self, root: Tensor, y: Tensor) -> Tensor:
        """Put the positions' roots ``(n P, C, R)`` on a diagonal, ``(n, C P, P R)``."""
        n = y.shape[0]
        blocks = root.reshape(n, -1, *root.shape[1:])
        count, classes, columns = blocks.shape[1:]
        size = count * count * classes * columns * root.element_size()
        if size > _ROOT_BYTES:
            raise MeasureError(
                f"A row has {count * classes:,} outputs, and the exact sweep would take "
                f"{size / 2**30:.0f} GiB for it alone. Use method='estimate', or measure on fewer "
                "positions."
            )
        whole = root.new_zeros(n, count, classes, count, columns)
        each = torch.arange(count, device=root.device)
        whole[:, each, :, each] = blocks.transpose(0, 1)
        # As vectors in the space of outputs, one for each position and column.
        columns_first = whole.flatten(-2).movedim(-1, 0).flatten(1, 2)
        return self.merge(columns_first, y).movedim(0, -1)

    def hessian_factor(self, outputs: Tensor, y: Tensor) -> HessianFactor:
        """Return the positions' roots on a diagonal."""
        root, signs = self.inner.hessian_factor(*self.positions(outputs, y))[:2]
        return HessianFactor(
            self._blocks(root, y), None if signs is None else signs.reshape(y.shape[0], -1)
        )

    def sampled_factor(
        self, outputs: Tensor, y: Tensor, count: int, draws: torch.Generator
    ) -> HessianFactor:
        """Return random columns of all positions at once, with signs of their own each."""
        rows, labels = self.positions(outputs, y)
        found = self.inner.sampled_factor(rows, labels, count, draws)
        return found._replace(root=self.merge(found.root.movedim(-1, 0), y).movedim(0, -1))

    def fisher_root(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the positions' roots on a diagonal."""
        return self._blocks(self.inner.fisher_root(*self.positions(outputs, y)), y)


def _told(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
