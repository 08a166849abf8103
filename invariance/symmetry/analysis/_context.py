"""The state of one analysis, which the rules of :mod:`invariance.symmetry.rules` write to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core._errors import TransformError
from invariance.symmetry._structures import IntArray, Role, SymmetryKind
from invariance.symmetry.analysis._entries import (
    Computed,
    NormalizedWeight,
    ParameterView,
    Value,
    compress,
)
from invariance.symmetry.analysis._threads import OUTSIDE, ZERO, RawLeg, ThreadRelations
from invariance.symmetry.analysis._tracing import Call, tensors_in

Entry = Value | ParameterView | NormalizedWeight | Computed
Rule = Callable[["Context", Call], None]

#: The kinds that end where factors may no longer differ from one.
SCALE = (SymmetryKind.SCALING, SymmetryKind.BATCHNORM_AFFINE, SymmetryKind.BATCHNORM_WEIGHT_SCALE)
SIGN = (SymmetryKind.SIGN_FLIP,)
MOVE = (SymmetryKind.PERMUTATION,)


@dataclass(frozen=True, eq=False)
class WeightCall:
    """One call of a weight layer, for transforms that edit whole layers.

    Attributes:
        name: Qualified module name, or the weight's name for a functional call.
        module: Whether it is a call of a module that may be edited.
        weight: Qualified name of the weight (``None`` if it is computed).
        bias: Qualified name of the bias.
        node: Number of the call.
        inputs: Threads of the input features.
        outputs: Threads of the output features.
        exact_shift: Whether adding a constant to every input feature just shifts the output
            by a constant (false with zero padding).
        groups: Number of groups of a convolution.
    """

    name: str
    module: bool
    weight: str | None
    bias: str | None
    node: int
    inputs: IntArray
    outputs: IntArray
    exact_shift: bool
    groups: int = 1


@dataclass(frozen=True, eq=False)
class NormCall:
    """One call of a BatchNorm in eval mode; without a module it is named by its running mean."""

    name: str
    module: bool
    tensors: dict[str, str]
    eps: float
    node: int
    inputs: IntArray
    outputs: IntArray
    input_width: int


@dataclass
class Context:
    """What is known so far about the tensors of the running forward pass.

    Attributes:
        names: Identity of a parameter or buffer to its qualified name.
        parameters: Qualified name to parameter.
        relations: Where rules write relations.
    """

    names: dict[int, str]
    parameters: dict[str, nn.Parameter]
    buffers: dict[str, Tensor]
    relations: ThreadRelations = field(default_factory=ThreadRelations)
    weights: list[WeightCall] = field(default_factory=list)
    norms: list[NormCall] = field(default_factory=list)
    order: int = 0
    _table: dict[int, tuple[Tensor, Entry]] = field(default_factory=dict)
    _stale: dict[int, int] = field(default_factory=dict)
    _entry_threads: dict[str, IntArray] = field(default_factory=dict)
    _entry_read: dict[str, Any] = field(default_factory=dict)
    first_use: dict[str, int] = field(default_factory=dict)
    #: Buffers that follow a weight, with the call that reads them.
    answered: set[tuple[str, int]] = field(default_factory=set)
    #: Address of a storage to the tracked tensors that lie in it.
    _memory: dict[int, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for parameter in self.parameters.values():
            self._remember(parameter)

    # -- looking up ------------------------------------------------------------------

    def parameter_name(self, tensor: Tensor) -> str | None:
        """Return the name of a parameter, ``None`` for any other tensor."""
        name = self.names.get(id(tensor))
        return name if name in self.parameters else None

    def entry(self, tensor: Any) -> Entry | None:
        """Return what is known about a tensor; ``None`` for a constant or a non-tensor."""
        if not isinstance(tensor, Tensor):
            return None
        held = self._table.get(id(tensor))
        name = self.parameter_name(tensor)
        if held is not None:
            found = held[1]
        elif name is not None:
            found = ParameterView(name, tuple(tensor.shape), tuple(tensor.shape))
        else:
            return None
        stale = self._stale.get(id(tensor))
        if stale is not None:
            if isinstance(found, ParameterView):
                found = self._read_entries(found)
            if isinstance(found, Value):
                self.relations.pin(found.labels, stale, scale=True, sign=True, move=True)
        return found

    def peek(self, tensor: Any) -> Entry | None:
        """Like :meth:`entry`, for a look that reads nothing yet."""
        if not isinstance(tensor, Tensor) or id(tensor) in self._stale:
            return None if not isinstance(tensor, Tensor) else self.entry(tensor)
        held = self._table.get(id(tensor))
        return self.entry(tensor) if held is None else held[1]

    def tracked(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the input or on a parameter."""
        return id(tensor) in self._table or self.parameter_name(tensor) is not None

    def value(self, tensor: Any) -> Value | None:
        """Return a tensor's threads; reads parameters entry by entry. ``None``: a constant."""
        entry = self.entry(tensor)
        if isinstance(entry, ParameterView):
            return self._read_entries(entry)
        if isinstance(entry, Computed):
            entry.realise()
            return self.value(tensor)
        if isinstance(entry, NormalizedWeight):
            raise NotUnderstoodError(
                "reads a normalised weight outside of a linear or convolution layer"
            )
        return entry

    def operand(self, tensor: Tensor) -> Value:
        """Like :meth:`value`, with constants labelled: ``ZERO`` where zero, else outside."""
        value = self.value(tensor)
        if value is not None:
            return value
        zero = not bool(torch.count_nonzero(tensor))
        label = np.full((1,) * tensor.dim(), ZERO if zero else OUTSIDE, dtype=np.int64)
        return Value(label, tuple(tensor.shape))

    def _read_entries(self, view: ParameterView) -> Value:
        name = view.name
        if name not in self._entry_threads:
            count = int(np.prod(view.full_shape))
            threads = self.relations.fresh(count, -1 - len(self._entry_threads))
            threads = threads.reshape(view.full_shape)
            self._entry_threads[name] = threads
            self._entry_read[name] = np.zeros(count, dtype=bool)
            self.note_use(name)
            leg = RawLeg(name, threads, 1, 1, Role.PRODUCER, np.zeros_like(threads), site=name)
            self.relations.use(name, [leg])
        index = view.explicit_index()
        self._entry_read[name][index.reshape(-1)] = True
        return Value(
            compress(self._entry_threads[name].reshape(-1)[index]),
            view.shape,
            np.zeros((1,) * len(view.shape), dtype=np.int64),
        )

    def note_use(self, name: str) -> None:
        """Remember when a parameter was first used."""
        self.order += 1
        self.first_use.setdefault(name, self.order)

    # -- writing ---------------------------------------------------------------------

    def assign(self, tensor: Tensor, entry: Entry) -> None:
        """Say what is known about a tensor that an operation returned."""
        if isinstance(entry, Value):
            assert entry.labels.ndim == tensor.dim(), (entry.labels.shape, tensor.shape)
        self._table[id(tensor)] = (tensor, entry)
        self._stale.pop(id(tensor), None)
        self._remember(tensor)

    def _remember(self, tensor: Tensor) -> None:
        address = address_of(tensor)
        if address:
            self._memory.setdefault(address, []).append(tensor)

    def sharing(self, tensor: Tensor) -> list[Tensor]:
        """Return the tracked tensors that lie in the same memory as ``tensor``."""
        address = address_of(tensor)
        return self._memory.get(address, []) if address else []

    def assign_all(self, out: Any, entries: Any) -> None:
        """Assign nested results."""
        if isinstance(out, Tensor):
            self.assign(out, entries)
            return
        for tensor, entry in zip(out, entries, strict=True):
            self.assign_all(tensor, entry)

    def spoil_aliases(self, call: Call) -> None:
        """After a call that overwrites tensors: others in their memory are out of date."""
        for target in overwritten(call):
            held = self._table.get(id(target))
            for tensor in self.sharing(target):
                if tensor is target or tensor is call.out or id(tensor) in self._stale:
                    continue
                stop = self.stop(
                    call, "overwrites a tensor that is read again through another view", SCALE
                )
                self._stale[id(tensor)] = stop
                if held is not None and isinstance(held[1], Value):
                    self.pin(held[1].labels, stop, scale=True, sign=True, move=True)

    # -- shorthands ------------------------------------------------------------------

    def stop(self, call: Call, reason: str, kinds: tuple[SymmetryKind, ...]) -> int:
        """Register why symmetries end at ``call``."""
        return self.relations.stop(str(call.place), call.operation, reason, kinds)

    def pin(
        self,
        threads: IntArray,
        stop: int,
        *,
        scale: bool = False,
        sign: bool = False,
        move: bool = False,
    ) -> None:
        """Forbid scaling, flipping or moving threads."""
        self.relations.pin(threads, stop, scale=scale, sign=sign, move=move)

    def renew(
        self,
        value: Value,
        call: Call,
        *,
        keys: IntArray | int = 0,
        slot: int = 0,
        zero_stays: bool = False,
    ) -> Value:
        """Return fresh threads for a result whose entries correspond to those of ``value``.

        The fresh threads move with the old ones; their factors are for the caller to relate.

        Args:
            value: The operand.
            call: The operation.
            keys: What distinguishes the threads, broadcasting against the labels.
            slot: Distinguishes several results of one operation.
            zero_stays: Whether the operation maps zero to zero whatever the parameters.
        """
        old, position, inverse = np.unique(value.labels, return_index=True, return_inverse=True)
        live = old > 0
        new = old if zero_stays else np.maximum(old, OUTSIDE)
        new = new.copy()
        if isinstance(keys, np.ndarray):
            keys = np.broadcast_to(keys, value.labels.shape).reshape(-1)[position][live]
        new[live] = self.relations.fresh(int(live.sum()), call.node, keys, slot)
        self.relations.tie_moves(new[live], old[live])
        return value.with_labels(new[inverse].reshape(value.labels.shape))

    def touch(
        self, value: Value, call: Call, *keys: int | IntArray, entrywise: bool = False
    ) -> None:
        """Note that ``call`` reads a value's threads.

        Args:
            value: What it reads.
            call: The operation.
            keys: What distinguishes the threads, broadcasting against the labels.
            entrywise: Whether it treats every entry by itself, so that threads whose entries
                lie differently still exchange.
        """
        places: list[int | IntArray] = []
        if not value.even:
            places = [value.explicit_addresses()]
            if not entrywise:
                places.append(value.positions())
        self.relations.touch(value.labels, call.node, *places, *keys)

    def pin_entries(self, tensors: list[Tensor], call: Call, reason: str) -> None:
        """Stop everything that the given tracked tensors hold."""
        stop = self.stop(call, reason, tuple(SymmetryKind))
        for tensor in tensors:
            entry = self.entry(tensor)
            if isinstance(entry, NormalizedWeight):
                continue
            if isinstance(entry, ParameterView) and entry.name not in self._entry_threads:
                self._freeze(entry, call)
                self.relations.remark(np.zeros(0, dtype=np.int64), stop)
                continue
            value = self.value(tensor)
            if value is not None:
                self.pin(value.labels, stop, scale=True, sign=True, move=True)

    def _freeze(self, view: ParameterView, call: Call) -> None:
        """Note a use of a parameter that no factor, sign or move may change."""
        self.note_use(view.name)
        ndim = len(view.full_shape)
        outside = np.full((1,) * ndim, OUTSIDE, dtype=np.int64)
        covered = None
        if view.index is not None:
            covered = np.zeros(int(np.prod(view.full_shape)), dtype=bool)
            covered[view.index.reshape(-1)] = True
            covered = covered.reshape(view.full_shape)
        leg = RawLeg(view.name, outside, 1, 1, Role.PRODUCER, outside, site=str(call.place))
        self.relations.use(view.name, [leg], covered)

    def unknown(self, call: Call, reason: str) -> None:
        """Stop everything that a call touches; its result belongs to the outside."""
        self.pin_entries(list(tensors_in((call.args, call.kwargs))), call, reason)
        for tensor in (*tensors_in(call.out), *overwritten(call)):
            label = np.full((1,) * tensor.dim(), OUTSIDE, dtype=np.int64)
            self.assign(tensor, Value(label, tuple(tensor.shape)))


def address_of(tensor: Tensor) -> int:
    """Return where a tensor's storage lies; 0 where that is not known."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # wrapped, sparse and meta tensors
        return 0


def overwritten(call: Call) -> list[Tensor]:
    """Return the tensors that a call changes in place."""
    changed: list[Any] = [call.kwargs.get("out")]
    if call.in_place or call.name in ("__setitem__", "__set__"):
        changed.append(call.args[0])
    schema = getattr(call.function, "_schema", None)
    if schema is not None:
        for argument, given in zip(schema.arguments, call.args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                changed.append(given)
    return list(tensors_in(changed))


def refuse_random(call: Call) -> TransformError:
    """Build the error for a function that draws at random, in train mode."""
    return TransformError(
        f"{call.operation} at {call.place} is called in train mode (training=True), where it is "
        "a different function at every call. Call model.eval() first."
    )


class NotUnderstoodError(Exception):
    """A rule met arguments that it does not cover: the call counts as unknown."""
