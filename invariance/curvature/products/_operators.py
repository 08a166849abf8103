"""Curvature matrices as linear operators: never formed, only multiplied with.

operator = HessianOperator(model, x, y)
operator.matvec(v)          # H v, (d,)
operator.matmat(V)          # H V, (d, k), all columns at once
operator.to_scipy()         # for any solver of scipy.sparse.linalg
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from invariance.core._errors import DataError, MeasureError, unknown_name
from invariance.core._modules import full_precision
from invariance.curvature._batches import Data
from invariance.curvature._objective import Objective, build_objective
from invariance.curvature._symmetry_probe import require_symmetric
from invariance.curvature.losses._resolve import LossLike
from invariance.curvature.products._chain import read_chain
from invariance.curvature.products._engines import (
    DEFAULT_BUDGET,
    ChainEngine,
    DualEngine,
    GraphEngine,
    ProductEngine,
)
from invariance.curvature.products._matrix import SymmetricOperator
from invariance.curvature.products._output_space import OutputMatrixKind
from invariance.curvature.products._parameter_space import ParameterSpace

#: ``auto`` picks by structure and size, so equal calls give bitwise equal results;
#: ``measure`` times the two general engines once and keeps the faster.
Mode: TypeAlias = Literal["auto", "chain", "graph", "dual", "measure"]

#: Rows that a thinned matrix has at least.
_THIN_FROM = 64

_ENGINES: dict[str, type[ProductEngine]] = {
    "chain": ChainEngine,
    "graph": GraphEngine,
    "dual": DualEngine,
}


class CurvatureOperator(SymmetricOperator):
    """A symmetric ``(d, d)`` matrix of second derivatives, as a linear operator.

    Use a subclass. The model is copied: nothing of the caller's is modified, and the
    operator belongs to the parameters as they were when it was built.

    Args:
        model: Any module with ``(n, K)`` outputs, its BatchNorm and dropout in eval mode.
        x: ``(n, ...)`` inputs, or a re-iterable of ``(x, y)`` batches (``y`` then omitted).
        y: Targets of ``x``.
        loss: ``"cross_entropy"``, ``"mse"``, a torch loss, or a callable
            ``(outputs, y) -> scalar mean over rows``.
        parameters: Names of parameters or modules; ``None`` means all that are not frozen.
        dtype: Precision of the computation; ``None`` means the model's.
        mode: Which engine; see :data:`Mode`.
        memory_budget: Bytes of activations or graphs to keep between products.

    Raises:
        ModelError: Train-mode dropout or BatchNorm, randomness, NaN parameters.
        DataError: One-shot iterators, data that changes, NaN, empty, labels out of range.
    """

    kind: ClassVar[OutputMatrixKind | None] = None
    #: The matrix's name in reports.
    label = "Hessian"

    def __init__(
        self,
        model: nn.Module,
        x: Data,
        y: Tensor | None = None,
        *,
        loss: LossLike = "cross_entropy",
        parameters: Iterable[str] | None = None,
        dtype: torch.dtype | None = None,
        mode: Mode = "auto",
        memory_budget: int | None = None,
    ) -> None:
        if mode not in ("auto", "measure", *_ENGINES):
            raise unknown_name("mode", mode, ["auto", "measure", *_ENGINES])
        self.objective: Objective = build_objective(
            model, x, y, loss=loss, parameters=parameters, dtype=dtype
        )
        budget = DEFAULT_BUDGET if memory_budget is None else memory_budget
        if budget <= 0:
            raise MeasureError(f"memory_budget must be positive bytes. Got {memory_budget}.")
        self._budget = budget
        self._engine = self._choose(mode, budget)
        #: The R-operator of a chain is written out, and needs no probe.
        self._sound = isinstance(self._engine, ChainEngine)

    def _choose(self, mode: Mode, budget: int) -> ProductEngine:
        chain = read_chain(self.objective.model) is not None
        if mode == "chain" and not chain:
            raise MeasureError(
                "mode='chain' needs an nn.Sequential of Linear layers and elementwise functions. "
                f"Got {type(self.objective.model).__name__}; use mode='auto'."
            )
        if mode == "measure":
            return self._measured(budget, chain=chain)
        if mode == "auto":
            mode = "chain" if chain else "graph"
        return _ENGINES[mode](self.objective, self.kind, budget)

    def _measured(self, budget: int, *, chain: bool) -> ProductEngine:
        """Time each engine on the same product (the second one, with its cache warm)."""
        vector = self.random_vectors(1, seed=0)
        timed: list[tuple[float, ProductEngine]] = []
        for name in ("chain", "graph", "dual") if chain else ("graph", "dual"):
            engine = _ENGINES[name](self.objective, self.kind, budget)
            try:
                engine.products(vector)
                start = time.perf_counter()
                engine.products(vector)
                _synchronize(self.device)
            except (RuntimeError, NotImplementedError):
                continue  # a function without a forward derivative: leave this engine out
            timed.append((time.perf_counter() - start, engine))
        if not timed:
            raise MeasureError("No engine can differentiate this model twice.")
        seconds, best = min(timed, key=lambda entry: entry[0])
        others = ", ".join(
            f"{engine.description} {1e3 * took:.3g} ms" for took, engine in timed if engine != best
        )
        best.description += f" (measured {1e3 * seconds:.3g} ms; {others})"
        return best

    def in_dtype(self, dtype: torch.dtype) -> CurvatureOperator:
        """Return the same matrix in another precision, for a certificate say."""
        if dtype == self.dtype:
            return self
        return self._on(self.objective.in_dtype(dtype))

    def thinned(self, stride: int) -> CurvatureOperator | None:
        """Return the matrix of every ``stride``-th row, ``None`` for few or streamed rows."""
        batches = self.objective.batches
        if batches.held is None or batches.rows < _THIN_FROM * stride:
            return None
        return self._on(self.objective.thinned(stride))

    def _on(self, objective: Objective) -> CurvatureOperator:
        """Return an operator of the same kind for another objective."""
        other = copy.copy(self)
        other.objective = objective
        other.products = 0
        mode: Mode = "chain" if isinstance(self._engine, ChainEngine) else "graph"
        other._engine = other._choose(mode, self._budget)
        return other

    @property
    def space(self) -> ParameterSpace:
        """The parameters, their order and their place in the flat vector."""
        return self.objective.space

    @property
    def device(self) -> torch.device:
        """Where vectors live."""
        return self.objective.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the products."""
        return self.objective.dtype

    @property
    def method(self) -> str:
        """How products are computed, in words."""
        return f"{self._engine.description}{self.objective.remarks()}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, {self._engine.description})"

    def notes(self) -> dict[str, object]:
        """Facts for ``Estimate.detail``: sizes, and what was left out or has no influence."""
        return self.objective.notes()

    @full_precision()
    def _multiply(self, vectors: Tensor) -> Tensor:
        if not self._sound:
            require_symmetric(self.objective, self.kind)
            self._sound = True
        return self._engine.products(vectors)

    @full_precision()
    def quadratic(self, vector: Tensor, dtype: torch.dtype) -> float | None:
        """Return ``v^T A v`` in another precision, where that is cheaper than a product.

        Args:
            vector: ``(d,)``.
            dtype: The precision to compute in.

        Returns:
            The value; ``None`` where only a product gives it.
        """
        value = self._engine.quadratic(vector.to(self.device, dtype), dtype)
        self.products += value is not None
        return value


