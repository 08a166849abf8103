"""What kind of model and data came in: decided here, once, for everything that takes them.

Inside the package a model is a plain ``nn.Module`` whose call on a tensor of rows returns a
tensor, and data is a tensor or a re-iterable of ``(x, y)`` batches. People bring more: models
that are compiled or wrapped for several devices, that return objects with ``.logits``, or that
are called with names (``model(**batch)``); inputs as dictionaries, tuples or NumPy arrays.
:func:`take` turns those into these, or refuses them by name; the user's objects stay as they are.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from invariance.core._errors import DataError, InvarianceError, ModelError
from invariance.core._estimate import Estimate
from invariance.core._modules import (
    clone,
    computes_as_its_class,
    computing_dtype,
    full_precision,
    lifted,
    model_dtype,
    no_module,
    origin,
)
from invariance.core._reads import Narrowing, Reads, left_behind
from invariance.core._rng import undisturbed_generators

P = ParamSpec("P")
T = TypeVar("T")

#: Names under which batches of transformers carry their targets.
_TARGETS = ("labels", "label", "y", "targets", "target")

#: Bytes of batches that are put together into one tensor where a measure needs all rows.
GATHER_BYTES = 4 << 30

_inside: ContextVar[bool] = ContextVar("invariance_intake", default=False)


class Adapted(nn.Module):
    """Mixed into a shallow copy of a user's model: the same parameters, another way to call it.

    Attributes:
        adapted_inputs: What the rows index: names or places to ``(n, ...)`` tensors; ``None``
            where the model reads a tensor.
        adapted_choice: From what the model returns to the tensor that is measured.
        adapted_shape: The shape of one row of that tensor, where it is no vector: rows are then
            returned flattened, ``(n, K)``.
    """

    adapted_inputs: Mapping[str, Tensor] | tuple[Tensor, ...] | None = None
    adapted_choice: Callable[[Any], Tensor] | None = None
    adapted_shape: tuple[int, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of rows ``x``, or of the rows that ``x`` numbers."""
        if self.adapted_inputs is None:
            out = self.adapted_call(x)
        else:
            rows_held = len(_tensors(self.adapted_inputs)[0])
            if x.is_floating_point() and rows_held * torch.finfo(x.dtype).eps > 1:
                raise ModelError(
                    f"Rows are numbered, and {x.dtype} cannot count {rows_held:,} of them. Pass "
                    "fewer, or convert a copy of the model: copy.deepcopy(model).double()."
                )
            number = x.reshape(-1).long()
            if isinstance(self.adapted_inputs, tuple):
                out = self.adapted_call(*(self._rows(v, number) for v in self.adapted_inputs))
            else:
                rows = {name: self._rows(v, number) for name, v in self.adapted_inputs.items()}
                out = self.adapted_call(**rows)
        if self.adapted_choice is not None:
            out = self.adapted_choice(out)
        logits: Tensor = out
        return logits if self.adapted_shape is None else logits.reshape(logits.shape[0], -1)

    def adapted_call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's own ``forward``."""
        raise NotImplementedError  # every class that is made below has one

    def _rows(self, values: Tensor, number: Tensor) -> Tensor:
        chosen = values.to(number.device)[number]
        return chosen.to(model_dtype(self)) if chosen.is_floating_point() else chosen


def _adapt(
    model: nn.Module,
    inputs: Mapping[str, Tensor] | tuple[Tensor, ...] | None,
    choice: Callable[[Any], Tensor] | None,
    shape: tuple[int, ...] | None = None,
) -> nn.Module:
    """Return a shallow copy of ``model`` that is called with rows and returns a tensor."""
    if isinstance(model, Adapted):
        inputs = model.adapted_inputs if inputs is None else inputs
        choice = model.adapted_choice if choice is None else choice
        shape = model.adapted_shape if shape is None else shape
        kind = type(model)
    else:
        base = type(model)
        namespace = {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "adapted_call": base.forward,
        }
        kind = type(base.__name__, (Adapted, base), namespace)
    if "forward" in vars(model):
        raise ModelError(
            f"{type(model).__name__} has a forward that was set on the instance, so its call "
            "cannot be adapted. Define forward in a class."
        )
    new = copy.copy(model)
    new.__class__ = kind
    new.__dict__["adapted_inputs"] = inputs
    new.__dict__["adapted_choice"] = choice
    new.__dict__["adapted_shape"] = shape
    return new


