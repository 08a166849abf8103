"""Extreme eigenpairs of a symmetric operator by Lanczos with full re-orthogonalisation.

The basis is kept orthogonal to working precision, so no eigenvalue appears twice that is not
double, also in float32; it is compressed to the best Ritz vectors when it fills its memory
(thick restart: Wu & Simon, SIAM J. Matrix Anal. Appl. 22, 2000). Every step ends with a
Rayleigh-Ritz problem, so the iteration stops at the first step that meets the tolerance
instead of at the end of a restart cycle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invariance.core._rng import generator

#: Maps ``(k, d)`` rows to their products ``(k, d)``.
Rows = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class RitzPairs:
    """Approximate eigenpairs, largest eigenvalue first.

    Attributes:
        values: ``(k,)`` float64 Ritz values, descending.
        vectors: ``(k, d)`` unit vectors.
        estimates: ``(k,)`` the recurrence's estimates of the residual norms.
        gaps: ``(k,)`` distance of each value to the nearest Ritz value that is not itself.
        scale: Largest absolute Ritz value, an estimate of the matrix's norm.
        steps: Products used.
        exhausted: True if the basis spans an invariant subspace.
    """

    values: Tensor
    vectors: Tensor
    estimates: Tensor
    gaps: Tensor
    scale: float
    steps: int
    exhausted: bool


class Lanczos:
    """A resumable Lanczos process for the algebraically largest and smallest eigenvalues.

    Shapes: ``start (d,)``, ``deflate (p, d)``.
    """

    def __init__(
        self,
        rows: Rows,
        start: Tensor,
        *,
        n_largest: int,
        n_smallest: int,
        capacity: int,
        seed: int = 0,
        deflate: Tensor | None = None,
    ) -> None:
        self._rows, self._deflate = rows, deflate
        self._dim = start.numel()
        free = self._dim - (0 if deflate is None else deflate.shape[0])
        self._high, self._low = min(n_largest, free), min(n_smallest, free)
        wanted = self._high + self._low
        self._capacity = min(free, max(capacity, 2 * wanted + 12))
        self._basis = start.new_empty(min(self._capacity + 1, 33), self._dim)
        held = self._basis.shape[0]
        self._small = torch.zeros(held, held, dtype=torch.float64)
        self._draws = generator(seed, "curvature", "lanczos restart")
        self._size = 0
        self._beta = 0.0
        self._coupled: list[int] = []
        self.steps = 0
        self.exhausted = False
        self._next = self._orthonormal(start)

    def _orthonormal(self, vector: Tensor) -> Tensor | None:
        """Return ``vector`` made orthonormal to the basis, or random directions in its place."""
        for _ in range(3):
            for _ in range(2):
                if self._deflate is not None:
                    vector = vector - self._deflate.mT @ (self._deflate @ vector)
                known = self._basis[: self._size]
                vector = vector - known.mT @ (known @ vector)
            norm = float(vector.norm())
            if norm > 0:
                unit = vector / norm
                leak = self._basis[: self._size] @ unit
                if not leak.numel() or float(leak.abs().max()) < 1e-3:
                    return unit
            draw = torch.randn(self._dim, generator=self._draws, dtype=self._basis.dtype)
            vector = draw.to(self._basis.device)
        return None

    def step(self) -> bool:
        """Extend the basis by one product; ``False`` if the whole space is spanned."""
        if self._next is None or self._size >= self._capacity:
            if self._next is None or self._capacity >= self._limit():
                return False
            self._compress()
        j = self._size
        self._grow(j + 1)
        assert self._next is not None
        self._basis[j] = self._next
        self._size = j + 1
        image = self._rows(self._basis[j : j + 1])[0]
        self.steps += 1
        known = self._basis[: j + 1]
        before = float(image.norm())
        # First the large overlaps (the vector itself and its couplings), then one full pass:
        # what is left is small, so that a single pass keeps the basis orthogonal.
        # They are neighbours in the basis: a view, where indexing would copy the vectors.
        near = known[min(self._coupled, default=j) :]
        overlap = torch.zeros_like(self._basis[: j + 1, 0])
        overlap[j + 1 - len(near) :] = near @ image
        image = torch.addmv(image, near.mT, overlap[j + 1 - len(near) :], alpha=-1)
        if self._deflate is not None:
            image = image - self._deflate.mT @ (self._deflate @ image)
        extra = known @ image
        image = torch.addmv(image, known.mT, extra, alpha=-1)
        overlap = overlap + extra
        self._coupled = [j]
        column = overlap.to("cpu", torch.float64)
        self._small[: j + 1, j] = column
        self._small[j, : j + 1] = column
        self._beta = float(image.norm())
        size = max(before, float(self._small[: j + 1, : j + 1].abs().max()))
        if self._beta <= 8 * torch.finfo(image.dtype).eps * size:
            self._beta, self.exhausted = 0.0, True
            self._next = self._orthonormal(torch.zeros_like(image)) if self._more() else None
            self._coupled = []
        else:
            self.exhausted = False
            self._next = image / self._beta
        return True

    def _limit(self) -> int:
        return self._dim - (0 if self._deflate is None else self._deflate.shape[0])

    def _more(self) -> bool:
        return self._size < self._limit()

    def _grow(self, size: int) -> None:
        if size > self._basis.shape[0]:
            wider = self._basis.new_empty(
                min(self._capacity + 1, 2 * self._basis.shape[0]), self._dim
            )
            wider[: self._size] = self._basis[: self._size]
            self._basis = wider
            # The projected matrix grows along: all of it at once would be memory to clear that
            # a run of a few dozen steps never looks at.
            small = self._small.new_zeros(len(wider), len(wider))
            small[: self._size, : self._size] = self._small[: self._size, : self._size]
            self._small = small

    def _solve(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self._small[: self._size, : self._size])
        return values.flip(0), vectors.flip(1)

    def _compress(self) -> None:
        """Keep the Ritz vectors at both ends that matter and drop the rest."""
        values, vectors = self._solve()
        spare = max(2, (self._capacity - self._high - self._low) // 3)
        high = self._high + (spare if self._high else 0)
        low = self._low + (spare if self._low else 0)
        keep = sorted({*range(high), *range(self._size - low, self._size)} & {*range(self._size)})
        keep = keep[: self._capacity - 2]
        chosen = vectors[:, keep].to(self._basis)
        self._basis[: len(keep)] = chosen.mT @ self._basis[: self._size]
        self._small.zero_()
        self._small[range(len(keep)), range(len(keep))] = values[keep]
        self._size = len(keep)
        self._coupled = list(range(len(keep)))

    @property
    def size(self) -> int:
        """Number of basis vectors."""
        return self._size

    def estimates(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """Return wanted values, residual estimates, gaps, and the norm estimate."""
        values, vectors = self._solve()
        index = self._wanted(values.numel())
        residuals = (self._beta * vectors[-1]).abs()
        picked = values[index]
        apart = (picked[:, None] - values[None, :]).abs()
        apart[torch.arange(len(index)), index] = torch.inf
        # The neighbour may still move by its own residual: subtract that from the gap.
        gaps = (apart - residuals[None, :]).clamp_min(0).min(dim=1).values
        gaps = torch.where(gaps.isinf(), 0.0, gaps)  # no neighbour is known yet
        return picked, residuals[index], gaps, float(values.abs().max())

    def _wanted(self, size: int) -> Tensor:
        high = list(range(min(self._high, size)))
        low = [i for i in range(size - self._low, size) if i >= len(high)]
        return torch.tensor(high + low, dtype=torch.long)

    def pairs(self) -> RitzPairs:
        """Form the wanted Ritz pairs."""
        values, vectors = self._solve()
        picked, estimates, gaps, scale = self.estimates()
        index = self._wanted(values.numel())
        rows = vectors[:, index].to(self._basis).mT @ self._basis[: self._size]
        rows = rows / rows.norm(dim=1, keepdim=True)
        return RitzPairs(picked, rows, estimates, gaps, scale, self.steps, self.exhausted)
