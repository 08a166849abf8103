"""Operations that are written out in simpler ones, each followed by its own rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from invariance.symmetry.analysis._context import Context, NotUnderstoodError
from invariance.symmetry.analysis._tracing import Call, tensors_in
from invariance.symmetry.rules._registry import named, rule

#: How far apart the numbers of the steps of one call are.
_STEP = 1 << 26


class _Steps:
    """Runs the steps of one call, and follows each with the rule of its operation."""

    def __init__(self, context: Context, call: Call) -> None:
        self.context, self.call, self.count = context, call, 0

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Run one torch function; its rule says what it does to threads."""
        function: Callable[..., Any] = getattr(torch, name, None) or getattr(functional, name)
        out = function(*args, **kwargs)
        self.count += 1
        step = replace(
            self.call,
            function=function,
            name=name,
            args=args,
            kwargs=kwargs,
            out=out,
            node=self.call.node + self.count * _STEP,
            in_place=False,
        )
        if any(self.context.tracked(tensor) for tensor in tensors_in((args, kwargs))):
            named(name)(self.context, step)
        return out

    def done(self, out: Tensor, target: Tensor | None = None) -> None:
        """Say that a step's result is the call's."""
        target = self.call.out if target is None else target
        entry = self.context.entry(out)
        if entry is None or out.shape != target.shape:
            raise NotUnderstoodError("is called in a way that is not understood")
        self.context.assign(target, entry)


@rule("glu")
def glu(context: Context, call: Call) -> None:
    """One half of the channels times the sigmoid of the other."""
    step = _Steps(context, call)
    first, second = step("chunk", call.argument(0, "input"), 2, call.argument(1, "dim", -1))
    step.done(step("mul", first, step("sigmoid", second)))


@rule("addcmul")
def addcmul(context: Context, call: Call) -> None:
    """A sum with a product."""
    step = _Steps(context, call)
    product = step("mul", call.argument(1, "tensor1"), call.argument(2, "tensor2"))
    step.done(
        step("add", call.argument(0, "input"), step("mul", product, call.kwargs.get("value", 1)))
    )


@rule("addcdiv")
def addcdiv(context: Context, call: Call) -> None:
    """A sum with a quotient."""
    step = _Steps(context, call)
    quotient = step("div", call.argument(1, "tensor1"), call.argument(2, "tensor2"))
    step.done(
        step("add", call.argument(0, "input"), step("mul", quotient, call.kwargs.get("value", 1)))
    )


@rule("lerp")
def lerp(context: Context, call: Call) -> None:
    """``start + weight (end - start)``."""
    step = _Steps(context, call)
    start, end, weight = (call.argument(i, n) for i, n in enumerate(("input", "end", "weight")))
    step.done(step("add", start, step("mul", step("sub", end, start), weight)))


@rule("baddbmm", "addbmm", "addmv")
def added_product(context: Context, call: Call) -> None:
    """A sum with a matrix product."""
    if call.name.rstrip("_") == "addbmm":
        raise NotUnderstoodError("sums over a batch of matrix products")
    step = _Steps(context, call)
    product = step("matmul", *call.args[1:3])
    alpha, beta = call.kwargs.get("alpha", 1), call.kwargs.get("beta", 1)
    step.done(step("add", step("mul", call.args[0], beta), step("mul", product, alpha)))


def _all_dims(x: Tensor, dims: Any) -> tuple[int, ...]:
    if dims is None:
        return tuple(range(x.dim()))
    return (dims,) if isinstance(dims, int) else tuple(dims)


@rule("var", "std")
def variance(context: Context, call: Call) -> None:
    """The mean square of what differs from the mean."""
    x = call.argument(0, "input")
    numbers = [given for given in call.args[1:] if not isinstance(given, bool)]
    dims = _all_dims(x, call.kwargs.get("dim", numbers[0] if numbers else None))
    keep = call.kwargs.get("keepdim", len(call.args) > 3 and call.args[3] is True)
    step = _Steps(context, call)
    centred = step("sub", x, step("mean", x, dims, True))
    mean = step("mean", step("square", centred), dims, bool(keep))
    step.done(mean if call.name == "var" else step("sqrt", mean))


