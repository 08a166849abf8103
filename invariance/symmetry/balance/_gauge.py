"""Make any measure invariant by fixing the gauge before measuring."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import Tensor, nn

from invariance.symmetry.balance._canonical import canonicalize

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

#: How many of the caller's rows are enough to trace and to verify with.
_ROWS = 16


def gauge_fixed(
    measure: Callable[Concatenate[nn.Module, Parameters], Result],
    *,
    example_input: Tensor | None = None,
) -> Callable[Concatenate[nn.Module, Parameters], Result]:
    """Turn a measure into one that takes equal values on a network's whole orbit.

    The wrapped measure first brings a copy of the network to its canonical representative
    (:func:`~invariance.symmetry.canonicalize`), then measures that. So a parameter
    norm becomes the smallest norm of the orbit, and a trace of the Hessian the trace at the
    balanced point; both are functions of the orbit alone. Any measure that changes under a
    permutation of units becomes invariant too.

    Args:
        measure: ``measure(model, x, y, ...)`` or ``measure(model)``, of any result.
        example_input: A batch to trace the network with. By default the first tensor among
            the measure's arguments is taken to be a batch of inputs.

    Returns:
        A function of the same signature.

    Example:
        The norm of the weights 4 and 1 is that of their balanced form, ``sqrt(2^2 + 2^2)``:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[4.0]], [[1.0]]])
        >>> norm = gauge_fixed(inv.measures.parameter_norm, example_input=torch.ones(1, 1).double())
        >>> round(float(norm(model)) ** 2, 9)
        8.0
    """

    @functools.wraps(measure)
    def fixed(model: nn.Module, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        rows = example_input if example_input is not None else _first_tensor(args, kwargs)
        return measure(canonicalize(model, rows), *args, **kwargs)

    wrapper: Any = fixed
    wrapper.__name__ = f"gauge_fixed({getattr(measure, '__name__', repr(measure))})"
    same_signature: Callable[Concatenate[nn.Module, Parameters], Result] = wrapper
    return same_signature


def _first_tensor(args: Iterable[object], kwargs: dict[str, Any]) -> Tensor | None:
    """Return a few rows of the first argument that can be a batch of inputs."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.dim() >= 2:
            return value[:_ROWS]
    return None
