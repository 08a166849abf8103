"""Defects of a measure that come before any question of invariance.

A measure that returns NaN, changes the model or depends on a global random state has
no value to compare. Such a defect is reported as exactly that, never as "not
invariant": :class:`FaultyMeasureError` says which kind it is and how to mend it.
"""

from __future__ import annotations

import cmath
import math
import numbers
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate

#: Kinds of defect, each with the remedy that its message ends in.
REMEDIES: Mapping[str, str] = {
    "nan": "Find the division by zero, log of zero or overflow, or refuse such a network.",
    "infinite": "Find the overflow or division by zero, or refuse such a network.",
    "complex": "Return a real number: for a symmetric matrix use eigvalsh, not eigvals.",
    "non-scalar": "Return one number: reduce the result, or pass a function that picks an entry.",
    "not a number": "Return a float, a tensor with one entry, or an invariance Estimate.",
    "mutates the model": (
        "Work on copy.deepcopy(model), or use torch.autograd.grad instead of backward() and put "
        "back every flag that you change."
    ),
    "mutates the data": "Work on x.clone(); in-place operations change the caller's data.",
    "changes global state": "Put the setting back before returning, or do without it.",
    "draws from the global RNG": (
        "Take a seed and use a torch.Generator, numpy.random.default_rng(seed) or random.Random "
        "of your own; reseeding the global generator is a side effect as well."
    ),
    "not deterministic": (
        "Take a seed for every random draw. If the value is an estimate by design, wrap it with "
        "invariance.testing.adapters.noisy and use assert_equal_in_law."
    ),
    "ignores the model": (
        "Check that it evaluates the model it is given, and not a copy or a global. If it is meant "
        "to be constant, pass allow_constant=True."
    ),
}