def output_shape(model: nn.Module) -> tuple[int, ...] | None:
    """The shape of one row of outputs as the user's model gives them; ``None`` for ``(K,)``."""
    return model.adapted_shape if isinstance(model, Adapted) else None


def with_output(model: nn.Module, choose: Callable[[Any], Tensor]) -> nn.Module:
    """Say which tensor of what a model returns is measured.

    Args:
        model: Any module; it shares its parameters with the result and stays as it is.
        choose: From what the model returns to ``(n, K)`` logits.

    Returns:
        The same network, called as before, that returns ``choose(output)``.

    Raises:
        ModelError: If the model cannot be adapted.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> class Pair(nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x), "more"
        >>> with_output(Pair(2, 3), lambda out: out[0])(torch.rand(1, 2)).shape
        torch.Size([1, 3])
    """
    return _adapt(as_module(model), None, choose)


def as_module(model: object) -> nn.Module:
    """Unwrap a model, or refuse what no computation here can read."""
    model = _unwrapped(model)
    if not isinstance(model, nn.Module):
        raise ModelError(f"The model must be a torch.nn.Module. {no_module(model)}")
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"The model is a {kind}, whose operations run out of sight. Pass the module that it "
            "was scripted or traced from."
        )
    for name, module in model.named_modules():
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise ModelError(
                f"Module {name!r} ({type(module).__name__}) is quantised: its weights are no "
                "numbers that could move. Measure the network from before quantisation."
            )
    kinds: dict[torch.dtype, str] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if problem := _problem_of(tensor):
            raise ModelError(f"{name!r} of {kind} {problem}")
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            kinds.setdefault(tensor.dtype, name)
    if len(kinds) > 1:
        told = ", ".join(f"{name!r} is {dtype}" for dtype, name in kinds.items())
        raise ModelError(
            f"The parameters of {kind} have several dtypes: {told}. "
            "Convert a copy: copy.deepcopy(model).float()."
        )
    return model


def _unwrapped(model: object) -> object:
    """What ``torch.compile`` and the wrappers for several devices hold."""
    while True:
        inner = getattr(model, "_orig_mod", None) if isinstance(model, nn.Module) else None
        if isinstance(inner, nn.Module):
            model = inner
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def _problem_of(tensor: Tensor) -> str | None:
    """What forbids to compute with a parameter or buffer; ``None`` if nothing does."""
    if torch.nn.parameter.is_lazy(tensor):
        return "has no shape yet (a lazy module). Run one batch through the model first."
    if tensor.is_meta:
        return "is on the meta device, without values. Materialise it: model.to_empty, then load."
    if tensor.is_complex():
        return "is complex. Measures are defined for real parameters."
    if tensor.layout is not torch.strided:
        return f"is {tensor.layout}. Make it dense: tensor.to_dense()."
    if tensor.is_nested:
        return "is a nested tensor. Pad it to one shape."
    if tensor.is_quantized:
        return "is quantised. Measure the network from before quantisation."
    return None


def as_tensor(value: object, name: str) -> Tensor:
    """A tensor from a tensor or a NumPy array; anything else is refused by name."""
    if isinstance(value, Tensor):
        if value.is_complex() or value.is_nested or value.layout is not torch.strided:
            raise DataError(
                f"{name} must be a dense tensor of real numbers. "
                f"Got {value.layout}, {str(value.dtype).removeprefix('torch.')}."
            )
        return value
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(np.ascontiguousarray(value))
        except TypeError as error:
            raise DataError(
                f"{name} must hold numbers. Got an array of dtype {value.dtype}."
            ) from error
    raise DataError(f"{name} must be a tensor or a NumPy array. Got {type(value).__name__}.")


def _is_batches(x: object) -> bool:
    """Whether ``x`` is something that yields batches, rather than one batch."""
    if isinstance(x, Tensor | np.ndarray | Mapping | str):
        return False
    if isinstance(x, DataLoader):
        return True
    if isinstance(x, list | tuple):
        return not x or not all(isinstance(item, Tensor | np.ndarray) for item in x)
    return isinstance(x, Iterable)


