"""Other libraries' measures in the gate's form, ``measure(model, x, y) -> number``.

Nothing here is imported before it is used, and every adapter works on copies: the
libraries may leave gradients, modes and random states as they like.
"""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from invariance.core.errors import MeasureError, UsageError
from invariance.core.modules import clone
from invariance.testing.faults import ambient_seed
from invariance.testing.statistical import NoisyMeasure

_F = TypeVar("_F", bound=Callable[..., Any])

PlainMeasure = Callable[[nn.Module, Tensor, Tensor], Any]

#: Loss of the predictions, as torch's own loss modules are called.
Loss = Callable[[Tensor, Tensor], Tensor]


def adapt(
    function: Callable[..., Any],
    *,
    model: str | None = "model",
    x: str | None = "x",
    y: str | None = "y",
    batch: str | None = None,
    batches: str | None = None,
    loss: str | None = None,
    criterion: Loss | None = None,
    name: str | None = None,
    **fixed: Any,
) -> PlainMeasure:
    """Adapt a callable whose arguments have other names or another order.

    Args:
        function: The callable.
        model: Name of its argument for the network; ``None`` if it takes none.
        x: Name of its argument for the inputs, or ``None``.
        y: Name of its argument for the labels, or ``None``.
        batch: Name of an argument that takes ``(x, y)``.
        batches: Name of an argument that takes a list of batches, as a DataLoader is.
        loss: Name of an argument that takes the loss function.
        criterion: That function; mean cross-entropy by default.
        name: The measure's name; the callable's own by default.
        fixed: Further arguments, passed as they are.

    Returns:
        A measure.

    Raises:
        UsageError: If ``function`` has no argument of one of these names.
    """
    if batch or batches:
        x = y = None
    used = {"model": model, "x": x, "y": y, "batch": batch, "batches": batches, "loss": loss}
    _require_arguments(function, [name for name in used.values() if name] + list(fixed))
    objective = criterion or nn.functional.cross_entropy

    def measure(network: nn.Module, inputs: Tensor, labels: Tensor) -> Any:
        values = {
            "model": network,
            "x": inputs,
            "y": labels,
            "batch": (inputs, labels),
            "batches": [(inputs, labels)],
            "loss": objective,
        }
        named = {argument: values[kind] for kind, argument in used.items() if argument}
        return function(**named, **fixed)

    return _named(measure, name or _title(function))


