"""Translations: numbers that may be added to parameters, whatever the other parameters are.

A shift of a parameter shifts intermediate values. Some readers do not see it: a LayerNorm no
shift that is alike in all its channels, an InstanceNorm none that is alike in all of a
channel, a softmax over keys none that is alike for all keys. So a shift is followed from the
parameter through whatever hands it on unchanged (sums, views), and what all its readers
swallow is free: ``W + 1 v^T`` in front of a LayerNorm and along a stream that only LayerNorms
read, a convolution's bias in front of an InstanceNorm, attention's key bias. Whatever is not
known to swallow a shift or to hand it on ends it.

Which entries a shift moves together is kept as an array of labels, 0 where there is none,
that broadcasts against the value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from invariance.symmetry._structures import IntArray, Leg, Role, SymmetryGroup, SymmetryKind
from invariance.symmetry.analysis._context import address_of, overwritten
from invariance.symmetry.analysis._entries import compress, expand
from invariance.symmetry.analysis._solve import merge
from invariance.symmetry.analysis._tracing import Call, tensors_in

#: More entries than this are not followed one by one.
_MOST_LABELS = 1 << 18

_IDENTITIES = frozenset(
    {"contiguous", "clone", "detach", "to", "float", "double", "type", "type_as", "alias", "data",
     "positive", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "cpu", "cuda"}
)  # fmt: skip
_VIEWS = frozenset(
    {"view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "T", "mT", "movedim",
     "moveaxis", "swapaxes", "swapdims", "squeeze", "unsqueeze", "expand", "repeat",
     "repeat_interleave", "chunk", "split", "tensor_split", "split_with_sizes", "unbind", "select",
     "narrow", "index_select", "flip", "roll", "__getitem__", "broadcast_to", "view_as",
     "reshape_as", "expand_as", "__iter__"}
)  # fmt: skip
_SUMS = frozenset({"add", "sub", "subtract", "__add__", "__radd__", "__sub__", "__rsub__", "rsub"})
_MULTIPLES = frozenset({"mul", "multiply", "__mul__", "__rmul__", "div", "__truediv__", "divide"})
_MEANS = frozenset({"mean", "sum", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_avg_pool1d"})
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
_TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
_SHAPE_OF_SECOND = frozenset({"view_as", "reshape_as", "expand_as"})
_SHAPE_ONLY = frozenset(
    {"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full",
     "new_empty"}
)  # fmt: skip
_OUT_PROJECTION = ((11, "out_proj_weight"), (12, "out_proj_bias"))
_LAYERS = _CONVOLUTIONS | _TRANSPOSED | {
    "linear", "addmm", "embedding", "multi_head_attention_forward"
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Shift:
    """A shift of one tensor.

    Attributes:
        tensor: The tensor.
        labels: Which entries move together; 0 for none.
        function: Whether each label stands for an arbitrary function of the input, which only
            what holds at every position by itself swallows; else for one number.
    """

    tensor: Tensor
    labels: IntArray
    function: bool


@dataclass
class _Fate:
    """What becomes of the labels of one parameter.

    Attributes:
        bad: ``(labels + 1,)`` which are seen by something.
        ties: Labels that go unseen only together.
    """

    bad: npt.NDArray[np.bool_]
    ties: list[tuple[IntArray, IntArray]] = field(default_factory=list)

    def seen(self, labels: IntArray) -> None:
        """Something sees these labels."""
        self.bad[self.place(labels)] = True

    def place(self, labels: IntArray) -> IntArray:
        """Return where labels are noted: of functions there is one, however many its labels."""
        return np.minimum(labels, self.bad.size - 1)


class TranslationFinder:
    """Takes down a forward pass, and follows shifts of its parameters through it."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {
            name: p for name, p in model.named_parameters() if p.is_floating_point()
        }
        self._weights = {id(parameter) for parameter in self._parameters.values()}
        self._readers: dict[int, list[Call]] = {}
        self._held: list[Any] = []  # keeps every result alive, so that no two share an id
        self._overwritten: set[int] = set()
        self._outputs: set[int] = set()
        self._swallowed: set[tuple[int, bytes, tuple[int, ...]]] = set()

    def see(self, call: Call) -> None:
        """Take down one call."""
        self._held.append(call.out)
        for key in {id(t): 0 for t in tensors_in((call.args, dict(call.kwargs)))}:
            self._readers.setdefault(key, []).append(call)
        self._overwritten.update(address_of(tensor) for tensor in overwritten(call))

    def groups(self, outputs: Sequence[Tensor], order: dict[str, int]) -> list[SymmetryGroup]:
        """Return one group for every parameter that may be shifted."""
        self._outputs = {id(tensor) for tensor in outputs}
        found = []
        for name in sorted(self._parameters, key=lambda n: -order.get(n, 0)):
            parameter = self._parameters[name]
            if id(parameter) not in self._readers:
                continue
            units = self._free(parameter)
            if units is None or units.max(initial=-1) < 0:
                continue
            size = int(units.max()) + 1
            flat = np.zeros((1,) * parameter.dim(), dtype=np.int64)
            leg = Leg(name, units, 0, 0, Role.PRODUCER, flat, site=name)
            found.append(
                SymmetryGroup(
                    SymmetryKind.TRANSLATION, name, size, size, (leg,), order.get(name, 0)
                )
            )
        return found[::-1]

    # -- candidates ------------------------------------------------------------------

    def _free(self, parameter: Tensor) -> IntArray | None:
        """Return the free shift of every entry, -1 for none."""
        shape = tuple(parameter.shape)
        dims = self._weight_dims(parameter)
        if not dims:
            if parameter.numel() > _MOST_LABELS:
                return None
            labels = 1 + np.arange(parameter.numel(), dtype=np.int64).reshape(shape)
            return self._settled(_Shift(parameter, labels, False), parameter.numel())
        if len(dims) > 1:
            return None
        sizes = [1 if d in dims else n for d, n in enumerate(shape)]
        units = np.arange(int(np.prod(sizes)), dtype=np.int64).reshape(sizes)
        fate = _Fate(np.zeros(2, dtype=bool))
        # The rows are alike: one label for the weight, a function of the input behind it.
        one = np.ones((1,) * len(shape), dtype=np.int64)
        self._follow(_Shift(parameter, one, True), fate)
        if not fate.bad[1]:
            return units
        if all(call.name == "embedding" for call in self._readers[id(parameter)]):
            columns = 1 + np.arange(shape[-1], dtype=np.int64)[None, :]
            return self._settled(_Shift(parameter, columns, False), shape[-1])
        return None

    def _weight_dims(self, parameter: Tensor) -> set[int]:
        """Return the dimension of a weight's rows; nothing for what is added to something."""
        dims: set[int] = set()
        for call in self._readers[id(parameter)]:
            if call.name not in _LAYERS:
                continue
            place, name = (1, "weight") if call.name != "addmm" else (2, "mat2")
            if call.name == "multi_head_attention_forward":
                place, name = _OUT_PROJECTION[0]
            if call.argument(place, name) is parameter:
                dims.add(1 if call.name in ("addmm", "embedding", *_TRANSPOSED) else 0)
        return dims

    def _settled(self, shift: _Shift, count: int) -> IntArray | None:
        """Follow numbers, and return which are free."""
        fate = _Fate(np.zeros(count + 1, dtype=bool))
        self._follow(shift, fate)
        if fate.bad[1:].all():
            return None
        root = merge(count + 1, fate.ties)
        seen = np.zeros(int(root.max()) + 1, dtype=bool)
        seen[root[fate.bad]] = True
        free = ~seen[root]
        free[0] = False
        units = np.full(count + 1, -1, dtype=np.int64)
        units[free] = np.unique(root[free], return_inverse=True)[1]
        return units[shift.labels]

    # -- following -------------------------------------------------------------------

    def _follow(self, start: _Shift, fate: _Fate) -> None:
        """Hand a shift on to all readers, until every label is swallowed or seen."""
        waiting, visited = [start], set()
        while waiting:
            shift = waiting.pop()
            live = np.unique(shift.labels[shift.labels > 0])
            if not live.size or fate.bad[fate.place(live)].all():
                continue
            key = (id(shift.tensor), shift.labels.tobytes(), shift.labels.shape)
            if key in visited or (shift.function and key in self._swallowed):
                continue
            visited.add(key)
            if (
                id(shift.tensor) in self._outputs
                or address_of(shift.tensor) in self._overwritten
                or not shift.tensor.is_floating_point()
            ):
                fate.seen(live)
                continue
            for call in self._readers.get(id(shift.tensor), ()):
                try:
                    waiting.extend(self._through(call, shift, fate))
                except (_Seen, RuntimeError, ValueError, IndexError, TypeError, AttributeError):
                    fate.seen(live)
                    break
        if start.function and not fate.bad.any():
            self._swallowed.update(visited)

    def _through(self, call: Call, shift: _Shift, fate: _Fate) -> list[_Shift]:
        """Return what one reader hands on."""
        step = (
            None if call.hidden or call.in_place or "out" in call.kwargs else _STEPS.get(call.name)
        )
        module = getattr(call.function, "__module__", None)
        if step is None or (module is not None and not module.startswith("torch")):
            raise _Seen
        if shift.function and call.name not in _LAYERS and id(shift.tensor) in self._weights:
            raise _Seen  # its rows are alike, and no view of it says which these are
        return step(self, call, shift, fate)

    def _identity(self, call: Call, shift: _Shift, fate: _Fate) -> list[_Shift]:
        _only(call, shift, 0, "input")
        return [_Shift(call.out, shift.labels, shift.function)]

    def _shape(self, call: Call, shift: _Shift, fate: _Fate) -> list[_Shift]:
        return []

    def _view(self, call: Call, shift: _Shift, fate: _Fate) -> list[_Shift]:
        if call.name in _SHAPE_OF_SECOND and call.args[0] is not shift.tensor:
            return []
        _only(call, shift, 0, "input")
        rest = call.args[1:]
        function: Callable[..., Any] = call.function
        if call.name in ("view", "view_as"):
            function = Tensor.reshape if call.name == "view" else Tensor.reshape_as
        if call.name == "view" and isinstance(rest[0], torch.dtype):
            raise _Seen
        moved = function(expand(shift.labels, tuple(shift.tensor.shape)), *rest, **call.kwargs)
        parts = [moved] if isinstance(moved, Tensor) else list(moved)
        outs = [call.out] if isinstance(call.out, Tensor) else list(call.out)
        return [
            _Shift(out, compress(part.numpy()), shift.function)
            for out, part in zip(outs, parts, strict=True)
        ]

    def _sum(self, call: Call, shift: _Shift, fate: _Fate) -> list[_Shift]:
        return [_Shift(call.out, _padded(shift.labels, call.out.dim()), shift.function)]

    def _multiple(self, call: Call, shift: _Shift, fate: _Fate) -> list[_Shift]:
        first, second = call.argument(0, "input"), call.argument(1, "other")
        other = second if first is shift.tensor else first
        if other is shift.tensor or (call.name[:3] in ("div", "__t") and first is not shift.tensor):
            raise _Seen
        if isinstance(other, Tensor) and other.numel() != 1:
            raise _Seen
        if call.kwargs.get("rounding_mode") is not None:
            raise _Seen
        return [_Shift(call.out, _padded(shift.labels, call.out.dim()), shift.function)]

    def _mean(self, call: Call, shift: _Shift, fate: _Fate) -> list[_Shift]:
        """A function of the input stays one, alike wherever it was alike."""
        _only(call, shift, 0, "input")
        if not shift.function or (shift.labels == 0).any() or call.out.dim() != shift.tensor.dim():
            raise _Seen
        alike = [
            n > 1 and m == 1 for n, m in zip(shift.tensor.shape, shift.labels.shape, strict=True)
        ]
        if "pool" in call.name and any(alike[-2:]):
            raise _Seen  # padding would tell apart what is alike along a pooled dimension
        sizes = [
            1 if m == 1 else n for n, m in zip(call.out.shape, shift.labels.shape, strict=True)
        ]
        return [_Shift(call.out, _numbered(sizes), True)]

    def _join(self, call: Call, shift: _Shift, fate: _Fate) -> list[_Shift]:
        name = "tensors" if "tensors" in call.kwargs else "input"
        tensors = list(call.argument(0, name))
        rest = {k: v for k, v in call.kwargs.items() if k not in ("tensors", "input")}
        parts = [
            expand(shift.labels, tuple(t.shape))
            if t is shift.tensor
            else torch.zeros(t.shape, dtype=torch.int64)
            for t in tensors
        ]
        joined = call.function(parts, *call.args[1:], **rest)
        return [_Shift(call.out, compress(joined.numpy()), shift.function)]

    def _softmax(self, call: Call, shift: _Shift, fate: _Fate) -> list[_Shift]:
        _only(call, shift, 0, "input")
        _swallow(shift, fate, [int(call.argument(1, "dim"))])
        return []

    def _layer_norm(self, call: Call, shift: _Shift, fate: _Fate) -> list[_Shift]:
        if call.argument(3, "bias") is shift.tensor:
            return [_Shift(call.out, _padded(shift.labels, call.out.dim()), False)]
        _only(call, shift, 0, "input")
        count = len(tuple(call.argument(1, "normalized_shape")))
        _swallow(shift, fate, list(range(-count, 0)))
        return []

    def _spatial_norm(self, call: Call, shift: _Shift, fate: _Fate) -> list[_Shift]:
        """Norms over positions: they swallow numbers, for these are alike at all positions."""
        bias = call.argument(3 if call.name == "group_norm" else 4, "bias")
        if bias is shift.tensor:
            labels = _along(shift.labels, 1, call.out.dim())
            return [_Shift(call.out, labels, False)]
        _only(call, shift, 0, "input")
        if shift.function:
            raise _Seen
        ndim = shift.tensor.dim()
        space = list(range(2, ndim))
        if call.name == "group_norm":
            groups = int(call.argument(1, "num_groups"))
            wide = expand(shift.labels, tuple(shift.tensor.shape))
            split = compress(wide.reshape(len(wide), groups, -1, *wide.shape[2:]).numpy())
            _swallow(_Shift(shift.tensor, split, False), fate, [d + 1 for d in space] + [2])
            return []
        if call.name == "instance_norm" and not call.argument(5, "use_input_stats", True):
            raise _Seen
        if call.name == "batch_norm":
            if call.argument(1, "running_mean") is not None:
                raise _Seen
            space = [0, *space]
        _swallow(shift, fate, space)
        return []

    def _attention(self, call: Call, shift: _Shift, fate: _Fate) -> list[_Shift]:
        query, _, value, mask = (
            call.argument(i, n) for i, n in enumerate(("query", "key", "value", "attn_mask"))
        )
        if any(t is shift.tensor for t in (query, value)):
            raise _Seen
        _swallow(shift, fate, [-1 if mask is shift.tensor else -2])
        return []

    def _multi_head(self, call: Call, shift: _Shift, fate: _Fate) -> list[_Shift]:
        """Of the three biases, that of the keys is added to all scores of a query alike."""
        if any(call.argument(i, n) is shift.tensor for i, n in _OUT_PROJECTION):
            if not (shift.function or call.argument(12, "out_proj_bias") is shift.tensor):
                raise _Seen
            out = call.out[0]
            if shift.function:
                return [_function_of_positions(out, out.dim() - 1)]
            return [_Shift(out, _along(shift.labels, out.dim() - 1, out.dim()), False)]
        if (
            call.argument(6, "in_proj_bias") is not shift.tensor
            or call.argument(7, "bias_k") is not None
            or call.argument(9, "add_zero_attn")
            or shift.labels.shape != tuple(shift.tensor.shape)
        ):
            raise _Seen
        block = shift.labels.size // 3
        fate.seen(shift.labels[:block])
        fate.seen(shift.labels[2 * block :])
        return []

    def _scores(self, call: Call, shift: _Shift, fate: _Fate) -> list[_Shift]:
        """``q k^T``: what is alike for all keys shifts all scores of a query alike."""
        a, b = call.argument(0, "input"), call.argument(1, "other", call.kwargs.get("mat2"))
        if b is not shift.tensor or a is b or b.dim() < 3 or shift.labels.shape[-1] != 1:
            raise _Seen
        out = call.out
        inner = _Fate(np.zeros(2, dtype=bool))
        # One label, of any function of the rest: it has to be alike along the keys.
        self._follow(_function_of_positions(out, out.dim() - 1), inner)
        if inner.bad[1]:
            raise _Seen
        return []

    def _layer(self, call: Call, shift: _Shift, fate: _Fate) -> list[_Shift]:
        """A weight layer: alike rows give alike channels, a bias is added to its channel."""
        x, weight, bias = (call.argument(i, n) for i, n in enumerate(("input", "weight", "bias")))
        if call.name == "addmm":
            bias, x, weight = call.args[:3]
            if call.kwargs:
                raise _Seen
        if x is shift.tensor:
            raise _Seen
        ndim = call.out.dim()
        channel = ndim - 1 if call.name in ("linear", "addmm") else ndim - weight.dim() + 1
        if bias is shift.tensor and weight is not shift.tensor:
            return [_Shift(call.out, _along(shift.labels, channel, ndim), shift.function)]
        if weight is not shift.tensor or not shift.function or shift.labels.size != 1:
            raise _Seen
        if call.argument(6, "groups", 1) != 1 and call.name != "linear":
            raise _Seen
        return [_function_of_positions(call.out, channel)]

    def _embedding(self, call: Call, shift: _Shift, fate: _Fate) -> list[_Shift]:
        if (
            call.argument(1, "weight") is not shift.tensor
            or call.argument(3, "max_norm") is not None
        ):
            raise _Seen
        if call.argument(2, "padding_idx") is not None and call.name != "embedding":
            raise _Seen
        last = call.out.dim() - 1
        if shift.function:
            return [_function_of_positions(call.out, last)]
        return [_Shift(call.out, _along(shift.labels.reshape(-1), last, last + 1), False)]