@rule("norm", "linalg_norm", "linalg_vector_norm", "frobenius_norm")
def norm(context: Context, call: Call) -> None:
    """Vector norms along dimensions."""
    x = call.argument(0, "input", call.kwargs.get("x"))
    order = call.argument(1, "ord" if call.name.startswith("linalg") else "p", None)
    dims = call.argument(2, "dim")
    if (
        call.name == "linalg_norm"
        and order is not None
        and x.dim() > 1
        and not isinstance(dims, int)
    ):
        raise NotUnderstoodError("is a norm of matrices")
    order = 2 if order is None or order == "fro" else order
    if isinstance(order, str) or order == 0:
        raise NotUnderstoodError("is a norm that is not homogeneous or not entrywise")
    keep = bool(call.argument(3, "keepdim", False))
    dims = (
        tuple(range(x.dim())) if dims is None else (dims,) if isinstance(dims, int) else tuple(dims)
    )
    step = _Steps(context, call)
    if math.isinf(order):
        step.done(step("amax" if order > 0 else "amin", step("abs", x), dims, keep))
        return
    powers = step("square", x) if order == 2 else step("pow", step("abs", x), order)
    total = step("sum", powers, dims, keep)
    step.done(step("sqrt", total) if order == 2 else step("pow", total, 1 / order))


@rule("normalize")
def normalize(context: Context, call: Call) -> None:
    """A vector over its norm, which is kept above an eps."""
    x = call.argument(0, "input")
    order, dim = call.argument(1, "p", 2.0), call.argument(2, "dim", 1)
    step = _Steps(context, call)
    length = step("norm", x, order, dim, True)
    step.done(step("div", x, step("clamp_min", length, call.argument(3, "eps", 1e-12))))


@rule("where_positive")
def choice(context: Context, call: Call) -> None:
    """``where(condition, a, b)`` of a condition that depends on the input."""
    condition, first, second = call.args
    step = _Steps(context, call)
    taken = step("mul", condition, first)
    left = step("mul", step("logical_not", condition), second)
    step.done(step("add", taken, left))


@rule("mv_by_matmul")
def matrix_and_vector(context: Context, call: Call) -> None:
    """A product with a vector: one of a matrix with one row or column."""
    a, b = call.args
    step = _Steps(context, call)
    row, column = a.dim() == 1, b.dim() == 1
    out = step(
        "matmul", step("unsqueeze", a, 0) if row else a, step("unsqueeze", b, -1) if column else b
    )
    if column:
        out = step("squeeze", out, -1)
    step.done(step("squeeze", out, -1 if column else -2) if row else out)


@rule("einsum_of_many")
def einsum_of_many(context: Context, call: Call) -> None:
    """An einsum of three operands and more: two at a time, those first that share most."""
    equation, *operands = call.args
    inputs, out = equation.split("->")
    letters = inputs.split(",")
    step = _Steps(context, call)
    while len(operands) > 2:
        _, i, j, kept = max(
            (_gone(letters, out, i, j) for j in range(len(letters)) for i in range(j)),
            key=lambda pair: (pair[0], -pair[1], -pair[2]),
        )
        equation = f"{letters[i]},{letters[j]}->{kept}"
        joined = step("einsum", equation, operands[i], operands[j])
        left = [place for place in range(len(operands)) if place not in (i, j)]
        operands = [joined, *(operands[place] for place in left)]
        letters = [kept, *(letters[place] for place in left)]
    step.done(step("einsum", f"{letters[0]},{letters[1]}->{out}", *operands))


def _gone(letters: list[str], out: str, i: int, j: int) -> tuple[int, int, int, str]:
    """Return how many indices end in joining two operands, the two, and those that stay."""
    others = [c for place, c in enumerate(letters) if place not in (i, j)]
    rest = set(out).union(*others)
    both = "".join(dict.fromkeys(letters[i] + letters[j]))
    kept = "".join(c for c in both if c in rest)
    return len(both) - len(kept), i, j, kept