def _several(x: Any, name: str) -> Mapping[str, Tensor] | tuple[Tensor, ...]:
    """Inputs of a model that takes more than one tensor, with as many rows each."""
    found: Mapping[str, Tensor] | tuple[Tensor, ...]
    if isinstance(x, Mapping):
        found = {str(key): as_tensor(value, f"{name}[{key!r}]") for key, value in x.items()}
    else:
        found = tuple(as_tensor(value, f"{name}[{at}]") for at, value in enumerate(x))
    parts = _tensors(found)
    if not parts:
        raise DataError(f"{name} is empty. Give at least one tensor of rows.")
    sizes = [value.shape[0] if value.ndim else None for value in parts]
    if len(set(sizes)) > 1 or None in sizes:
        raise DataError(f"The tensors of {name} must have as many rows each. Got {sizes}.")
    return found


def gathered(batches: Any, name: str) -> tuple[Any, Tensor | None]:
    """Put batches together: ``(x, y)`` with all rows, ``y`` ``None`` where there are none."""
    xs: list[Any] = []
    ys: list[Tensor] = []
    size = 0
    for number, batch in enumerate(batches):
        x, y = _pair(batch, f"batch {number} of {name}")
        size += sum(part.nbytes for part in _tensors(x))
        if size > GATHER_BYTES:
            raise DataError(
                f"{name} holds more than {GATHER_BYTES >> 30} GiB of batches, and this needs all "
                "rows at once. Pass fewer rows."
            )
        xs.append(x)
        if y is not None:
            ys.append(y)
    if not xs:
        raise DataError(f"{name} holds no batch at all. Give at least one row.")
    if ys and len(ys) != len(xs):
        raise DataError(f"Some batches of {name} carry targets and some do not. Give all of them.")
    return _joined(xs, name), (torch.cat(ys) if ys else None)


def _pair(batch: Any, name: str) -> tuple[Any, Tensor | None]:
    if isinstance(batch, Mapping):
        rest = dict(batch)
        targets = [key for key in _TARGETS if key in rest]
        y = as_tensor(rest.pop(targets[0]), f"{name}[{targets[0]!r}]") if targets else None
        return _several(rest, name), y
    if isinstance(batch, list | tuple) and len(batch) == 2:
        x, y = batch
        x = _several(x, name) if isinstance(x, Mapping | tuple | list) else as_tensor(x, name)
        return x, as_tensor(y, f"the targets of {name}")
    if isinstance(batch, Tensor | np.ndarray):
        return as_tensor(batch, name), None
    raise DataError(
        f"{name} must be a pair (x, y), a mapping with its targets under "
        f"{' or '.join(map(repr, _TARGETS[:2]))}, or a tensor. Got {type(batch).__name__}."
    )


def _tensors(x: Any) -> Sequence[Tensor]:
    if isinstance(x, Tensor):
        return (x,)
    return tuple(x.values() if isinstance(x, Mapping) else x)


def _joined(xs: list[Any], name: str) -> Any:
    try:
        if isinstance(xs[0], Mapping):
            if any(x.keys() != xs[0].keys() for x in xs):
                raise KeyError(f"names {sorted(set().union(*xs))}, not all in each")
            return {key: torch.cat([x[key] for x in xs]) for key in xs[0]}
        if isinstance(xs[0], tuple):
            return tuple(torch.cat(parts) for parts in zip(*xs, strict=True))
        return torch.cat(xs)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"The batches of {name} do not fit together ({error}). Bring their rows to one "
            "shape: pad them."
        ) from error