class _Seen(Exception):  # noqa: N818 - no error: it ends a shift
    """A reader that a shift does not go through."""


def _only(call: Call, shift: _Shift, position: int, name: str) -> None:
    """Refuse a shift that comes in anywhere else than by one argument."""
    if call.argument(position, name) is not shift.tensor:
        raise _Seen
    if sum(t is shift.tensor for t in tensors_in((call.args, dict(call.kwargs)))) != 1:
        raise _Seen


def _padded(labels: IntArray, ndim: int) -> IntArray:
    return labels.reshape((1,) * (ndim - labels.ndim) + labels.shape)


def _along(labels: IntArray, dim: int, ndim: int) -> IntArray:
    return labels.reshape([-1 if d == dim else 1 for d in range(ndim)])


def _function_of_positions(out: Tensor, channel: int) -> _Shift:
    """A shift by any function of the positions that is alike in all channels."""
    sizes = [1 if d == channel else n for d, n in enumerate(out.shape)]
    return _Shift(out, _numbered(sizes), True)


def _numbered(sizes: Sequence[int]) -> IntArray:
    return 1 + np.arange(int(np.prod(sizes)), dtype=np.int64).reshape(sizes)


def _swallow(shift: _Shift, fate: _Fate, dims: Sequence[int]) -> None:
    """Ask that labels are alike along dimensions, and note what is not."""
    labels = shift.labels
    dims = [d % labels.ndim for d in dims]
    if shift.function:
        # It may differ along every dimension of more than one label.
        if any(labels.shape[d] > 1 for d in dims):
            raise _Seen
        return
    across = [d for d in dims if labels.shape[d] > 1]
    if not across:
        return
    rows = np.moveaxis(labels, across, range(len(across)))
    rows = rows.reshape(int(np.prod(rows.shape[: len(across)])), -1)
    first = np.broadcast_to(rows.max(axis=0), rows.shape)
    partly = (rows == 0) & (first > 0)
    fate.seen(rows[:, partly.any(axis=0)].reshape(-1))
    fate.bad[0] = False
    differ = (rows > 0) & (rows != first)
    if differ.any():
        fate.ties.append((first[differ], rows[differ]))


_STEPS: dict[str, Callable[[TranslationFinder, Call, _Shift, _Fate], list[_Shift]]] = {
    **dict.fromkeys(_IDENTITIES, TranslationFinder._identity),
    **dict.fromkeys(_VIEWS, TranslationFinder._view),
    **dict.fromkeys(_SUMS, TranslationFinder._sum),
    **dict.fromkeys(_MULTIPLES, TranslationFinder._multiple),
    **dict.fromkeys(_MEANS, TranslationFinder._mean),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), TranslationFinder._join),
    **dict.fromkeys(("linear", "addmm", *_CONVOLUTIONS, *_TRANSPOSED), TranslationFinder._layer),
    **dict.fromkeys(("group_norm", "instance_norm", "batch_norm"), TranslationFinder._spatial_norm),
    **dict.fromkeys(("matmul", "__matmul__", "bmm"), TranslationFinder._scores),
    "softmax": TranslationFinder._softmax,
    "layer_norm": TranslationFinder._layer_norm,
    "scaled_dot_product_attention": TranslationFinder._attention,
    "multi_head_attention_forward": TranslationFinder._multi_head,
    "embedding": TranslationFinder._embedding,
    **dict.fromkeys(_SHAPE_ONLY, TranslationFinder._shape),
}
