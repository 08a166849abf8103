"""Derivatives of the outputs along one direction in parameters, without building a matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from invariance.core._errors import MeasureError, ModelError
from invariance.core._forward import reading, run
from invariance.core._forward_mode import prepare_forward_mode
from invariance.curvature._batches import Data, collect_batches
from invariance.curvature.losses._resolve import Loss


class _CountBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Add up the bytes of every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        self.total += sum(t.nbytes for t in tree_leaves(out) if isinstance(t, Tensor))
        return out


def forward_bytes(model: nn.Module, row: Tensor) -> int:
    """Measure the bytes of all intermediate results for one row.

    Shapes: ``row (1, ...)``.
    """
    counter = _CountBytes()
    with torch.no_grad(), counter:
        run(model, row)
    return max(counter.total, 1)


def frozen_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's parameters, detached: derivatives cannot reach the user's ``.grad``."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def directional_outputs(
    model: nn.Module, x: Tensor, direction: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the outputs and their derivative along ``direction``.

    Shapes: ``x (n, ...)``; returns ``(n, K)``.
    """
    prepare_forward_mode()
    state = frozen_state(model)

    def outputs(moved: Mapping[str, Tensor]) -> Tensor:
        return run(model, x, {**state, **moved})

    base = {name: state[name] for name in direction}
    with torch.enable_grad():
        try:
            f, tangent = jvp(outputs, (base,), (dict(direction),))[:2]
        except NotImplementedError:
            f, pull = vjp(outputs, base)[:2]
            push = vjp(lambda u: pull(u)[0], torch.zeros_like(f))[1]
            (tangent,) = push(dict(direction))
            _check_transposes(f, tangent, pull(f)[0], direction)
    if not bool(tangent.any()):
        _require_dependence(model, x, base)
    return f.detach(), tangent.detach()


def _require_dependence(model: nn.Module, x: Tensor, base: Mapping[str, Tensor]) -> None:
    """Refuse outputs that are cut off from the parameters, whose derivative would read 0."""
    leaves = {name: value.clone().requires_grad_() for name, value in base.items()}
    with torch.enable_grad():
        if not run(model, x[:1], leaves).requires_grad:
            raise MeasureError(
                f"The outputs depend on none of {', '.join(base)} in a differentiable way. "
                "Is forward() under no_grad, or detached?"
            )


def _check_transposes(
    f: Tensor, tangent: Tensor, pulled: Mapping[str, Tensor], direction: Mapping[str, Tensor]
) -> None:
    """Refuse ``J v`` unless ``<f, J v> = <J^T f, v>``: some backward passes are not linear."""
    one = (f * tangent).sum().double()
    two = sum((pulled[name] * v).sum().double() for name, v in direction.items())
    if not (one - two).abs() <= 1e-2 * f.norm() * tangent.norm():
        raise ModelError(
            "An operation of the model has a backward pass that cannot be differentiated "
            f"correctly: a derivative of the outputs came out as {float(one):.6g} and as "
            f"{float(two):.6g}. Write that operation with plain differentiable ones."
        )


def directional_chunks(
    model: nn.Module,
    x: Data,
    y: Tensor | None,
    direction: Mapping[str, Tensor],
    loss: Loss,
    memory_budget: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield ``(f, J v, y)`` in chunks of rows that fit ``memory_budget``, checked by the loss."""
    batches = collect_batches(x, y)
    like = next(iter(direction.values()))
    chunk = 0
    for bx, by in batches:
        if not chunk:
            row = move_like(bx[:1], like)
            with reading(model, row):
                chunk = max(1, memory_budget // (4 * forward_bytes(model, row)))
        for px, py in zip(torch.split(bx, chunk), torch.split(by, chunk), strict=True):
            f, tangent = directional_outputs(model, move_like(px, like), direction)
            labels = py.to(f.device)
            loss.check(f, labels)
            yield f, tangent, labels


def move_like(x: Tensor, like: Tensor) -> Tensor:
    """Move inputs to the device of the parameters, and floating ones to their dtype."""
    return x.to(like) if x.is_floating_point() else x.to(like.device)