class FaultyMeasureError(MeasureError, AssertionError):
    """A measure whose value cannot be compared; ``kind`` is one of :data:`REMEDIES`.

    Attributes:
        kind: What is wrong, in a few words.
        measure: The measure's name.
        detail: What was seen.
    """

    def __init__(self, kind: str, measure: str, detail: str) -> None:
        self.kind, self.measure, self.detail = kind, measure, detail
        super().__init__(f"measure {measure!r}: {kind}. {detail} {REMEDIES[kind]}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.kind, self.measure, self.detail))


def as_number(value: object, measure: str) -> Estimate:
    """Return what a measure gave as a finite scalar estimate, or say what it is instead."""
    estimate = value if isinstance(value, Estimate) else None
    inner: object = estimate.value if estimate is not None else value
    if isinstance(inner, Tensor):
        if inner.numel() != 1:
            raise FaultyMeasureError(
                "non-scalar", measure, f"It returned a tensor of shape {tuple(inner.shape)}."
            )
        inner = inner.detach().reshape(()).item()
    elif isinstance(inner, (np.ndarray, np.generic)):
        if inner.size != 1:
            raise FaultyMeasureError(
                "non-scalar", measure, f"It returned an array of shape {inner.shape}."
            )
        inner = inner.reshape(()).item()
    elif isinstance(inner, (list, tuple, set, dict)):
        raise FaultyMeasureError(
            "non-scalar", measure, f"It returned a {type(inner).__name__} of {len(inner)} entries."
        )
    if isinstance(inner, numbers.Complex) and not isinstance(inner, numbers.Real):
        raise FaultyMeasureError("complex", measure, f"It returned {complex(inner)!r}.")
    if not isinstance(inner, numbers.Real):
        raise FaultyMeasureError(
            "not a number", measure, f"It returned {inner!r}, a {type(inner).__name__}."
        )
    number = float(inner)
    if cmath.isnan(number):
        raise FaultyMeasureError("nan", measure, "It returned NaN.")
    if not math.isfinite(number):
        raise FaultyMeasureError("infinite", measure, f"It returned {number}.")
    if estimate is None or not isinstance(estimate.value, float):
        return Estimate(number)
    return estimate


@contextmanager
def isolated() -> Iterator[None]:
    """Run the block, then put every global random state and setting back as it was."""
    before = _global_state()
    try:
        yield
    finally:
        _restore_global_state(before)


@contextmanager
def watched(measure: str, model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Run the block and report every trace that it leaves.

    Nothing is put back here: ``model`` and ``inputs`` should be copies that nobody needs
    afterwards, and the whole should run inside :func:`isolated`.
    """
    seen = model_state(model)
    data = {k: v.detach().clone() for k, v in inputs.items() if isinstance(v, Tensor)}
    globally = _global_state()
    yield
    moved = _global_state()
    if what := first_change(seen, model_state(model)):
        raise FaultyMeasureError("mutates the model", measure, f"It changed {what}.")
    for name, value in data.items():
        now = inputs[name]
        if now.shape != value.shape or not _same(now.detach(), value):
            raise FaultyMeasureError("mutates the data", measure, f"It changed `{name}`.")
    for name in ("torch", "cuda", "numpy", "random"):
        if not _equal_states(globally[name], moved[name]):
            raise FaultyMeasureError(
                "draws from the global RNG", measure, f"The global state of {name} moved."
            )
    for name in ("default dtype", "gradient mode", "deterministic algorithms", "threads"):
        if globally[name] != moved[name]:
            raise FaultyMeasureError(
                "changes global state",
                measure,
                f"It left torch's {name} at {moved[name]}, from {globally[name]}.",
            )


@contextmanager
def ambient_seed(seed: int) -> Iterator[None]:
    """Run the block with the global generators at another seed, then restore them.

    A measure that depends on ambient randomness, even behind ``torch.random.fork_rng``,
    then gives another value.
    """
    with isolated():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the ambient state is the point
        random.seed(seed)
        yield


def _global_state() -> dict[str, Any]:
    # Asking an untouched CUDA runtime for its state would start it.
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda else [],
        "numpy": np.random.get_state(),  # noqa: NPY002
        "random": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "gradient mode": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


def _restore_global_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["random"])
    torch.set_default_dtype(state["default dtype"])
    torch.set_grad_enabled(state["gradient mode"])
    if torch.are_deterministic_algorithms_enabled() != state["deterministic algorithms"]:
        torch.use_deterministic_algorithms(state["deterministic algorithms"])
    if torch.get_num_threads() != state["threads"]:
        torch.set_num_threads(state["threads"])


def _equal_states(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return bool(torch.equal(a, b))
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_equal_states(p, q) for p, q in zip(a, b, strict=True))
    return bool(a == b)


def model_state(model: nn.Module) -> dict[str, Any]:
    """Everything about a module that a measure must leave alone, by a readable name."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        state[f"the train flag of `{name or type(module).__name__}`"] = module.training
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        state[f"the hooks of `{name or type(module).__name__}`"] = sum(map(len, hooks))
    for name, parameter in model.named_parameters():
        state[f"parameter `{name}`"] = parameter.detach().clone()
        state[f"`{name}.grad`"] = None if parameter.grad is None else parameter.grad.clone()
        state[f"`{name}.requires_grad`"] = parameter.requires_grad
    for name, buffer in model.named_buffers():
        state[f"buffer `{name}`"] = buffer.detach().clone()
    return state


def first_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Name the first difference of two states of :func:`model_state`, if there is one."""
    # Compare values first: an in-place change of a weight matters more than its .grad.
    order = sorted(before, key=lambda name: not name.startswith(("parameter", "buffer")))
    for name in order:
        if name not in after:
            return f"{name} (it is gone)"
        if not _same(before[name], after[name]):
            return name
    added = [name for name in after if name not in before]
    return f"{added[0]} (it is new)" if added else None


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
            return False
        return bool(torch.equal(a, b)) or bool(torch.equal(_bits(a), _bits(b)))
    return bool(a == b) if not (isinstance(a, Tensor) or isinstance(b, Tensor)) else False


def _bits(value: Tensor) -> Tensor:
    """View floats as integers, so that a NaN equals itself."""
    return value.detach().contiguous().reshape(-1).view(torch.uint8)