def _returning_tensor(module: nn.Module, rows: Tensor) -> nn.Module:
    """The module itself if it returns ``(n, K)``, else one that returns its ``.logits`` so."""
    if _surely_returns_rows(module, rows) or not rows.ndim or not len(rows):
        return module
    probe = clone(module).eval()
    row = rows[:2].detach().clone()
    row = row.to(model_dtype(probe)) if row.is_floating_point() else row
    row = row.to(next(iter((*probe.parameters(), *probe.buffers())), row).device)
    reads = Reads(left_behind(probe, origin(module)))
    try:
        quiet = torch.random.fork_rng(devices=[])
        with torch.no_grad(), quiet, full_precision(), Narrowing() as narrowing, reads:
            out, again = probe(row.clone()), probe(row.clone())
    except Exception:  # the computation itself tells what is wrong, and where
        return module
    kind = type(module).__name__
    if reads.names:
        raise ModelError(
            f"The copy of your model does not use its own parameters: its output is computed with "
            f"{next(iter(reads.names))!r} of the {kind} that you passed. A forward "
            "or a hook that names that module as a global, or holds it in a container, does this. "
            "Reach it through self, or through the module that a hook is given."
        )
    if narrowing.dtype is not None and narrowing.dtype.itemsize < torch.float32.itemsize:
        raise ModelError(
            f"The forward of {type(module).__name__} casts to {narrowing.dtype} inside, where "
            "small perturbations and second derivatives are lost. Compute in the dtype of the "
            "parameters there: x.to(self.weight.dtype)."
        )
    chosen = out if isinstance(out, Tensor) else _logits(out)
    repeated = again if isinstance(again, Tensor) else _logits(again)
    if chosen is not None and repeated is not None and not _repeats(chosen, repeated):
        raise ModelError(
            f"Two forward passes of {kind} over the same rows differ: the model is random. "
            "Remove the noise (functional dropout?) or fix its seed inside forward()."
        )
    if chosen is None:
        keys = f" with {sorted(map(str, out))}" if isinstance(out, Mapping) else ""
        raise ModelError(
            f"{type(module).__name__} returns a {type(out).__name__}{keys}, and measures need one "
            "tensor of outputs. Say which: "
            "inv.models.with_output(model, lambda out: out[0]), or whatever holds the logits."
        )
    vectors = chosen.ndim in (0, 2) or chosen.shape[0] != row.shape[0]
    if chosen is out and vectors:
        return module
    choice = None if chosen is out else _logits
    return _adapt(module, None, choice, None if vectors else tuple(chosen.shape[1:]))  # type: ignore[arg-type]


def _repeats(once: Tensor, again: Tensor) -> bool:
    """Whether two passes over the same rows gave the same outputs, up to round-off."""
    if once.shape != again.shape or not once.is_floating_point():
        return torch.equal(once, again)
    slack = 1e-2 * torch.finfo(once.dtype).eps ** 0.5 * float(once.abs().max() if len(once) else 0)
    return torch.allclose(once, again, rtol=0.0, atol=slack, equal_nan=True)


def _logits(out: Any) -> Tensor | None:
    """What an output calls its logits."""
    found = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", None)
    return found if isinstance(found, Tensor) else None


def _surely_returns_rows(module: nn.Module, rows: Tensor) -> bool:
    """Whether types alone say that it returns ``(n, K)`` (spares a forward pass)."""
    parts = list(module) if type(module) is nn.Sequential else [module]
    if not parts or any(list(part.children()) for part in parts):
        return False
    if not all(
        type(part).__module__.startswith("torch.nn.modules") and computes_as_its_class(part)
        for part in (module, *parts)
    ):
        return False
    return type(parts[-1]) is nn.Linear and (
        rows.ndim == 2 or any(type(part) is nn.Flatten for part in parts)
    )


@contextmanager
def _taken() -> Iterator[None]:
    token = _inside.set(True)
    try:
        with full_precision():
            yield
    finally:
        _inside.reset(token)