def of_predictions(
    function: Callable[[Tensor, Tensor], Any], *, name: str | None = None
) -> PlainMeasure:
    """Adapt a function of predictions and labels, such as a loss or a calibration error.

    Args:
        function: ``function(logits, y) -> number``.
        name: The measure's name.

    Returns:
        A measure.
    """

    def measure(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        with torch.no_grad():
            return function(model(x), y)

    return _named(measure, name or _title(function))


def torchmetrics_metric(
    factory: Callable[[], Any], *, predictions: Callable[[Tensor], Tensor] | None = None
) -> PlainMeasure:
    """Adapt a torchmetrics metric, which gathers state between calls.

    Args:
        factory: Makes a fresh metric, for example
            ``lambda: torchmetrics.classification.MulticlassCalibrationError(10)``; a metric
            object works too and is copied and reset for every call.
        predictions: Applied to the logits first, for example ``lambda z: z.softmax(-1)``.

    Returns:
        A measure.
    """

    def measure(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        made = isinstance(factory, type) or not hasattr(factory, "update")
        metric: Any = factory() if made else copy.deepcopy(factory)
        if hasattr(metric, "reset"):
            metric.reset()
        with torch.no_grad():
            logits = model(x)
            metric.update(logits if predictions is None else predictions(logits), y)
            return metric.compute()

    return _named(measure, _title(factory))


def pyhessian_trace(*, loss: Loss | None = None, probes: int = 100, seed: int = 0) -> PlainMeasure:
    """Adapt PyHessian's Hutchinson estimate of the Hessian's trace.

    The stopping rule is switched off: it can quit after two probes. The same seed is used
    before and after a map, so the measure is deterministic, but it is an estimate still;
    see :func:`pyhessian_trace_noisy` for a statistical comparison.

    Args:
        loss: ``loss(predictions, y)``; mean cross-entropy by default.
        probes: Random vectors.
        seed: Their seed.

    Returns:
        A measure.
    """
    noisy_trace = pyhessian_trace_noisy(loss=loss, probes=probes)

    def pyhessian_trace(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        return noisy_trace(model, x, y, seed)

    return pyhessian_trace


def pyhessian_trace_noisy(*, loss: Loss | None = None, probes: int = 10) -> NoisyMeasure:
    """As :func:`pyhessian_trace`, with the seed as an argument."""
    objective = loss or nn.functional.cross_entropy

    def pyhessian_trace(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> float:
        hessian = _import("pyhessian", "PyHessian").hessian
        network = _with_used_parameters(clone(model), x)
        with _as_a_guest(seed):
            found = hessian(network, objective, data=(x, y), cuda=x.is_cuda)
            # Its stopping rule divides by the running mean without taking the absolute value,
            # so any tolerance but this one ends at the first negative mean.
            values = [float(v) for v in found.trace(maxIter=probes, tol=float("-inf"))]
        return sum(values) / len(values)

    return pyhessian_trace


def pyhessian_eigenvalue(
    *, loss: Loss | None = None, iterations: int = 1000, tol: float = 1e-12, seed: int = 0
) -> PlainMeasure:
    """Adapt PyHessian's power iteration for the top Hessian eigenvalue.

    Args:
        loss: ``loss(predictions, y)``; mean cross-entropy by default.
        iterations: Steps at most.
        tol: Relative change at which it stops.
        seed: Seed of the start vector.

    Returns:
        A measure.
    """
    objective = loss or nn.functional.cross_entropy

    def pyhessian_eigenvalue(model: nn.Module, x: Tensor, y: Tensor) -> float:
        hessian = _import("pyhessian", "PyHessian").hessian
        network = _with_used_parameters(clone(model), x)
        with _as_a_guest(seed):
            found = hessian(network, objective, data=(x, y), cuda=x.is_cuda)
            values, _ = found.eigenvalues(maxIter=iterations, tol=tol, top_n=1)
        return float(values[0])

    return pyhessian_eigenvalue


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
            getattr(_import("curvlinops", "curvlinops-for-pytorch"), operator)
            if isinstance(operator, str)
            else operator
        )
        network = clone(model)
        parameters = [p for p in network.parameters() if p.requires_grad]
        # curvlinops probes the data's determinism with global random numbers.
        with _as_a_guest(0):
            made = kind(network, loss or nn.CrossEntropyLoss(), parameters, [(x, y)], **options)
            return reduction(made)

    label = operator if isinstance(operator, str) else _title(operator)
    return _named(
        curvlinops_measure, f"{label}_{reduce if isinstance(reduce, str) else _title(reduce)}"
    )


def devinterp_estimate(
    estimator: Callable[..., Any] | None = None,
    *,
    key: str | None = None,
    evaluate: Callable[[nn.Module, Any], Any] | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> NoisyMeasure:
    """Adapt a devinterp estimate of the local learning coefficient, which is noisy.

    Args:
        estimator: ``estimator(model, loader=..., evaluate=..., seed=..., **options)``; by
            default devinterp's ``estimate_learning_coeff_with_summary``.
        key: Entry of its result; by default ``"llc/mean"`` or ``"llc_mean"``. A result that
            is a number is taken as it is.
        evaluate: ``evaluate(model, (x, y))``, the loss and anything else; by default the mean
            cross-entropy.
        batch_size: Rows a batch; all of them by default.
        options: Passed on: ``sampling_method``, ``optimizer_kwargs``, ``num_chains``, ...

    Returns:
        A noisy measure; see :func:`invariance.testing.assert_equal_in_law`.
    """

    def devinterp_estimate(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Any:
        made = estimator or _devinterp()
        rows = int(x.shape[0])
        dataset = torch.utils.data.TensorDataset(x, y)
        loader: Any = torch.utils.data.DataLoader(dataset, batch_size=batch_size or rows)
        with _as_a_guest(seed):
            result = made(
                model=clone(model),
                loader=loader,
                evaluate=evaluate or _cross_entropy_of_batch,
                seed=seed,
                **options,
            )
        return _entry(result, key)

    return devinterp_estimate


def noisy(
    function: Callable[..., Any], *, seed: str | None = "seed", name: str | None = None
) -> NoisyMeasure:
    """Give a measure with chance in it a seed, so that both sides see the same numbers.

    Args:
        function: ``function(model, x, y)``, with a seed argument or without one.
        seed: Name of its seed argument; ``None`` (or a name that it lacks) if it draws from
            the global generators, which are then seeded around the call and put back.
        name: The measure's name.

    Returns:
        ``noisy(model, x, y, seed) -> number``.
    """
    takes_seed = seed is not None and _accepts(function, seed)

    def measure(model: nn.Module, x: Tensor, y: Tensor, number: int) -> Any:
        with ambient_seed(number):
            if takes_seed and seed is not None:
                return function(model, x, y, **{seed: number})
            return function(model, x, y)

    return _named(measure, name or _title(function))


def averaged(measure: NoisyMeasure, *, seeds: Sequence[int] = range(8)) -> PlainMeasure:
    """Average a noisy measure over fixed seeds: a deterministic measure again.

    Args:
        measure: ``measure(model, x, y, seed)``.
        seeds: The seeds.

    Returns:
        A measure. If each draw is invariant given its seed, so is the average; a measure
        that is invariant in law only is not, and needs ``assert_equal_in_law``.
    """

    def mean(model: nn.Module, x: Tensor, y: Tensor) -> float:
        values = [float(measure(model, x, y, seed)) for seed in seeds]
        return sum(values) / len(values)

    return _named(mean, _title(measure))


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


@contextmanager
def _as_a_guest(seed: int) -> Iterator[None]:
    """Run another library: its random draws seeded, its warnings its own business.

    Those warn of leaked graphs (the copy is thrown away) or of deprecated calls of theirs,
    and would fail a test run that treats warnings as errors.
    """
    with ambient_seed(seed), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _import(module: str, distribution: str) -> Any:
    import importlib

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise MeasureError(
            f"This adapter needs {module}. Install it with: pip install {distribution}"
        ) from error


def _devinterp() -> Callable[..., Any]:
    _import("devinterp", "devinterp")
    module = _import("devinterp.slt.sampler", "devinterp")
    for name in ("estimate_learning_coeff_with_summary", "estimate_learning_coeff"):
        if hasattr(module, name):
            found: Callable[..., Any] = getattr(module, name)
            return found
    raise MeasureError(
        "This version of devinterp has no estimate_learning_coeff_with_summary in "
        "devinterp.slt.sampler. Pass the function to use: devinterp_estimate(my_estimator)."
    )


def _cross_entropy_of_batch(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Any]]:
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels), {}


def _entry(result: Any, key: str | None) -> Any:
    if not isinstance(result, Mapping):
        return result
    for name in (key,) if key else ("llc/mean", "llc_mean"):
        if name in result:
            return result[name]
    raise MeasureError(
        f"The estimate has no entry {key or 'llc/mean'!r}. It has: {', '.join(map(str, result))}. "
        "Name one with key=..."
    )


def _with_used_parameters(model: nn.Module, x: Tensor) -> nn.Module:
    """Freeze parameters that the output does not read: PyHessian fails on them."""
    with torch.enable_grad():
        named = [p for p in model.parameters() if p.requires_grad]
        output = model(x[:1]).sum()
        grads = torch.autograd.grad(output, named, allow_unused=True)
    for parameter, grad in zip(named, grads, strict=True):
        parameter.requires_grad_(grad is not None)
    return model


def _require_arguments(function: Callable[..., Any], names: Sequence[str]) -> None:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    missing = [name for name in names if name not in parameters]
    if missing:
        raise UsageError(
            f"{_title(function)} has no argument {missing[0]!r}. Its arguments: "
            f"{', '.join(parameters)}. Name them with model=..., x=..., y=..., or None."
        )


def _accepts(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _title(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    name = str(getattr(function, "__name__", type(function).__name__))
    return "measure" if name == "<lambda>" else name


def _named(function: _F, name: str) -> _F:
    function.__name__ = name
    return function
