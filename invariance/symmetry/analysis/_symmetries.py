"""``symmetries``: run a module once, write down what its operations allow, and solve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core._errors import InvarianceError, TransformError
from invariance.core._modules import clone, in_train_mode
from invariance.symmetry._examples import as_inputs, describe, each
from invariance.symmetry._structures import (
    SCALING_KINDS,
    Leg,
    Role,
    Stop,
    Symmetries,
    SymmetryGroup,
    SymmetryKind,
    WeightUse,
)
from invariance.symmetry.analysis._context import MOVE, SCALE, SIGN, Context, NotUnderstoodError
from invariance.symmetry.analysis._entries import Value
from invariance.symmetry.analysis._folding import norm_sites
from invariance.symmetry.analysis._groups import Assembler, settle
from invariance.symmetry.analysis._logits import HeadFinder
from invariance.symmetry.analysis._solve import couple_uses
from invariance.symmetry.analysis._threads import OUTSIDE
from invariance.symmetry.analysis._tracing import Call, Observer, all_tensors_in, tensors_in, watch
from invariance.symmetry.analysis._translations import TranslationFinder
from invariance.symmetry.elements._group_elements import (
    Element,
    GroupElement,
    named_tensors,
    write_tensors,
)
from invariance.symmetry.rules import find

#: Results of these depend on the shape of a tracked tensor only.
_SHAPE_ONLY = frozenset(
    {"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full",
     "new_empty", "new_tensor"}
)  # fmt: skip

#: How far apart the numbers of calls of two forward passes are.
_NODES = 1 << 32

#: What may go wrong when a rule meets arguments that it was not written for.
_RULE_FAILURES = (
    NotUnderstoodError, IndexError, KeyError, TypeError, ValueError, AttributeError,
    RuntimeError, AssertionError, NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Analysis:
    """An analysed copy of a module.

    Attributes:
        model: The copy, free to be edited.
        symmetries: What was found.
        inputs: The inputs that it was run on.
    """

    model: nn.Module
    symmetries: Symmetries
    inputs: tuple[Any, ...]


def symmetries(model: nn.Module, example_input: Any = None) -> Symmetries:
    """Find the function-preserving maps of a module's parameters.

    The module is run once, on a copy, and every torch function that it calls is followed.
    What is not known to be a symmetry is not one: an operation without a rule stops
    everything that touches it, and says so.

    Args:
        model: Any module, in eval mode where it has BatchNorm or dropout.
        example_input: A batch that the model accepts: a tuple for several arguments, a list
            for several examples, to find what holds on all of them. May be omitted when the
            first weight layer is linear.

    Returns:
        The groups, and every place where a symmetry stops, with its reason. They hold for
        inputs of the examples' shapes (and decisions): a module may do something else, or
        read other parts of its parameters, for others.

    Raises:
        TransformError: If the module is in train mode, or there is no input to run it on.
        TracingError: If the forward pass fails or decides on the data; names the line.

    Example:
        A ReLU network with three hidden units: three factors, and 3! orders of the units.

        >>> import torch
        >>> import invariance as inv
        >>> found = inv.symmetries(inv.models.mlp([2, 3, 2]), torch.rand(1, 2))
        >>> found.dof("scaling"), found.count("permutation")
        (3, 1)
    """
    refuse_train_mode(model)
    return _find(model, as_inputs(model, example_input))


def analyse(model: nn.Module, example_input: Any = None) -> Analysis:
    """Like :func:`symmetries`, and return a copy of the module to work on."""
    refuse_train_mode(model)
    inputs = as_inputs(model, example_input)
    return Analysis(clone(model), _find(model, inputs), inputs)


def _find(model: nn.Module, inputs: tuple[Any, ...]) -> Symmetries:
    """Find what holds on all of the examples."""
    examples = each(inputs)
    readers = [_Reader(model) for _ in examples]
    several = [reader.read_through(one) for reader, one in zip(readers, examples, strict=True)]
    found = several[0]
    if not all(_alike(found, other) for other in several[1:]):
        # As one network that reads all examples: its parameters are used several times.
        found = _Reader(model).read_through(*examples)
    shifts = [reader.head.group(reader.output) for reader in readers]
    reasons = [shift for shift in shifts if isinstance(shift, str)]
    if reasons:
        stop = Stop(
            "output", "", f"allows no logit shift: {reasons[0]}", (SymmetryKind.LOGIT_SHIFT,)
        )
        found = replace(found, stops=(*found.stops, stop))
    elif len({shift.site for shift in shifts if not isinstance(shift, str)}) == 1:
        assert not isinstance(shifts[0], str)
        found = replace(found, groups=(*found.groups, shifts[0]))
    moved = [reader.translations() for reader in readers]
    free = [
        group
        for group in moved[0]
        if all(any(_same_group(group, other) for other in others) for others in moved[1:])
    ]
    if free:
        kinds = list(SymmetryKind)
        groups = sorted((*found.groups, *free), key=lambda g: (g.order, kinds.index(g.kind)))
        found = replace(found, groups=tuple(groups))
    remarks = [f"inputs of shape {describe(one)}" for one in examples]
    remarks += [line for reader in readers for line in reader.remarks]
    return replace(found, holds_for=tuple(dict.fromkeys(remarks)))


def _alike(one: Symmetries, other: Symmetries) -> bool:
    """Whether two findings have the same groups."""
    return len(one.groups) == len(other.groups) and all(map(_same_group, one.groups, other.groups))


def _same_group(a: SymmetryGroup, b: SymmetryGroup) -> bool:
    """Whether two groups act alike."""

    def same(a: Leg, b: Leg) -> bool:
        return (
            (a.parameter, a.power, a.sign_power, a.role, a.shift)
            == (b.parameter, b.power, b.sign_power, b.role, b.shift)
            and np.array_equal(a.units, b.units)
            and np.array_equal(a.addresses, b.addresses)
        )

    return (
        (a.kind, a.site, a.size, a.dof, a.stream) == (b.kind, b.site, b.size, b.dof, b.stream)
        and len(a.legs) == len(b.legs)
        and all(map(same, a.legs, b.legs))
    )


#: What touches memory that is a tracked tensor's, and what a kernel does that no one called.
_SAME_MEMORY = (
    "reads the memory of a tensor that was changed or shared without an operation that was seen "
    "(.data, set_, out=, a view made before)"
)
_HIDDEN = (
    "runs out of sight (TorchScript, torch.func, an extension), where nothing is known about it"
)


class _Reader(Observer):
    """Follows forward passes of a copy of a module, and reads its symmetries off them.

    Attributes:
        head: Watches for the layer that makes the output.
        output: What the last forward pass returned.
        remarks: What the program decided on, beyond the parameters' reach.
    """

    def __init__(self, model: nn.Module) -> None:
        self._original, self._model = model, clone(model)
        self._context = _context(self._model)
        self._buffers = {id(tensor): name for name, tensor in self._context.buffers.items()}
        self._buffer_reads: dict[str, dict[int, str]] = {}
        self._integers: set[int] = set()
        self._unborn: dict[int, Tensor] = {}
        self._first_node = 0
        self.head = HeadFinder(self._model)
        self._shifts = TranslationFinder(self._model)
        self._kept: list[Tensor] = []
        self.output: Any = None
        self.remarks: list[str] = []

    def read_through(self, *examples: tuple[Any, ...]) -> Symmetries:
        """Run the module on examples and return what holds on all of them."""
        context = self._context
        for inputs in examples:
            given = all_tensors_in(inputs)
            for tensor in given:
                label = np.full((1,) * tensor.dim(), OUTSIDE, dtype=np.int64)
                context.assign(tensor, Value(label, tuple(tensor.shape)))
                if not (tensor.is_floating_point() or tensor.is_complex()):
                    self._integers.add(id(tensor))
            self.output = watch(self._model, inputs, self)
            self._first_node += _NODES
            # What the module wrote into its arguments (a cache) is output, too.
            self._kept += [*_outputs(self.output), *all_tensors_in(inputs)]
            _pin_output(context, [*_outputs(self.output), *all_tensors_in(inputs)])
        _pin_partly_read(context)
        self._pin_read_buffers()
        couple_uses(context.relations)
        found = _assemble(context, self._original, self._model)
        return _without_dead_ends(found, self._model, examples)

    def translations(self) -> list[SymmetryGroup]:
        """Return what may be added to parameters in the passes that were read."""
        return self._shifts.groups(self._kept, self._context.first_use)

    def tracked(self, tensor: Tensor) -> bool:
        """See :meth:`Observer.tracked`."""
        return self._context.tracked(tensor)

    def harmless(self, tensor: Tensor) -> bool:
        """Whether a tensor was computed from integer inputs alone."""
        return id(tensor) in self._integers

    def read(self, what: str) -> None:
        """See :meth:`Observer.read`."""
        self.remarks.append(f"integer inputs on which it decides alike ({what})")

    def see(self, call: Call) -> None:
        """See :meth:`Observer.see`."""
        call = replace(call, node=call.node + self._first_node)
        self.head.see(call)
        self._shifts.see(call)
        context = self._context
        operands = list(tensors_in((call.args, call.kwargs)))
        self._note_buffers(call, operands)
        tracked = [tensor for tensor in operands if context.tracked(tensor)]
        shared = [t for t in operands if t.is_floating_point() and self._is_shared(t)]
        if call.hidden and not tracked and call.name.startswith(("empty", "new_empty")):
            self._unborn.update((id(tensor), tensor) for tensor in tensors_in(call.out))
        if not tracked and not shared:
            return
        if call.name in _SHAPE_ONLY and not call.hidden:
            return
        try:
            if shared:
                for tensor in shared:
                    context.pin_entries(context.sharing(tensor), call, _SAME_MEMORY)
                raise NotUnderstoodError(_SAME_MEMORY)
            if call.hidden:
                raise NotUnderstoodError(_HIDDEN)
            rule = find(call)
            if rule is None:
                raise NotUnderstoodError("is not an operation whose symmetries are known")
            rule(context, call)
        except InvarianceError:
            raise
        except _RULE_FAILURES as error:
            reason = str(error) if isinstance(error, NotUnderstoodError) else (
                "is called in a way that is not understood"
            )  # fmt: skip
            context.unknown(call, f"{reason}: everything that it touches stays as it is")
        context.spoil_aliases(call)
        if all(map(self.harmless, tracked)) and not shared:
            self._integers.update(map(id, tensors_in(call.out)))

    def _is_shared(self, tensor: Tensor) -> bool:
        """Whether an untracked tensor carries what no operation was seen to put there."""
        context = self._context
        return not context.tracked(tensor) and (
            id(tensor) in self._unborn or bool(context.sharing(tensor))
        )

    def _note_buffers(self, call: Call, operands: list[Tensor]) -> None:
        statistics: tuple[int, ...] = ()
        if call.name == "batch_norm" and not call.hidden:
            statistics = (id(call.argument(1, "running_mean")), id(call.argument(2, "running_var")))
        for tensor in operands:
            name = self._buffers.get(id(tensor))
            if name is not None and id(tensor) not in statistics and call.out is not tensor:
                self._buffer_reads.setdefault(name, {})[call.node] = str(call.place)

    def _pin_read_buffers(self) -> None:
        """Stop what would rewrite a buffer that something else reads as a constant."""
        relations = self._context.relations
        for name, places in self._buffer_reads.items():
            unanswered = [
                place
                for node, place in places.items()
                if (name, node) not in self._context.answered
            ]
            for use in relations.uses.get(name, ()) if unanswered else ():
                place = unanswered[0]
                stop = relations.stop(place, "", f"reads `{name}`, too", SCALE + SIGN + MOVE)
                for leg in use.legs:
                    relations.pin(leg.labels, stop, scale=True, sign=True, move=True)


def _without_dead_ends(
    found: Symmetries, model: nn.Module, examples: tuple[tuple[Any, ...], ...]
) -> Symmetries:
    """Drop groups of units that nothing reads, unless the output proves not to need them."""
    ends = [
        (place, group)
        for place, group in enumerate(found.groups)
        if group.kind is not SymmetryKind.PERMUTATION
        and all(leg.role is Role.PRODUCER for leg in group.legs)
    ]
    if not ends:
        return found
    with torch.no_grad():
        plain = [all_tensors_in(model(*inputs)) for inputs in examples]
    values = {
        kind: -1.0 if kind is SymmetryKind.SIGN_FLIP else 2.0
        for kind in (*SCALING_KINDS, SymmetryKind.SIGN_FLIP)
    }
    element = Element(
        tuple(
            (place, GroupElement(g.kind, g.site, torch.full((g.size,), values[g.kind]).double()))
            for place, g in ends
            if g.kind in values
        )
    )
    write_tensors(model, element.act(named_tensors(model), found))
    with torch.no_grad():
        moved = [all_tensors_in(model(*inputs)) for inputs in examples]
    kept = all(
        _close(a, b)
        for old, new in zip(plain, moved, strict=True)
        for a, b in zip(old, new, strict=True)
    )
    if kept:
        return found
    places = {place for place, _ in ends}
    stops = [
        Stop(
            group.site, "", "makes something that is read in a way that was not seen", (group.kind,)
        )
        for _, group in ends
    ]
    groups = tuple(group for place, group in enumerate(found.groups) if place not in places)
    return replace(found, groups=groups, stops=(*found.stops, *stops))


def _close(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    slack = 1e3 * torch.finfo(one.dtype).eps * float(one.abs().max()) if one.numel() else 0.0
    return bool(((one - other).abs() <= slack).all())


def _context(model: nn.Module) -> Context:
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    names = {id(tensor): name for name, tensor in (*buffers.items(), *parameters.items())}
    return Context(names, parameters, buffers)


def _pin_output(context: Context, outputs: list[Tensor]) -> None:
    relations = context.relations
    stop = relations.stop("output", "", "is what has to be kept", tuple(SymmetryKind))
    for tensor in outputs:
        value = context.value(tensor)
        if value is not None:
            relations.pin(value.labels, stop, scale=True, sign=True, move=True)
            relations.touch(value.labels, 0)


def _outputs(output: Any) -> list[Tensor]:
    found = all_tensors_in(output)
    if not found:
        raise TransformError(
            f"The module returned {type(output).__name__}, with no tensor in it; expected a "
            "tensor, or an object that holds tensors."
        )
    return found


def _pin_partly_read(context: Context) -> None:
    """Stop symmetries of a parameter of which this input reads only a part."""
    relations = context.relations
    for name, uses in relations.uses.items():
        read = None
        covers = [use.covered for use in uses if use.covered is not None]
        if uses and len(covers) == len(uses):
            read = np.logical_or.reduce(np.stack(covers))
        if name in context._entry_read and len(uses) == 1:
            read = context._entry_read[name]
        if read is not None and not read.all():
            stop = relations.stop(
                name, "", "is read only in part on this input", SCALE + SIGN + MOVE
            )
            for use in uses:
                for leg in use.legs:
                    relations.pin(leg.labels, stop, scale=True, sign=True, move=True)


def _assemble(context: Context, original: nn.Module, copied: nn.Module) -> Symmetries:
    relations = context.relations
    solved = settle(relations)
    norm_weights = frozenset(norm.tensors.get("weight", "") for norm in context.norms)
    groups = Assembler(solved, context.first_use, norm_weights, relations).build()
    weights = tuple(
        WeightUse(call.name, call.weight, call.bias, call.node)
        for call in context.weights
        if call.weight is not None
    )
    return Symmetries(
        model=type(original).__name__,
        groups=groups,
        stops=_worth_telling(context),
        weights=weights,
        norms=norm_sites(context, copied),
        aliases=_aliases(copied),
        unused=tuple(
            name
            for name in context.parameters
            if name not in relations.uses and name not in context.first_use
        ),
        frozen=tuple(n for n, p in original.named_parameters() if not p.requires_grad),
    )


def _worth_telling(context: Context) -> tuple[Stop, ...]:
    """Return the stops at which something could have gone on but for them."""
    relations = context.relations
    told: set[int] = set()
    for pins in (relations.pins.scale, relations.pins.sign, relations.pins.move):
        told.update(index for threads, index in pins if (threads > 0).any())
    told.update(index for _, index in relations.remarks)
    hidden = {stop for stop in relations.stops if stop.place in ("output", "input and output")}
    return tuple(
        stop for index, stop in enumerate(relations.stops) if index in told and stop not in hidden
    )


def _aliases(model: nn.Module) -> Mapping[str, str]:
    first: dict[int, str] = {}
    aliases = {}
    for named in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in named:
            aliases[name] = first.setdefault(id(tensor), name)
    return aliases


# -- input -------------------------------------------------------------------------------


def refuse_train_mode(model: nn.Module) -> None:
    """Raise unless this is a module with BatchNorm and dropout in eval mode."""
    if not isinstance(model, nn.Module):
        raise TransformError(f"Expected an nn.Module. Got {type(model).__name__}: {model!r:.60}.")
    if where := in_train_mode(model):
        raise TransformError(
            f"`{where}` is in train mode, where it is a different function (batch statistics, "
            "random masks). Call model.eval() first."
        )
