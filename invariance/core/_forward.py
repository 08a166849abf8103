"""Call a model as every measure does, and say when it cannot read the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from invariance.core._errors import DataError
from invariance.core._modules import full_precision


@contextmanager
def reading(model: nn.Module, rows: Tensor, name: str = "x") -> Iterator[None]:
    """Turn a failure of a forward pass inside the block into an error that names the data."""
    try:
        yield
    except (torch.OutOfMemoryError, NotImplementedError):
        raise
    except RuntimeError as error:
        shape = ", ".join(["rows", *map(str, rows.shape[1:])])
        kind = str(rows.dtype).removeprefix("torch.")
        raise DataError(
            f"{type(model).__name__} does not accept {name} of shape ({shape}) and dtype {kind}: "
            f"{error}. Give {name} the shape and dtype that the model's first layer reads."
        ) from error


def run(model: nn.Module, x: Tensor, state: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return ``model(x)``, leaving ``x`` as it is even if the model works in place.

    Shapes: ``x (n, ...)``.
    """
    own = x.clone()
    with unfused(model), plain_attention(), full_precision():
        out: Tensor = model(own) if state is None else functional_call(model, dict(state), (own,))
    return out


class _PlainWeightNorm(TorchFunctionMode):
    """Computes a normalised weight by its formula.

    Torch's fused kernel has a second derivative that is not symmetric, and none forward.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch._weight_norm:
            return _weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    others = [axis for axis in range(v.ndim) if dim == -1 or axis != dim]
    return v * (g / v.square().sum(others, keepdim=dim != -1).sqrt())


@contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention by its formula: the fused kernels lack second and forward derivatives."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def unfused(model: nn.Module) -> AbstractContextManager[object]:
    """Replace, inside the block, operations of ``model`` that have no correct derivatives."""
    if any(_normalises(module) for module in model.modules()):
        return _PlainWeightNorm()
    return nullcontext()


def _normalises(module: nn.Module) -> bool:
    """Whether a module computes a weight norm, as a parametrisation or in a hook."""
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, _WeightNorm) or any(isinstance(hook, WeightNorm) for hook in hooks)


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return what a module was called with, by position or by name, as a hook is told."""
    found: Tensor = args[0] if args else next(iter(kwargs.values()))
    return found
