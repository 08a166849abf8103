"""The front doors: exact curvature, and trace and diagonal by the best method that applies.

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

With everything else fixed, a network of linear layers and piecewise-linear functions is
piecewise linear in each parameter tensor, so the diagonal blocks of the Hessian carry no
second derivative of the network: they equal the Gauss-Newton blocks, and their traces
follow from K - 1 cotangents per row. Nothing is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from invariance.core._arguments import as_integer, as_seed
from invariance.core._errors import MeasureError, unknown_name
from invariance.core._estimate import Estimate
from invariance.core._forward import run
from invariance.core._intake import takes_any
from invariance.core._modules import parameter_names, require_deterministic
from invariance.core._perceptron import Dense, Step, read_perceptron
from invariance.curvature._batches import Batches, Data, Sums, check_budget, collect_batches
from invariance.curvature.estimates._diagonal import basis_diagonal, estimate_diagonal
from invariance.curvature.estimates._residual import residual_trace
from invariance.curvature.estimates._sampled import Drawn, Key, sample_sweep
from invariance.curvature.estimates._trace import hessian_trace_estimate
from invariance.curvature.exact._directional import move_like
from invariance.curvature.exact._general import make_plan, sweep_module
from invariance.curvature.exact._linearity import Linearity, linearity_of
from invariance.curvature.exact._mlp import is_curved, sweep_perceptrons
from invariance.curvature.exact._result import (
    DEFAULT_MEMORY_BUDGET,
    DiagonalResult,
    ExactCurvature,
    Wants,
)
from invariance.curvature.losses._base import Draws
from invariance.curvature.losses._resolve import Loss, LossLike, loss_on
from invariance.curvature.products._operators import HessianOperator

Method: TypeAlias = Literal["auto", "exact", "sampled", "estimate"]

METHODS: tuple[Method, ...] = ("auto", "exact", "sampled", "estimate")

#: Relative standard error of ``method="sampled"``.
DEFAULT_RTOL = 0.01

#: Hessian-vector products that ``auto`` spends on exactness before it turns to estimates.
DEFAULT_MAX_PRODUCTS = 1024

#: Hessian-vector products of an estimate.
DEFAULT_PROBES = 96


class Sampling(NamedTuple):
    """How far to go in drawing cotangents."""

    rtol: float
    budget: int
    seed: int
    memory_budget: int


def as_sampling(
    method: str, rtol: float, budget: int, seed: int, memory_budget: int
) -> Sampling | None:
    """Read the arguments of a measure that is exact or sampled; ``None`` for exact."""
    if method not in ("auto", "sampled"):
        raise unknown_name("method", method, ("auto", "sampled"))
    if method == "auto":
        return None
    return Sampling(rtol, as_integer(budget, "budget"), as_seed(seed), memory_budget)


class Swept(NamedTuple):
    """The sums of one network's sweep, and how they were found."""

    sums: Sums
    method: str
    gauss_newton: bool


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network and its data, checked once, and what is known of its second derivatives.

    Attributes:
        model: The network, in eval mode where that matters.
        batches: The data.
        loss: The loss.
        names: The parameters to cover.
        steps: Its steps, if it is a perceptron and the data rows of features.
    """

    model: nn.Module
    batches: Batches
    loss: Loss
    names: tuple[str, ...]
    steps: tuple[Step, ...] | None

    @cached_property
    def row(self) -> Tensor:
        """``(1, ...)``: the first input, as the network takes it."""
        return move_like(self.batches.first()[0][:1], next(iter(self.model.parameters())))

    @cached_property
    def linearity(self) -> Linearity:
        """In which parameters the network is piecewise linear."""
        return linearity_of(self.model, self.row)

    def split(self, method: str) -> tuple[Sequence[str], Sequence[str], str]:
        """Return the names to sweep, all others, and why there are others (in words)."""
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
        if method == "estimate":
            return (), self.names, ""
        if self.steps is not None:
            return self.names, (), ""
        reasons = self.linearity.reasons
        rest = [name for name in self.names if name in reasons]
        why = f" (for {rest[0]!r}, {reasons[rest[0]]})" if rest else ""
        return [name for name in self.names if name not in reasons], rest, why

    @cached_property
    def outputs(self) -> int:
        """How many outputs the network has."""
        if self.steps is not None:
            dense = [step for step in self.steps if isinstance(step, Dense)]
            return dense[-1].weight.shape[-2]
        with torch.no_grad():
            return run(self.model, self.row).shape[-1]

    def draw(
        self,
        names: Sequence[str],
        wants: Wants,
        keys: Callable[[Drawn], Sequence[tuple[Key, float]]],
        how: Sampling,
    ) -> Drawn:
        """Sweep the Gauss-Newton blocks of ``names`` over drawn cotangents, exactly if cheaper."""
        if not names:
            return Drawn((Sums(),), ())
        return sample_sweep(
            lambda draws: self.sweep(names, wants, how.memory_budget, draws).sums,
            self.loss,
            self.outputs,
            self.batches.rows,
            keys,
            rtol=how.rtol,
            budget=how.budget,
            seed=how.seed,
        )

    def sweep(
        self, names: Sequence[str], wants: Wants, memory_budget: int, draws: Draws | None = None
    ) -> Swept:
        """Sweep the parameters ``names``, in all of which the network is known exactly.

        Behind curved operations of a network that is no perceptron, what is found is the trace
        of the Gauss-Newton block.
        """
        batches, loss = self.batches, self.loss
        if self.steps is not None:
            sums = sweep_perceptrons(
                self.steps, batches, batches.rows, loss, wants, memory_budget, names, draws=draws
            )
            curved = is_curved(self.steps, names)
            how = "recursion, with second derivatives of the activations" if curved else "sweep"
            return Swept(sums, f"exact {how} ({loss.name})", not curved)
        check_budget(memory_budget)
        plan = make_plan(self.model, self.linearity, names, self.row)
        sums = sweep_module(self.model, plan, batches, loss, wants, memory_budget, draws)
        zero = f"; no influence, hence zero: {', '.join(plan.silent)}" if plan.silent else ""
        return Swept(sums, f"exact sweep ({loss.name}){zero}", True)

    def operator(self, names: Sequence[str]) -> HessianOperator:
        """Return the Hessian in the parameters ``names``."""
        return HessianOperator(self.model, self.batches, loss=self.loss, parameters=names)


def prepare(
    model: nn.Module,
    x: Data,
    y: Tensor | None,
    loss: LossLike,
    parameters: Iterable[str] | None,
) -> Prepared:
    """Check a network and its data, once for all that follows."""
    batches = collect_batches(x, y)
    resolved = loss_on(loss, batches, model)
    names = parameter_names(model, parameters)
    require_deterministic(model)
    steps = read_perceptron(model) if batches.first()[0].ndim == 2 else None
    return Prepared(model, batches, resolved, names, steps)


@takes_any(streams=True)
def exact_curvature(
    model: nn.Module,
    x: Data,
    y: Tensor | None = None,
    *,
    loss: LossLike = "cross_entropy",
    parameters: Iterable[str] | None = None,
    relative_flatness: bool = False,
    diagonal: bool = False,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> ExactCurvature:
    """Sweep a piecewise-linear network once for its exact diagonal-block curvature.

    Args:
        model: A network that is piecewise linear in each of its parameter tensors, in eval
            mode if it has BatchNorm or dropout. It is left as it is.
        x: ``(n, ...)`` inputs, or a re-iterable of ``(x, y)`` batches.
        y: Targets; left out when ``x`` is a re-iterable of batches.
        loss: The mean loss: a name, a torch loss or a callable.
        parameters: Names of parameters or modules to cover; all trainable ones by default.
        relative_flatness: Also compute every covered weight layer's relative flatness.
        diagonal: Also compute the Hessian's diagonal.
        memory_budget: Bytes for temporaries; rows are chunked to stay within it. A single
            row is always swept whole.

    Returns:
        The traces, and what else was asked for.

    Raises:
        MeasureError: The network is not piecewise linear in a parameter tensor.
        ModelError: It is in train mode where that matters, or has NaN parameters.
        DataError: Malformed data.

    Example:
        One row with ``p = (1/2, 1/2)``: ``H = S (x) x x^T`` with ``Tr S = 1/2`` and ``|x|^2 = 4``.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> found = inv.curvature.exact_curvature(model, x, y, relative_flatness=True)
        >>> round(float(found.trace), 9)
        2.0
    """
    prepared = prepare(model, x, y, loss, parameters)
    check_budget(memory_budget)
    _, rest, _ = prepared.split("auto")
    if rest:
        raise MeasureError(
            f"The network is not piecewise linear in {rest[0]!r}: "
            f"{prepared.linearity.reasons[rest[0]]}. The exact sweep covers networks of linear "
            "layers and piecewise-linear functions; name the parameters that qualify, or use "
            "hessian_trace, which picks another method."
        )
    return swept_curvature(
        prepared, prepared.names, Wants(relative_flatness, diagonal), memory_budget
    )


def swept_curvature(
    prepared: Prepared, names: Sequence[str], wants: Wants, memory_budget: int
) -> ExactCurvature:
    """Sweep ``names``, and return what was found by parameter and layer."""
    sums, method, gauss_newton = prepared.sweep(names, wants, memory_budget)
    traces, diagonals = sums.of("trace"), sums.mean_diagonals()
    layers = {name.rpartition(".")[0] for name in names if name.endswith("weight")}
    return ExactCurvature(
        traces={name: float(traces[name]) for name in names},
        relative_flatness={
            name: float(value)
            for name, value in reversed(sums.of("kappa").items())
            if name in layers
        },
        diagonal={name: diagonals[name] for name in names if name in diagonals},
        rows=sums.rows,
        gauss_newton=gauss_newton,
        method=method,
    )


@takes_any(streams=True)
def hessian_trace(
    model: nn.Module,
    x: Data,
    y: Tensor | None = None,
    *,
    loss: LossLike = "cross_entropy",
    parameters: Iterable[str] | None = None,
    method: Method = "auto",
    rtol: float = DEFAULT_RTOL,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    max_products: int = DEFAULT_MAX_PRODUCTS,
    budget: int = DEFAULT_PROBES,
    seed: int = 0,
) -> Estimate:
    """Trace of the Hessian of the mean loss, with its parts by parameter.

    It depends on how the function is parameterised: along one layer-scaling axis it is
    ``A / a^2 + C + B a^2``. Exact for piecewise-linear networks and for perceptrons with smooth
    activations. A convolutional network or a transformer with smooth activations is exact in
    the parameter tensors behind its last curved operation, and in all others if they have at
    most ``max_products`` entries together (one Hessian-vector product an entry). Larger ones
    are estimated, and ``exact``, ``stderr`` and ``method`` say so.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs, or a re-iterable of ``(x, y)`` batches.
        y: Targets; left out when ``x`` is a re-iterable of batches.
        loss: The mean loss: a name, a torch loss or a callable.
        parameters: Names of parameters or modules to cover; all trainable ones by default.
        method: ``"auto"`` (see the module), ``"exact"`` (never an estimate, whatever it
            costs), ``"sampled"`` (a sweep over random mixtures of the cotangents, m for every
            row instead of K - 1; exact where that is no dearer) or ``"estimate"`` (products only).
        rtol: For ``"sampled"``: the relative standard error to reach; it decides m.
        memory_budget: Bytes for temporaries.
        max_products: For ``"auto"``: most Hessian-vector products to spend on exactness.
        budget: Hessian-vector products of an estimate; for ``"sampled"``, most draws a row.
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
    if type(seed) is not int:
        seed = as_seed(seed)
    prepared = prepare(model, x, y, loss, parameters)
    swept, rest, why = prepared.split(method)
    if method == "sampled":
        return _sampled_trace(prepared, rest, Sampling(rtol, budget, seed, memory_budget))
    parts: dict[str, float] = {}
    words: list[str] = []
    stderr: float | None = 0.0
    if swept:
        result = prepared.sweep(swept, Wants(), memory_budget)
        traces = result.sums.of("trace")
        parts |= {name: float(traces[name]) for name in swept}
        words.append(result.method)
    if rest and _by_products(model, rest, method, max_products):
        diagonal = basis_diagonal(prepared.operator(rest))
        parts |= {name: float(value.cpu().double().sum()) for name, value in diagonal.items()}
        words.append(_products_words(model, rest, why))
    elif rest:
        found = hessian_trace_estimate(prepared.operator(rest), budget=budget, seed=seed)
        parts |= found.parts
        stderr = found.stderr
        words.append(f"{found.method}{why}")
    return assembled(model, parts, stderr, words)


