"""What a loss is to this package: sums over rows, with exact derivatives in the outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from invariance.core._errors import MeasureError


class HessianFactor(NamedTuple):
    """A signed square root of every row's Hessian in f: ``H_n = root diag(signs) root^T``.

    Attributes:
        root: ``(n, K, R)``; its columns are the cotangents of a curvature sweep.
        signs: ``(n, R)`` of +1 and -1, or ``None`` when every sign is +1.
    """

    root: Tensor
    signs: Tensor | None


class Loss(ABC):
    """A mean loss of outputs ``(n, K)`` and targets, with exact derivatives in the outputs.

    The numerical methods never validate (they run inside ``vmap``): call :meth:`check`
    first, once per batch.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Name for ``Estimate.method``."""

    @abstractmethod
    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Refuse outputs and targets that the loss is not defined on.

        Args:
            outputs: ``(n, K)`` network outputs.
            y: Targets of those rows.

        Raises:
            DataError: Wrong shape, NaN or infinity, empty, label out of range.
        """

    @abstractmethod
    def values(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the ``(n,)`` numerators; differentiable and usable inside ``vmap``."""

    def masses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the ``(n,)`` weights whose sum divides the sum of :meth:`values`."""
        return outputs.new_ones(outputs.shape[0])

    def total(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the sum of :meth:`values`, in one call where they would take one a row."""
        return self.values(outputs, y).sum()

    def fisher_root(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return a root of every row's Fisher matrix of the outputs.

        Args:
            outputs: ``(n, K)`` network outputs, the parameters of the predictive distribution.
            y: Targets; only their weights enter.

        Returns:
            ``(n, K, R)``.

        Raises:
            MeasureError: The loss is not known to be a negative log-likelihood.
        """
        raise MeasureError(
            f"The loss {self.name!r} names no predictive distribution, so it has no Fisher "
            "information. Use 'cross_entropy', 'mse', or one of torch's NLLLoss, "
            "BCEWithLogitsLoss and PoissonNLLLoss."
        )

    def mean(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the scalar loss of one batch, as PyTorch's mean reduction has it."""
        return self.total(outputs, y) / self.masses(outputs, y).sum()

    @abstractmethod
    def gradients(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``(n, K)``, the gradient of each row's value in its outputs."""

    @abstractmethod
    def hessian_factor(self, outputs: Tensor, y: Tensor) -> HessianFactor:
        """Return a signed square root of the Hessian of each row's value in its outputs."""

    def hessians(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``(n, K, K)``, the Hessian of each row's value in its outputs."""
        root, signs = self.hessian_factor(outputs, y)
        right = root if signs is None else root * signs.unsqueeze(-2)
        return root @ right.mT
