"""Elementwise functions of one tensor."""

from __future__ import annotations

import numbers
from fractions import Fraction

import numpy as np
from torch import Tensor

from invariance.core._activations import BY_CALL, Activation, clipped, leaky, thresholded
from invariance.symmetry._structures import Role
from invariance.symmetry.analysis._context import (
    MOVE,
    SCALE,
    SIGN,
    Context,
    NotUnderstoodError,
    refuse_random,
)
from invariance.symmetry.analysis._entries import Computed, ParameterView, Value
from invariance.symmetry.analysis._threads import RawLeg
from invariance.symmetry.analysis._tracing import Call
from invariance.symmetry.rules._registry import rule

NOT_HOMOGENEOUS = "is not positively homogeneous: no scaling through it"


def apply_elementwise(
    context: Context, call: Call, *, homogeneous: bool, odd: bool, tensor: Tensor | None = None
) -> None:
    """Write down an elementwise function."""
    operand = call.args[0] if tensor is None else tensor
    value = context.value(operand)
    if value is None:
        raise NotUnderstoodError("has no operand that depends on the input")
    context.touch(value, call, entrywise=True)
    result = context.renew(value, call, zero_stays=homogeneous)
    relate(context, call, value, result, homogeneous=homogeneous, odd=odd)
    if not (homogeneous and odd):
        context.relations.block_mixing(value.labels)
    context.assign(call.out, result)


def relate(
    context: Context, call: Call, value: Value, result: Value, *, homogeneous: bool, odd: bool
) -> None:
    """Relate the factors before and after a function applied to every entry alike."""
    if homogeneous:
        context.relations.equate(result.labels, value.labels, sign=False)
    else:
        holds = "permutation and sign flips still hold" if odd else "permutation still holds"
        stop = context.stop(call, f"{NOT_HOMOGENEOUS}; {holds}", SCALE)
        context.pin(value.labels, stop, scale=True)
        context.pin(result.labels, stop, scale=True)
    if odd:
        context.relations.equate(result.labels, value.labels, scale=False)
    else:
        reason = "is not an odd function: no sign flip through it"
        stop = context.stop(call, reason, SIGN)
        context.pin(value.labels, stop, sign=True)
        context.pin(result.labels, stop, sign=True)


def _by_table(context: Context, call: Call, known: Activation) -> None:
    apply_elementwise(context, call, homogeneous=known.homogeneous, odd=known.odd)


@rule(*BY_CALL)
def from_the_table(context: Context, call: Call) -> None:
    """What is known of a function, whatever its arguments."""
    _by_table(context, call, BY_CALL[call.name.strip("_")])


@rule("leaky_relu")
def leaky_relu(context: Context, call: Call) -> None:
    """Leaky ReLU, the identity at slope 1."""
    _by_table(context, call, leaky(call.argument(1, "negative_slope", 0.01)))


@rule("rrelu")
def rrelu(context: Context, call: Call) -> None:
    """Leaky ReLU in eval mode."""
    if call.argument(3, "training", False):
        raise refuse_random(call)
    from_the_table(context, call)


@rule("hardtanh")
def hardtanh(context: Context, call: Call) -> None:
    """Clipping; odd when the interval is symmetric."""
    bounds = call.argument(1, "min_val", -1.0), call.argument(2, "max_val", 1.0)
    _by_table(context, call, clipped(*bounds))


@rule("threshold", "_threshold")
def threshold(context: Context, call: Call) -> None:
    """At zero it is a ReLU."""
    _by_table(context, call, thresholded(call.argument(1, "threshold"), call.argument(2, "value")))


@rule("clamp", "clip", "clamp_min", "clamp_max")
def clamp(context: Context, call: Call) -> None:
    """Clipping; at zero it is a ReLU."""
    name = call.name.rstrip("_")
    low = call.argument(1, "min") if name != "clamp_max" else None
    high = call.argument(1 if name == "clamp_max" else 2, "max") if name != "clamp_min" else None
    if not all(bound is None or isinstance(bound, numbers.Real) for bound in (low, high)):
        raise NotUnderstoodError("clips at bounds that are tensors")
    _by_table(context, call, clipped(low, high))


@rule("dropout", "alpha_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d")
def dropout(context: Context, call: Call) -> None:
    """Dropout: the identity in eval mode."""
    probability = call.argument(1, "p", 0.5)
    default = call.name in ("dropout", "dropout1d", "dropout2d", "dropout3d")
    training = call.argument(2, "training", call.kwargs.get("train", default))
    if training and probability > 0:
        raise refuse_random(call)
    identity(context, call)


@rule("contiguous", "clone", "detach", "to", "float", "double", "half", "bfloat16", "type",
      "type_as", "requires_grad_", "positive", "cpu", "cuda", "alias", "data", "int", "long",
      "short", "char", "byte", "bool", "__deepcopy__", "as_subclass")  # fmt: skip
