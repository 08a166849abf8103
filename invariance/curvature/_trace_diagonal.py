"""The front doors: trace and diagonal of the Hessian, by the best method that applies.

``method="auto"`` decides parameter by parameter, and says what it did in the result:

1. the exact sweep, wherever the network is piecewise linear in the parameter, and for all
   of a smooth multilayer perceptron;
2. else one Hessian-vector product a parameter entry, exact too, if at most ``max_products``
   are needed for all of them;
3. else an estimate with a standard error from ``budget`` products.

So a smooth network that is no perceptron (convolutions or attention with GELU, SiLU or tanh) is
exact behind its last curved operation only, unless it is small: carrying second derivatives
through a convolution takes, for every row, a matrix over all entries of a feature map.
``method="exact"`` forces one product an entry, whatever it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from invariance.core._arguments import as_seed
from invariance.core._errors import unknown_name
from invariance.core._estimate import Estimate
from invariance.core._perceptron import read_perceptron
from invariance.curvature._batches import Data, collect_batches
from invariance.curvature.estimates._diagonal import basis_diagonal, estimate_diagonal
from invariance.curvature.exact._directional import move_like
from invariance.curvature.exact._linearity import analyse_linearity
from invariance.curvature.exact._result import DEFAULT_MEMORY_BUDGET, DiagonalResult
from invariance.curvature.exact._sweep import exact_curvature, require_deterministic
from invariance.curvature.losses._resolve import Loss
from invariance.curvature.products._parameter_space import select_parameters

Method: TypeAlias = Literal["auto", "exact", "estimate"]
LossArgument: TypeAlias = "str | nn.Module | Callable[[Tensor, Tensor], Tensor] | Loss"

#: Hessian-vector products that ``auto`` spends on exactness before it turns to estimates.
DEFAULT_MAX_PRODUCTS = 1024

#: Hessian-vector products of an estimate.
DEFAULT_PROBES = 96


def hessian_trace(
    model: nn.Module,
    x: Data,
    y: Tensor | None = None,
    *,
    loss: LossArgument = "cross_entropy",
    parameters: Iterable[str] | None = None,
    method: Method = "auto",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    max_products: int = DEFAULT_MAX_PRODUCTS,
    budget: int = DEFAULT_PROBES,
    seed: int = 0,
) -> Estimate:
    """Return the trace of the Hessian of the mean loss, with its parts by parameter.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs, or a re-iterable of ``(x, y)`` batches.
        y: Targets; left out when ``x`` is a re-iterable of batches.
        loss: See :func:`~invariance.curvature.losses._resolve.resolve_loss`.
        parameters: Names of parameters or modules to cover; all trainable ones by default.
        method: ``"auto"`` (see the module), ``"exact"`` (never an estimate, whatever it
            costs) or ``"estimate"`` (products only).
        memory_budget: Bytes for temporaries.
        max_products: For ``"auto"``: most Hessian-vector products to spend on exactness.
        budget: Hessian-vector products of an estimate.
        seed: Seed of an estimate's probes.

    Returns:
        The trace; ``parts`` maps each parameter to the trace of its diagonal block.

    Raises:
        ModelError: A model in train mode where that matters, NaN parameters.
        DataError: Malformed data.

    Example:
        One row with ``p = (1/2, 1/2)``: ``H = S (x) x x^T`` with ``Tr S = 1/2`` and ``|x|^2 = 4``.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> found = inv.curvature.hessian_trace(model, x, y)
        >>> round(found.value, 9), found.exact
        (2.0, True)
    """
    seed = as_seed(seed)
    swept, rest, why = route(model, x, y, parameters, method)
    parts: dict[str, float] = {}
    words: list[str] = []
    stderr: float | None = 0.0
    if swept:
        result = exact_curvature(
            model, x, y, loss=loss, parameters=swept, memory_budget=memory_budget
        )
        parts |= result.traces
        words.append(result.method)
    if rest and _by_products(model, rest, method, max_products):
        diagonal = basis_diagonal(model, x, y, loss=loss, parameters=rest)
        parts |= {name: float(value.cpu().double().sum()) for name, value in diagonal.items()}
        words.append(_products_words(model, rest, why))
    elif rest:
        from invariance.curvature.estimates._trace import hessian_trace_estimate

        found = hessian_trace_estimate(
            model, x, y, loss=loss, parameters=rest, budget=budget, seed=seed
        )
        parts |= found.parts
        stderr = found.stderr
        words.append(f"{found.method}{why}")
        if found.exact:  # a budget of at least one product an entry
            stderr = 0.0
    return assembled(model, parts, stderr, words)


def hessian_diagonal(
    model: nn.Module,
    x: Data,
    y: Tensor | None = None,
    *,
    loss: LossArgument = "cross_entropy",
    parameters: Iterable[str] | None = None,
    method: Method = "auto",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    max_products: int = DEFAULT_MAX_PRODUCTS,
    budget: int = DEFAULT_PROBES,
    seed: int = 0,
) -> DiagonalResult:
    """Return the diagonal of the Hessian of the mean loss, parameter by parameter.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs, or a re-iterable of ``(x, y)`` batches.
        y: Targets; left out when ``x`` is a re-iterable of batches.
        loss: See :func:`~invariance.curvature.losses._resolve.resolve_loss`.
        parameters: Names of parameters or modules to cover; all trainable ones by default.
        method: ``"auto"`` (see the module), ``"exact"`` or ``"estimate"``.
        memory_budget: Bytes for temporaries.
        max_products: For ``"auto"``: most Hessian-vector products to spend on exactness.
        budget: Hessian-vector products of an estimate.
        seed: Seed of an estimate's probes.

    Returns:
        The diagonal.

    Raises:
        ModelError: A model in train mode where that matters, NaN parameters.
        DataError: Malformed data.

    Example:
        One row with ``p = (1/2, 1/2)``: ``H = S (x) x x^T`` with ``Tr S = 1/2`` and ``|x|^2 = 4``.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> found = inv.curvature.hessian_diagonal(model, x, y)
        >>> found["linear1.weight"].round(decimals=9).tolist()  # p (1 - p) x_j^2
        [[1.0, 0.0], [1.0, 0.0]]
    """
    seed = as_seed(seed)
    swept, rest, why = route(model, x, y, parameters, method)
    values: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}
    words: list[str] = []
    gauss_newton = not rest
    if swept:
        result = exact_curvature(
            model, x, y, loss=loss, parameters=swept, diagonal=True, memory_budget=memory_budget
        )
        values |= result.diagonal
        gauss_newton = gauss_newton and result.gauss_newton
        words.append(result.method)
    exact = True
    if rest and _by_products(model, rest, method, max_products):
        values |= basis_diagonal(model, x, y, loss=loss, parameters=rest)
        words.append(_products_words(model, rest, why))
    elif rest:
        exact = False
        found, spread = estimate_diagonal(
            model, x, y, loss=loss, parameters=rest, budget=budget, seed=seed
        )
        errors = {name: torch.zeros_like(value) for name, value in values.items()} | spread
        values |= found
        words.append(f"Hutchinson estimate of the diagonal, {budget} products{why}")
    order = [name for name, _ in model.named_parameters() if name in values]
    return DiagonalResult(
        {name: values[name] for name in order},
        stderr=None if exact else {name: errors[name] for name in order},
        exact=exact,
        gauss_newton=gauss_newton,
        method=" + ".join(words),
    )


def route(
    model: nn.Module,
    x: Data,
    y: Tensor | None,
    parameters: Iterable[str] | None,
    method: str,
) -> tuple[Sequence[str], Sequence[str], str]:
    """Split the parameters by the method that knows their curvature exactly.

    Args:
        model: The network.
        x: Inputs, or a re-iterable of ``(x, y)`` batches.
        y: Targets.
        parameters: Names of parameters or modules; all trainable ones by default.
        method: A :data:`Method`.

    Returns:
        Names to sweep, all others, and why there are others (for ``Estimate.method``).

    Raises:
        ModelError: A model in train mode where that matters.
        UsageError: An unknown method.
    """
    if method not in ("auto", "exact", "estimate"):
        raise unknown_name("method", method, ("auto", "exact", "estimate"))
    names = select_parameters(model, parameters).names
    require_deterministic(model)
    if method == "estimate":
        return (), names, ""
    first = collect_batches(x, y).first()[0]
    if first.ndim == 2 and read_perceptron(model) is not None:
        return names, (), ""
    row = move_like(first[:1], next(iter(model.parameters())))
    reasons = analyse_linearity(model, row).reasons
    swept = [name for name in names if name not in reasons]
    rest = [name for name in names if name in reasons]
    return swept, rest, f" (for {rest[0]!r}, {reasons[rest[0]]})" if rest else ""


def assembled(
    model: nn.Module, parts: Mapping[str, float], stderr: float | None, words: Sequence[str]
) -> Estimate:
    """Put a trace together from its parts.

    Args:
        model: The network, for the order of its parameters.
        parts: Parameter name to its share.
        stderr: Standard error of the sum; 0 if it is exact.
        words: How each portion was computed.

    Returns:
        The sum, with its parts in the order of the parameters.
    """
    order = [name for name, _ in model.named_parameters() if name in parts]
    return Estimate(
        sum(parts[name] for name in order),
        stderr=stderr,
        exact=stderr == 0.0,
        method=" + ".join(words),
        parts={name: parts[name] for name in order},
    )


def exact_parameters(
    model: nn.Module,
    x: Data,
    y: Tensor | None = None,
    *,
    parameters: Iterable[str] | None = None,
    max_products: int = DEFAULT_MAX_PRODUCTS,
) -> tuple[list[str], list[str]]:
    """Split the parameters by whether ``method="auto"`` knows their diagonal exactly.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs, or a re-iterable of ``(x, y)`` batches.
        y: Targets; left out when ``x`` is a re-iterable of batches.
        parameters: Names of parameters or modules to cover; all trainable ones by default.
        max_products: Most Hessian-vector products to spend on exactness.

    Returns:
        Names whose diagonal is exact, and names whose diagonal would be estimated. One pass
        of a single row tells them apart.

    Raises:
        ModelError: A model in train mode where that matters, NaN parameters.
        DataError: Malformed data.
    """
    swept, rest, _ = route(model, x, y, parameters, "auto")
    if _by_products(model, rest, "auto", max_products):
        return [*swept, *rest], []
    return list(swept), list(rest)


def _by_products(model: nn.Module, rest: Sequence[str], method: str, max_products: int) -> bool:
    """Decide between exact products and an estimate."""
    return method == "exact" or (method == "auto" and entries(model, rest) <= max_products)


def entries(model: nn.Module, names: Sequence[str]) -> int:
    """Count the entries of some parameters."""
    return sum(model.get_parameter(name).numel() for name in names)


def _products_words(model: nn.Module, rest: Sequence[str], why: str) -> str:
    return f"{entries(model, rest)} exact Hessian-vector products{why}"
