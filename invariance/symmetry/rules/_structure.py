"""Operations that only move entries: views, slices, concatenation, padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from invariance.symmetry.analysis._context import SCALE, SIGN, Context, NotUnderstoodError
from invariance.symmetry.analysis._entries import (
    Computed,
    ParameterView,
    Value,
    compress,
    expand,
    restructure,
    restructure_view,
)
from invariance.symmetry.analysis._threads import OUTSIDE, ZERO, distinct
from invariance.symmetry.analysis._tracing import Call, tensors_in
from invariance.symmetry.rules._computed import deferred
from invariance.symmetry.rules._registry import rule


@rule("view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "T", "mT", "H",
      "mH", "movedim", "moveaxis", "swapaxes", "swapdims", "squeeze", "unsqueeze", "expand",
      "repeat", "tile", "repeat_interleave", "chunk", "split", "tensor_split",
      "split_with_sizes", "unbind", "select", "narrow", "index_select", "flip", "fliplr",
      "flipud", "roll", "unfold", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
      "__getitem__", "broadcast_to", "ravel", "view_as", "reshape_as", "expand_as", "hsplit",
      "vsplit", "dsplit", "adjoint", "take_along_dim", "rot90", "diagonal", "numpy_T",
      "column_stack", "unsafe_chunk", "unsafe_split", "__iter__")  # fmt: skip
@deferred("view")
def rearrangement(context: Context, call: Call) -> None:
    """Anything that only moves entries: the same is done to their threads."""
    source = call.args[0] if call.args else call.kwargs.get("input")
    if not isinstance(source, Tensor):
        raise NotUnderstoodError("rearranges something that is not a tensor")
    by_position = bool(call.args)
    rest = call.args[1:]
    keywords = {key: value for key, value in call.kwargs.items() if key != "input"}
    shape_only = call.name in ("view_as", "reshape_as", "expand_as")
    if not shape_only and any(context.entry(t) is not None for t in tensors_in((rest, keywords))):
        raise NotUnderstoodError("picks entries by an index that depends on the input")
    entry = context.entry(source)
    if entry is None:
        return  # only the shape comes from the tracked operand
    if isinstance(entry, Computed):
        entry = context.value(source)
    if call.name == "view" and rest and isinstance(rest[0], torch.dtype):
        raise NotUnderstoodError("reinterprets the bits of a tensor")

    def move(tensor: Tensor) -> Any:
        function: Callable[..., Any] = call.function
        if call.name == "view":
            function = torch.Tensor.reshape  # labels need not be contiguous
        if call.name == "view_as":
            return tensor.reshape(rest[0].shape)
        if by_position:
            return function(tensor, *rest, **keywords)
        return function(input=tensor, **keywords)

    if isinstance(entry, ParameterView):
        context.assign_all(call.out, restructure_view(entry, move))
    elif isinstance(entry, Value):
        context.assign_all(call.out, restructure(entry, move))
    else:
        raise NotUnderstoodError("rearranges a normalised weight")


@rule("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack")
def concatenation(context: Context, call: Call) -> None:
    """Several tensors side by side."""
    name = "tensors" if "tensors" in call.kwargs else "input"
    tensors = list(call.argument(0, name))
    rest = call.args[1:]
    keywords = {k: v for k, v in call.kwargs.items() if k not in ("tensors", "input")}
    values = [context.operand(tensor) for tensor in tensors]
    values = [v for v, t in zip(values, tensors, strict=True) if t.shape != (0,)]

    def join(parts: list[Tensor]) -> Tensor:
        joined: Tensor = call.function(parts, *rest, **keywords)
        return joined

    shapes = [value.shape for value in values]
    dim = call.argument(1, "dim", call.kwargs.get("axis", 0))
    if call.name in ("cat", "concat", "concatenate"):
        # Dimensions along which nothing differs need not be written out.
        dim %= len(shapes[0])
        flat = [
            d
            for d in range(len(shapes[0]))
            if d != dim and all(v.labels.shape[d] == 1 and v.addresses is None for v in values)
        ]
        shapes = [tuple(1 if d in flat else n for d, n in enumerate(s)) for s in shapes]
    labels = compress(
        join([expand(v.labels, s) for v, s in zip(values, shapes, strict=True)]).numpy()
    )
    shape = tuple(call.out.shape)
    if labels.size == 1 or (
        distinct(labels[labels > OUTSIDE]).size == (labels > OUTSIDE).sum()
        and all(v.addresses is None for v in values)
    ):
        context.assign(call.out, Value(labels, shape))
        return
    addresses = compress(join([expand(v.explicit_addresses(), v.shape) for v in values]).numpy())
    context.assign(call.out, Value(labels, shape, addresses))


@rule("pad", "constant_pad_nd")
def padding(context: Context, call: Call) -> None:
    """Padding with zeros or with copies; other constants stop scaling."""
    source, pads = call.argument(0, "input"), list(call.argument(1, "pad"))
    mode = call.argument(2, "mode", "constant")
    fill = call.argument(3, "value", 0)
    if call.name == "constant_pad_nd":
        mode, fill = "constant", call.argument(2, "value", 0)
    value = context.operand(source)
    ndim = len(value.shape)
    padded = [ndim - 1 - i // 2 for i, n in enumerate(pads) if n]
    context.touch(value, call)
    result = context.renew(value, call, zero_stays=not fill)
    context.relations.equate(result.labels, value.labels)
    if mode == "constant" and fill:
        stop = context.stop(call, "pads with a constant that is not zero", SCALE + SIGN)
        context.pin(value.labels, stop, scale=True, sign=True)
    shape = tuple(call.out.shape)
    if value.even and value.addresses is not None and not any(d in value.varying for d in padded):
        # Fresh threads, which all lie alike: their positions tell their entries apart.
        context.assign(call.out, Value(result.labels, shape))
        return
    plain = value.addresses is None or all(value.addresses.shape[d] == 1 for d in padded)
    if plain and not any(d in value.varying for d in padded):
        context.assign(call.out, Value(result.labels, shape, result.addresses))
        return
    if mode != "constant":
        raise NotUnderstoodError("pads channels with copies of channels")
    # Shifted by one, so that the zeros that padding inserts become the label ZERO.
    arrays = [expand(result.labels, value.shape), expand(result.explicit_addresses(), value.shape)]
    moved = [functional.pad(array - ZERO, pads, value=0).numpy() + ZERO for array in arrays]
    labels = np.where(moved[0] == ZERO, ZERO if not fill else OUTSIDE, moved[0])
    context.assign(call.out, Value(compress(labels), shape, compress(moved[1])))


@rule("__setitem__")
def overwrite(context: Context, call: Call) -> None:
    """Assignment to a part of a tensor."""
    target, index, source = call.args
    if any(context.entry(t) is not None for t in tensors_in(index)):
        raise NotUnderstoodError("writes at an index that depends on the input")
    shape = tuple(target.shape)
    entry = context.value(target)
    if entry is None:
        raise NotUnderstoodError("writes into a constant")
    piece = target[index]
    if isinstance(source, Tensor):
        patch = context.operand(source)
    else:
        label = np.full((1,) * piece.dim(), ZERO if source == 0 else OUTSIDE, dtype=np.int64)
        patch = Value(label, tuple(piece.shape))
    arrays = []
    for before, after in (
        (expand(entry.labels, shape), expand(patch.labels, patch.shape)),
        (
            expand(entry.explicit_addresses(), shape),
            expand(patch.explicit_addresses(), patch.shape),
        ),
    ):
        whole = before.clone()
        whole[index] = after
        arrays.append(compress(whole.numpy()))
    context.assign(target, Value(arrays[0], shape, arrays[1]))