def take(
    model: object, inputs: Mapping[str, Any], *, streams: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """Bring a model and the data that it is given into the form that the package computes with."""
    module = lifted(as_module(model))
    found = dict(inputs)
    sample: Tensor | None = None
    sources = [name for name in inputs if name.startswith("x")]
    for name in sources:
        target, value = "y" + name[1:], found[name]
        if _is_batches(value):
            head = _head(value)
            if streams and (head is None or isinstance(head[0], Tensor)):
                sample = head[0] if head is not None else None
                found.setdefault(target, None)
                continue
            if found.get(target) is not None:
                raise DataError(
                    f"{name} is a {type(value).__name__} of batches, which carries its own "
                    f"targets. Got {target} as well; leave it out, or pass both as tensors."
                )
            with undisturbed_generators():
                found[name], y = gathered(value, name)
            if y is not None or target in found:
                found[target] = y
        elif isinstance(value, Mapping | list | tuple):
            found[name] = _several(value, name)
        elif isinstance(value, np.ndarray):
            found[name] = as_tensor(value, name)
        if isinstance(found.get(target), np.ndarray):
            found[target] = as_tensor(found[target], target)
    found = {name: _lifted_values(value) for name, value in found.items()}
    module = _holding(module, found, sources)
    if sample is None:
        tensors = (found[name] for name in sources if isinstance(found[name], Tensor))
        sample = next(tensors, None)
    return (module if sample is None else _returning_tensor(module, sample)), found


def _lifted_values(value: Any) -> Any:
    """The same numbers in a dtype that is computed in; what is no tensor as it is."""
    if isinstance(value, Mapping):
        return {name: _lifted_values(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_lifted_values, value))
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(computing_dtype(value.dtype))
    return value


def _head(batches: Any) -> tuple[Any, Tensor | None] | None:
    """The first batch, without consuming or disturbing anything; ``None`` if that cannot be."""
    with undisturbed_generators():
        iterator = iter(batches)
        if iterator is batches:
            return None  # a one-shot iterator: whoever reads it says so
        for batch in iterator:
            return _pair(batch, "the first batch")
    return None


def _holding(module: nn.Module, found: dict[str, Any], sources: list[str]) -> nn.Module:
    """Let the module hold inputs of several tensors; ``found`` then numbers their rows."""
    several = [name for name in sources if isinstance(found[name], Mapping | tuple)]
    if not several:
        return module
    held = _joined([found[name] for name in several], " and ".join(several))
    start = 0
    for name in several:
        rows = len(_tensors(found[name])[0])
        found[name] = torch.arange(start, start + rows, dtype=torch.float64, device="cpu")[:, None]
        start += rows
    return _adapt(module, held, None)


def takes_any(*, streams: bool) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function ``(model, x, y, ...)`` take whatever :func:`take` understands."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        first, *rest = signature.parameters
        data = {name for name in rest if name in _DATA}

        @functools.wraps(function)
        def door(*args: P.args, **kwargs: P.kwargs) -> T:
            given = signature.bind_partial(*args, **kwargs).arguments
            # Without data the first argument is an operator, or python says what is missing.
            if _inside.get() or first not in given or (data and not given.keys() & data):
                return function(*args, **kwargs)
            own = as_module(given[first])
            module, found = take(
                own,
                {name: given[name] for name in rest if name in data and name in given},
                streams=streams,
            )
            given.update({name: value for name, value in found.items() if name in data})
            bound = inspect.BoundArguments(signature, given)
            bound.arguments[first] = module
            with _taken():
                try:
                    result = function(*bound.args, **bound.kwargs)
                except (InvarianceError, torch.OutOfMemoryError):
                    raise
                except RuntimeError as error:
                    raise ModelError(
                        f"{function.__name__} cannot be computed for {type(own).__name__}: an "
                        f"operation of the model, or a derivative of one, fails ({error}). Write "
                        "it with plain differentiable operations."
                    ) from error
                return _told(result, own, module)

        return door

    return decorate


def _told(result: T, own: nn.Module, module: nn.Module) -> T:
    """Say in an estimate's method that it is one of the parameters in a wider dtype."""
    if not isinstance(result, Estimate):
        return result
    if not result.exact and bool(np.isnan(result.values).any()):
        raise ModelError(
            f"The value for {type(own).__name__} is not a number ({result.method}): an operation "
            "of the model has no derivative at this point (a root or a norm at zero), or "
            "overflows. Move the point, or add a small constant under the root."
        )
    before, after = model_dtype(own), model_dtype(module)
    if before == after:
        return result
    names = [str(dtype).removeprefix("torch.") for dtype in (before, after)]
    note = f"{names[0]} parameters, computed in {names[1]}"
    return dataclasses.replace(result, method=f"{result.method}; {note}".removeprefix("; "))


#: The arguments of measures that hold data.
_DATA = ("x", "y", "x_train", "y_train", "x_unseen", "x_test", "y_test")