class HessianOperator(CurvatureOperator):
    """The Hessian of the mean loss."""

    kind = None
    label = "Hessian"


class GGNOperator(CurvatureOperator):
    """The generalised Gauss-Newton matrix ``mean_n J_n^T H_{f,n} J_n``."""

    kind = "ggn"
    label = "GGN"


class FisherOperator(CurvatureOperator):
    """The Fisher matrix of the model's own predictive distribution (targets do not enter)."""

    kind = "fisher"
    label = "Fisher matrix"


class EmpiricalFisherOperator(CurvatureOperator):
    """The mean of the outer products of the rows' gradients at the given targets."""

    kind = "empirical_fisher"
    label = "empirical Fisher matrix"


OPERATORS: dict[str, type[CurvatureOperator]] = {
    "hessian": HessianOperator,
    "ggn": GGNOperator,
    "fisher": FisherOperator,
    "empirical_fisher": EmpiricalFisherOperator,
}

MatrixName: TypeAlias = Literal["hessian", "ggn", "fisher", "empirical_fisher"]


def build_operator(
    matrix: MatrixName,
    model: nn.Module | SymmetricOperator,
    x: Data | None = None,
    y: Tensor | None = None,
    **options: object,
) -> SymmetricOperator:
    """Return the operator called ``matrix``, or ``model`` itself if it is one already."""
    if isinstance(model, SymmetricOperator):
        return model
    if matrix not in OPERATORS:
        raise unknown_name("matrix", matrix, OPERATORS)
    if x is None:
        raise DataError("x is missing. Pass inputs and targets, or batches of them.")
    return OPERATORS[matrix](model, x, y, **options)  # type: ignore[arg-type]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