@takes_any(streams=True)
def hessian_diagonal(
    model: nn.Module,
    x: Data,
    y: Tensor | None = None,
    *,
    loss: LossLike = "cross_entropy",
    parameters: Iterable[str] | None = None,
    method: Method = "auto",
    rtol: float = DEFAULT_RTOL,
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
        loss: The mean loss: a name, a torch loss or a callable.
        parameters: Names of parameters or modules to cover; all trainable ones by default.
        method: ``"auto"`` (see the module), ``"exact"``, ``"sampled"`` or ``"estimate"``.
        rtol: For ``"sampled"``: the relative standard error of the diagonal's sum.
        memory_budget: Bytes for temporaries.
        max_products: For ``"auto"``: most Hessian-vector products to spend on exactness.
        budget: Hessian-vector products of an estimate; for ``"sampled"``, most draws a row.
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
    if type(seed) is not int:
        seed = as_seed(seed)
    prepared = prepare(model, x, y, loss, parameters)
    swept, rest, why = prepared.split(method)
    if method == "sampled":
        return _sampled_diagonal(prepared, rest, Sampling(rtol, budget, seed, memory_budget))
    values: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}
    words: list[str] = []
    gauss_newton = not rest
    if swept:
        result = prepared.sweep(swept, Wants(diagonal=True), memory_budget)
        diagonals = result.sums.mean_diagonals()
        values |= {name: diagonals[name] for name in swept if name in diagonals}
        gauss_newton = gauss_newton and result.gauss_newton
        words.append(result.method)
    exact = True
    if rest and _by_products(model, rest, method, max_products):
        values |= basis_diagonal(prepared.operator(rest))
        words.append(_products_words(model, rest, why))
    elif rest:
        exact = False
        found, spread = estimate_diagonal(prepared.operator(rest), budget=budget, seed=seed)
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