def identity(context: Context, call: Call) -> None:
    """Functions that return their argument's entries, unless they cut off the fractions."""
    source = call.args[0]
    entry = context.entry(source)
    if entry is None:
        raise NotUnderstoodError("has no operand that depends on the input")
    if not isinstance(call.out, Tensor):
        raise NotUnderstoodError("returns something that is not a tensor")
    if _holds_fractions(source) and not _holds_fractions(call.out):
        apply_elementwise(context, call, homogeneous=False, odd=False)
    elif source.is_complex() and not call.out.is_complex():
        raise NotUnderstoodError("drops the imaginary part")
    elif isinstance(entry, Computed):
        again = Computed(
            entry.shape, entry.demand, lambda: context.assign(call.out, context.operand(source))
        )
        context.assign(call.out, again)
    else:
        context.assign(call.out, entry)


def _holds_fractions(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


@rule("nan_to_num")
def nan_to_num(context: Context, call: Call) -> None:
    """The identity on what is finite, which a factor can end."""
    apply_elementwise(context, call, homogeneous=False, odd=False)


@rule("gt", "ge", "lt", "le", "greater", "greater_equal", "less", "less_equal", "__gt__", "__ge__",
      "__lt__", "__le__", "heaviside")  # fmt: skip
def comparison(context: Context, call: Call) -> None:
    """Whether an entry lies above a number: at zero no factor changes that."""
    bound = call.argument(1, "other")
    value = context.value(call.args[0])
    if value is None or not isinstance(bound, numbers.Real):
        raise NotUnderstoodError("compares with a tensor")
    if bound != 0:
        apply_elementwise(context, call, homogeneous=False, odd=False)
        return
    context.touch(value, call, entrywise=True)
    result = context.renew(value, call)
    context.relations.relate((result.labels, 1))  # a truth has neither factor nor sign
    stop = context.stop(call, "is not an odd function: no sign flip through it", SIGN)
    context.pin(value.labels, stop, sign=True)
    context.relations.block_mixing(value.labels)
    context.assign(call.out, result)


@rule("logical_not", "bitwise_not", "__invert__")
def negation(context: Context, call: Call) -> None:
    """The other truth."""
    value = context.operand(call.args[0])
    context.touch(value, call, entrywise=True)
    result = context.renew(value, call)
    context.relations.relate((result.labels, 1))
    context.relations.relate((value.labels, 1))
    context.assign(call.out, result)


@rule("abs", "absolute", "square", "sqrt", "rsqrt", "reciprocal", "pow", "__pow__")
def monomial(context: Context, call: Call) -> None:
    """Powers ``|x|``, ``x^n``, ``x^p``: the factor is a power of the operand's."""
    name = call.name.rstrip("_")
    exponent = {"abs": 1, "absolute": 1, "square": 2, "sqrt": 0.5, "rsqrt": -0.5}.get(name)
    if name == "reciprocal":
        exponent = -1
    if exponent is None:
        exponent = call.argument(1, "exponent")
    value = context.value(call.args[0])
    if value is None or not isinstance(exponent, (int, float)) or abs(exponent) > 64:
        raise NotUnderstoodError("raises to a power that is not a small number")
    ratio = Fraction(exponent).limit_denominator(1000)
    if abs(ratio - Fraction(exponent)) > 1e-12:
        raise NotUnderstoodError("raises to a power that is not a ratio of small numbers")
    context.touch(value, call, entrywise=True)
    result = context.renew(value, call)
    context.relations.relate(
        (result.labels, ratio.denominator), (value.labels, -ratio.numerator), sign=False
    )
    if ratio.denominator > 1:  # a root: the sign of its argument may not change
        stop = context.stop(call, "takes a root: no sign flip through it", SIGN)
        context.pin(value.labels, stop, sign=True)
        context.pin(result.labels, stop, sign=True)
    else:
        parity = 0 if name in ("abs", "absolute") else ratio.numerator % 2
        context.relations.relate((result.labels, 1), (value.labels, parity), scale=False)
    context.relations.block_mixing(value.labels)
    context.assign(call.out, result)


@rule("prelu")
def prelu(context: Context, call: Call) -> None:
    """PReLU: positively homogeneous for fixed slopes; slopes of channels move with them."""
    tensor, slope = call.argument(0, "input"), call.argument(1, "weight")
    value, view = context.value(tensor), context.entry(slope)
    if value is None or not isinstance(view, ParameterView) or view.index is not None:
        raise NotUnderstoodError("takes slopes that are not a parameter of their own")
    apply_elementwise(context, call, homogeneous=True, odd=False, tensor=tensor)
    if int(np.prod(view.shape)) == 1:
        context.note_use(view.name)
        context.relations.use(view.name, [])
        return
    dim = 1 if len(value.shape) > 1 else 0
    others = [d for d in value.varying if d != dim]
    if others:
        stop = context.stop(call, "has slopes for channels that are not its threads'", MOVE)
        context.pin(value.labels, stop, move=True)
        context.relations.use(view.name, [])
        return
    labels = np.broadcast_to(value.labels.reshape(-1), view.shape)
    addresses = np.zeros(view.shape, dtype=np.int64)
    if value.addresses is not None:
        addresses = np.broadcast_to(value.addresses.take(0, axis=0).reshape(-1), view.shape)
    context.note_use(view.name)
    leg = RawLeg(view.name, labels, 0, 0, Role.SLOPE, addresses, site=str(call.place))
    context.relations.use(view.name, [leg])
