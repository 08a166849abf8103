"""Many Lanczos processes in step: one per model of an ensemble, or one per random probe.

Every process has its own matrix and its own basis; all of them advance by one batched
product and one batched re-orthogonalisation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class LanczosStack:
    """M Lanczos processes with full re-orthogonalisation.

    A process whose Krylov space ends (an invariant subspace) stands still from then on: its
    further rows of the tridiagonal matrix are zero and decoupled.

    Attributes:
        steps: Steps done.
        basis: ``(M, capacity, d)``; rows up to ``steps`` are meaningful.

    Shapes: ``rows (M, d)``, ``start (M, d)``.
    """

    def __init__(self, rows: Callable[[Tensor], Tensor], start: Tensor, capacity: int) -> None:
        self._rows = rows
        count, dim = start.shape
        self.capacity = min(capacity, dim)
        self.basis = start.new_zeros(count, min(self.capacity, 16), dim)
        self.basis[:, 0] = start / start.norm(dim=1, keepdim=True)
        self._small = torch.zeros(count, self.capacity, self.capacity, dtype=torch.float64)
        self._beta = torch.zeros(count, dtype=torch.float64)
        self._next = self.basis[:, 0].clone()
        self._live = torch.zeros(count, self.capacity, dtype=torch.bool)
        self.steps = 0

    def step(self) -> bool:
        """Advance every process by one product; ``False`` when there is nothing left to do."""
        j = self.steps
        if j >= self.capacity or (j and not bool(self._beta.any())):
            return False
        if j >= self.basis.shape[1]:
            wider = min(self.capacity, 2 * self.basis.shape[1])
            grown = self.basis.new_zeros(self.basis.shape[0], wider, self.basis.shape[2])
            grown[:, :j] = self.basis
            self.basis = grown
        self.basis[:, j] = self._next
        self._live[:, j] = True if j == 0 else self._beta > 0
        image = self._rows(self._next)
        before = image.norm(dim=1)
        # In place from here on: for many networks these passes over memory are the cost.
        alpha = torch.linalg.vecdot(self._next, image)
        image.addcmul_(self._next, -alpha[:, None])
        if j:
            image.addcmul_(self.basis[:, j - 1], -self._beta.to(image)[:, None])
        known = self.basis[:, : j + 1]
        extra = torch.bmm(known, image[:, :, None])
        image -= torch.bmm(extra.mT, known)[:, 0]
        self._small[:, j, j] = (alpha + extra[:, j, 0]).double().cpu()
        norm = image.norm(dim=1)
        alive = norm > 8 * torch.finfo(image.dtype).eps * before
        self._beta = torch.where(alive, norm, 0.0).double().cpu()
        self._next = image.mul_(torch.where(alive, 1 / norm, 0.0)[:, None])
        if j + 1 < self.capacity:
            self._small[:, j, j + 1] = self._small[:, j + 1, j] = self._beta
        self.steps = j + 1
        return True

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return Ritz values ``(M, s)`` ascending, weights ``(M, s)``, residuals ``(M, s)``.

        A weight is the square of the start vector's component along the Ritz vector, so
        that the weights of one process sum to one.
        """
        values, vectors = torch.linalg.eigh(self._small[:, : self.steps, : self.steps])
        return values, vectors[:, 0].square(), (self._beta[:, None] * vectors[:, -1]).abs()

    def extreme(self, *, largest: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return each process's extreme Ritz value."""
        values, vectors = torch.linalg.eigh(self._small[:, : self.steps, : self.steps])
        # Rows of a process that stands still are no Ritz vectors of its matrix.
        live = self._live[:, : self.steps, None]
        still = (vectors.square() * ~live).sum(1) > 0.5
        residuals = (self._beta[:, None] * vectors[:, -1]).abs()
        signed = torch.where(still, -torch.inf, values if largest else -values)
        order = signed.argsort(dim=1, descending=True)
        index = order[:, 0]
        rows = torch.arange(len(index))
        value, residual = values[rows, index], residuals[rows, index]
        gap = torch.zeros_like(value)
        if self.steps > 1:
            second = order[:, 1]
            known = signed[rows, second].isfinite()
            apart = (value - values[rows, second]).abs() - residuals[rows, second]
            gap = torch.where(known, apart.clamp_min(0), 0.0)
        scale = torch.where(still, 0.0, values.abs()).amax(1)
        return value, index, residual, gap, scale

    def select(self, keep: Tensor) -> None:
        """Go on with the processes ``keep`` (indices) only."""
        where = keep.to(self.basis.device)
        self.basis = self.basis[where]
        self._next = self._next[where]
        self._small, self._beta, self._live = self._small[keep], self._beta[keep], self._live[keep]

    def vectors(self, index: Tensor) -> Tensor:
        """Return the ``(M, d)`` Ritz vectors number ``index (M,)`` (ascending), unit norm."""
        _, vectors = torch.linalg.eigh(self._small[:, : self.steps, : self.steps])
        chosen = vectors[torch.arange(len(index)), :, index].to(self.basis)
        rows = torch.bmm(chosen[:, None], self.basis[:, : self.steps])[:, 0]
        unit: Tensor = rows / rows.norm(dim=1, keepdim=True)
        return unit