def _sampled_trace(prepared: Prepared, rest: Sequence[str], how: Sampling) -> Estimate:
    """Return the trace by drawn cotangents; behind curved operations probes find the rest."""
    drawn = prepared.draw(prepared.names, Wants(), _whole_trace, how)
    parts = drawn.of("trace")
    error = drawn.error(("whole trace", ""))
    errors = {name: drawn.error(("trace", name)) for name in parts}
    words = [sampled_words(prepared, drawn)]
    converged = drawn.converged
    products = None
    if rest:
        found = residual_trace(
            prepared.model, prepared.batches, prepared.loss, rest, (sum(parts.values()), error), how
        )
        for name, value in found.parts.items():
            parts[name] += value
        spread: Mapping[str, float] = found.detail.get("part_stderr", {})
        errors |= {name: math.hypot(errors[name], more) for name, more in spread.items()}
        error = math.hypot(error, found.stderr or 0.0)
        words.append(found.method)
        converged = converged and error <= how.rtol * abs(sum(parts.values()))
        products = found.iterations
    order = [name for name, _ in prepared.model.named_parameters() if name in parts]
    exact = drawn.exact and error == 0.0
    return Estimate(
        sum(parts[name] for name in order),
        stderr=error,
        exact=exact,
        method=" + ".join(words),
        parts={name: parts[name] for name in order},
        iterations=products,
        converged=None if exact else converged,
        detail={"draws": drawn.count, "part_stderr": {name: errors[name] for name in order}},
    )


