"""What every algorithm here asks of a matrix: products with it, and nothing of how.

Lanczos, trace and diagonal estimators, densities and norms take a :class:`SymmetricOperator`.
Curvature matrices are one kind of it; a matrix of numbers, :class:`MatrixOperator`, another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from invariance.core._errors import DataError, MeasureError
from invariance.core._rng import generator
from invariance.curvature.products._parameter_space import ParameterSpace


class SymmetricOperator(ABC):
    """A symmetric ``(d, d)`` matrix that is only multiplied with.

    A subclass gives ``space``, ``device``, ``dtype`` and :meth:`_multiply`.

    Attributes:
        label: The matrix's name in reports.
        products: How many products with one vector were computed so far.
    """

    label: str = "matrix"
    products: int = 0

    @property
    @abstractmethod
    def space(self) -> ParameterSpace:
        """The coordinates: named blocks of the flat vector."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where vectors live."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Precision of the products."""

    @abstractmethod
    def _multiply(self, vectors: Tensor) -> Tensor:
        """Return the products with the rows of ``(k, d)``, on device and in dtype."""

    @property
    def method(self) -> str:
        """How products are computed, in words."""
        return "given products"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the blocks in the order of the flat vector."""
        return self.space.names

    @property
    def shape(self) -> tuple[int, int]:
        """``(d, d)``."""
        return self.space.dim, self.space.dim

    def notes(self) -> dict[str, object]:
        """Facts for ``Estimate.detail``."""
        return {"dim": self.space.dim}

    def in_dtype(self, dtype: torch.dtype) -> SymmetricOperator:
        """Return the same matrix in another precision, for a certificate say."""
        if dtype == self.dtype:
            return self
        raise MeasureError(f"{type(self).__name__} is not known in {dtype}. Leave certify_in out.")

    def thinned(self, stride: int) -> SymmetricOperator | None:
        """Return a cheaper matrix with similar eigenvectors, ``None`` where there is none."""
        return None

    def quadratic(self, vector: Tensor, dtype: torch.dtype) -> float | None:
        """Return ``v^T A v`` in another precision; ``None`` if a product is no dearer."""
        return None

    def rows(self, vectors: Tensor) -> Tensor:
        """Multiply with each row of ``(k, d)``; returns ``(k, d)``."""
        if vectors.ndim != 2 or vectors.shape[1] != self.shape[1]:
            raise DataError(
                f"Expected vectors with {self.shape[1]} entries (one a parameter entry). "
                f"Got shape {tuple(vectors.shape)}."
            )
        self.products += vectors.shape[0]
        return self._multiply(vectors.detach().to(self.device, self.dtype))

    def matvec(self, vector: Tensor) -> Tensor:
        """Multiply with a ``(d,)`` vector; returns ``(d,)``."""
        return self.rows(vector.reshape(1, -1))[0]

    def matmat(self, matrix: Tensor) -> Tensor:
        """Multiply with the columns of a ``(d, k)`` matrix at once; returns ``(d, k)``."""
        return self.rows(matrix.T).T

    def __matmul__(self, other: Tensor) -> Tensor:
        return self.matvec(other) if other.ndim == 1 else self.matmat(other)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Read a ``(d,)`` vector by the names of its blocks, in their shapes."""
        return dict(zip(self.names, self.space.split(vector), strict=True))

    def random_vectors(self, count: int, *, seed: int, stream: str = "probe") -> Tensor:
        """Draw ``(count, d)`` standard normal vectors; the same on every device."""
        draws = torch.randn(
            count, self.shape[0], generator=generator(seed, "curvature", stream), dtype=self.dtype
        )
        return draws.to(self.device)

    def to_dense(self) -> Tensor:
        """Form the ``(d, d)`` matrix, symmetrised; for small d."""
        dim = self.shape[0]
        eye = torch.eye(dim, dtype=self.dtype, device=self.device)
        step = max(1, min(dim, 4096, (64 << 20) // max(1, dim)))
        dense = torch.cat([self.rows(part) for part in torch.split(eye, step)])
        return (dense + dense.T) / 2

    def to_scipy(self) -> LinearOperator:
        """View as a SciPy operator on NumPy arrays of the same precision."""
        kind = np.dtype(str(self.dtype).removeprefix("torch."))

        def matvec(array: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
            vector = torch.as_tensor(np.ascontiguousarray(array.reshape(-1)))
            return np.asarray(self.matvec(vector).cpu().numpy())

        def matmat(array: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
            return np.asarray(self.matmat(torch.as_tensor(np.array(array))).cpu().numpy())

        return LinearOperator(
            shape=self.shape, dtype=kind, matvec=matvec, rmatvec=matvec, matmat=matmat
        )


class MatrixOperator(SymmetricOperator):
    """A matrix of numbers.

    Args:
        matrix: ``(d, d)``, symmetric.

    Raises:
        DataError: It is not square, or not symmetric up to round-off.

    Example:
        >>> from invariance.curvature import hessian_eigenvalues
        >>> operator = MatrixOperator(torch.diag(torch.tensor([1.0, 5.0, -2.0])))
        >>> float(hessian_eigenvalues(operator)), float(operator.matvec(torch.ones(3)).sum())
        (5.0, 4.0)
    """

    def __init__(self, matrix: Tensor) -> None:
        square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
        scale = float(matrix.abs().max()) if matrix.numel() else 0.0
        slack = 1e3 * torch.finfo(matrix.dtype).eps * scale
        if not square or not scale < float("inf") or float((matrix - matrix.T).abs().max()) > slack:
            raise DataError(
                f"Expected a finite symmetric matrix. Got shape {tuple(matrix.shape)}; "
                "use (A + A.T) / 2."
            )
        self.matrix = matrix.detach()
        self._space = ParameterSpace(("matrix",), (torch.Size([len(matrix)]),))

    @property
    def space(self) -> ParameterSpace:
        """One block."""
        return self._space

    @property
    def device(self) -> torch.device:
        """Where the matrix lies."""
        return self.matrix.device

    @property
    def dtype(self) -> torch.dtype:
        """The matrix's."""
        return self.matrix.dtype

    @property
    def method(self) -> str:
        """How products are computed, in words."""
        return "products with the matrix"

    def in_dtype(self, dtype: torch.dtype) -> SymmetricOperator:
        """Return the same matrix in another precision."""
        return MatrixOperator(self.matrix.to(dtype))

    def _multiply(self, vectors: Tensor) -> Tensor:
        return vectors @ self.matrix.T
