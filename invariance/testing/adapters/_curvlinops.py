"""curvlinops: an operator, and a number that is read off it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from invariance.core._errors import UsageError
from invariance.core._modules import clone
from invariance.testing.adapters._guests import as_a_guest, import_library
from invariance.testing.adapters._signatures import PlainMeasure, named, title


def curvlinops_measure(
    reduce: str | Callable[[Any], Any] = "trace",
    *,
    operator: str | Callable[..., Any] = "HessianLinearOperator",
    loss: nn.Module | None = None,
    **options: Any,
) -> PlainMeasure:
    """Adapt a curvlinops operator and a number that is read off it.

    Args:
        reduce: ``"trace"`` or ``"frobenius"`` (exact, one product a parameter),
            ``"top_eigenvalue"`` (SciPy's Lanczos on the operator, fixed start), or a
            function of the operator.
        operator: Name of the operator in curvlinops, or the class.
        loss: A torch loss module; ``CrossEntropyLoss()`` by default.
        options: Further arguments of the operator.

    Returns:
        A measure.

    Raises:
        UsageError: For an unknown reduction.
    """
    if isinstance(reduce, str) and reduce not in _REDUCTIONS:
        raise UsageError(
            f"Unknown reduction {reduce!r}. Known: {', '.join(_REDUCTIONS)}, or a function."
        )
    reduction = _REDUCTIONS[reduce] if isinstance(reduce, str) else reduce

    def curvlinops_measure(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        kind = (
            getattr(import_library("curvlinops", "curvlinops-for-pytorch"), operator)
            if isinstance(operator, str)
            else operator
        )
        network = clone(model)
        parameters = [p for p in network.parameters() if p.requires_grad]
        # curvlinops probes the data's determinism with global random numbers.
        with as_a_guest(0):
            made = kind(network, loss or nn.CrossEntropyLoss(), parameters, [(x, y)], **options)
            return reduction(made)

    label = operator if isinstance(operator, str) else title(operator)
    return named(
        curvlinops_measure, f"{label}_{reduce if isinstance(reduce, str) else title(reduce)}"
    )


def _trace(operator: Any) -> float:
    return float(_dense(operator).diagonal().sum())


def _frobenius(operator: Any) -> float:
    return float(_dense(operator).square().sum().sqrt())


def _dense(operator: Any) -> Tensor:
    size = int(operator.shape[1])
    eye = torch.eye(size, dtype=operator.dtype, device=operator.device)
    product: Tensor = operator @ eye
    return product.detach()


def _top_eigenvalue(operator: Any) -> float:
    import numpy as np
    from scipy.sparse.linalg import eigsh

    scipy_operator = operator.to_scipy()
    start = np.linspace(1.0, 2.0, scipy_operator.shape[0], dtype=scipy_operator.dtype)
    found = eigsh(scipy_operator, k=1, which="LA", v0=start, return_eigenvectors=False)
    return float(found[0])


_REDUCTIONS: Mapping[str, Callable[[Any], float]] = {
    "trace": _trace,
    "frobenius": _frobenius,
    "top_eigenvalue": _top_eigenvalue,
}