def _sampled_diagonal(prepared: Prepared, rest: Sequence[str], how: Sampling) -> DiagonalResult:
    """Return the diagonal by drawn cotangents; refuse where they are not all of it."""
    if rest:
        raise MeasureError(
            f"The network is not piecewise linear in {rest[0]!r}: "
            f"{prepared.linearity.reasons[rest[0]]}. method='sampled' finds the diagonal of "
            "piecewise-linear networks and perceptrons; use 'auto' or 'estimate', or "
            "hessian_trace, which adds what second derivatives of the network make."
        )
    drawn = prepared.draw(prepared.names, Wants(diagonal=True), _whole_trace, how)
    values, errors = drawn.diagonals()
    order = [name for name, _ in prepared.model.named_parameters() if name in values]
    curved = prepared.steps is not None and is_curved(prepared.steps, prepared.names)
    return DiagonalResult(
        {name: values[name] for name in order},
        stderr=None if drawn.exact else {name: errors[name] for name in order},
        exact=drawn.exact,
        gauss_newton=not curved,
        method=sampled_words(prepared, drawn),
    )


def _whole_trace(drawn: Drawn) -> list[tuple[Key, float]]:
    """What must meet the tolerance when it is the sum over all parameters."""
    return [(("whole trace", ""), sum(drawn.of("trace").values()))]


def sampled_words(prepared: Prepared, drawn: Drawn) -> str:
    """Say what a sampled sweep did."""
    loss = prepared.loss.name
    if drawn.exact:
        return f"exact sweep ({loss}), cheaper than a sampled one"
    return f"sampled sweep, {drawn.count} random cotangents a row ({loss})"


def assembled(
    model: nn.Module, parts: Mapping[str, float], stderr: float | None, words: Sequence[str]
) -> Estimate:
    """Put a trace together from its parts, in the order of the model's parameters."""
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
    loss: LossLike = "cross_entropy",
    parameters: Iterable[str] | None = None,
    max_products: int = DEFAULT_MAX_PRODUCTS,
) -> tuple[list[str], list[str]]:
    """Split the parameters by whether ``method="auto"`` knows their diagonal exactly.

    Shapes: ``x (n, ...)``.
    """
    swept, rest, _ = prepare(model, x, y, loss, parameters).split("auto")
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
