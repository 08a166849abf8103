"""``symmetries``: run a module once, write down what its operations allow, and solve."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core.errors import InvarianceError, TransformError
from invariance.core.modules import (
    WEIGHT_LAYERS,
    clone,
    in_train_mode,
    model_device,
    model_dtype,
)
from invariance.core.rng import generator
from invariance.symmetry.context import MOVE, SCALE, SIGN, Context, NotUnderstoodError
from invariance.symmetry.folding import norm_sites
from invariance.symmetry.groups import Assembler, settle
from invariance.symmetry.ledger import OUTSIDE
from invariance.symmetry.logits import HeadFinder
from invariance.symmetry.rules import find
from invariance.symmetry.solve import couple_uses
from invariance.symmetry.structures import Kind, Stop, Symmetries, WeightUse
from invariance.symmetry.tracing import Call, tensors_in, watch
from invariance.symmetry.values import Value

#: Results of these depend on the shape of a tracked tensor only.
_SHAPE_ONLY = frozenset(
    {"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full",
     "new_empty", "new_tensor"}
)  # fmt: skip

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
        example_input: A batch that the model accepts (a tuple for several arguments). May be
            omitted when the first weight layer is linear.

    Returns:
        The groups, and every place where a symmetry stops, with its reason.

    Raises:
        TransformError: If the module is in train mode, or there is no input to run it on.
        TracingError: If the forward pass fails or decides on the data; names the line.
    """
    return analyse(model, example_input).symmetries


def analyse(model: nn.Module, example_input: Any = None) -> Analysis:
    """Like :func:`symmetries`, and return the copy of the module that was run."""
    refuse_train_mode(model)
    inputs = as_inputs(model, example_input)
    copied = clone(model)
    context = _context(copied)
    head = HeadFinder(copied)

    def handle(call: Call) -> None:
        head.note(call)
        operands = list(tensors_in((call.args, call.kwargs)))
        if not any(context.tracked(tensor) for tensor in operands):
            return
        if call.name in _SHAPE_ONLY:
            return
        rule = find(call)
        try:
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
        if call.in_place or call.name == "__setitem__":
            context.spoil_aliases(call)

    for tensor in tensors_in(inputs):
        label = np.full((1,) * tensor.dim(), OUTSIDE, dtype=np.int64)
        context.assign(tensor, Value(label, tuple(tensor.shape)))
    output = watch(copied, inputs, handle, context.tracked)
    _pin_output(context, output)
    _pin_partly_read(context)
    couple_uses(context.ledger)
    found = _assemble(context, model, copied)
    shift = head.group(output)
    if isinstance(shift, str):
        stop = Stop("output", "", f"allows no logit shift: {shift}", (Kind.LOGIT_SHIFT,))
        found = replace(found, stops=(*found.stops, stop))
    else:
        found = replace(found, groups=(*found.groups, shift))
    return Analysis(copied, found, inputs)


def _context(model: nn.Module) -> Context:
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    names = {id(tensor): name for name, tensor in (*buffers.items(), *parameters.items())}
    return Context(names, parameters, buffers)


def _pin_output(context: Context, output: Any) -> None:
    ledger = context.ledger
    stop = ledger.stop("output", "", "is what has to be kept", tuple(Kind))
    for tensor in _outputs(output):
        value = context.value(tensor)
        if value is not None:
            ledger.pin(value.labels, stop, scale=True, sign=True, move=True)
            ledger.touch(value.labels, 0)


def _outputs(output: Any) -> list[Tensor]:
    found = list(tensors_in(output))
    if not found and hasattr(output, "__dict__"):
        found = list(tensors_in(vars(output)))
    if not found:
        raise TransformError(
            f"The module returned {type(output).__name__}, with no tensor in it; expected a "
            "tensor, or tensors in tuples, lists or dictionaries."
        )
    return found


def _pin_partly_read(context: Context) -> None:
    """Stop symmetries of a parameter of which this input reads only a part."""
    ledger = context.ledger
    for name, uses in ledger.uses.items():
        read = None
        covers = [use.covered for use in uses if use.covered is not None]
        if uses and len(covers) == len(uses):
            read = np.logical_or.reduce(np.stack(covers))
        if name in context._entry_read and len(uses) == 1:
            read = context._entry_read[name]
        if read is not None and not read.all():
            stop = ledger.stop(name, "", "is read only in part on this input", SCALE + SIGN + MOVE)
            for use in uses:
                for leg in use.legs:
                    ledger.pin(leg.labels, stop, scale=True, sign=True, move=True)


def _assemble(context: Context, original: nn.Module, copied: nn.Module) -> Symmetries:
    ledger = context.ledger
    solved = settle(ledger)
    norm_weights = frozenset(norm.tensors.get("weight", "") for norm in context.norms)
    groups = Assembler(solved, context.first_use, norm_weights, ledger).build()
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
            if name not in ledger.uses and name not in context.first_use
        ),
        frozen=tuple(n for n, p in original.named_parameters() if not p.requires_grad),
    )


def _worth_telling(context: Context) -> tuple[Stop, ...]:
    """Return the stops at which something could have gone on but for them."""
    ledger = context.ledger
    told: set[int] = set()
    for pins in (ledger.pins.scale, ledger.pins.sign, ledger.pins.move):
        told.update(index for threads, index in pins if (threads > 0).any())
    told.update(index for _, index in ledger.remarks)
    hidden = {stop for stop in ledger.stops if stop.place in ("output", "input and output")}
    return tuple(
        stop for index, stop in enumerate(ledger.stops) if index in told and stop not in hidden
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


#: These read a batch of vectors as one sequence, which is another function of the rows.
_SEQUENCE_READERS = (nn.MultiheadAttention, nn.RNNBase)


def _unmistakable_rows(model: nn.Module) -> int:
    """Return a number of rows that is no parameter's dimension.

    A forward pass that contracts the rows by mistake (it wants another shape than a made-up
    matrix) then fails, where eight rows into eight inputs would pass for a network.
    """
    taken = {size for parameter in model.parameters() for size in parameter.shape}
    return next(rows for rows in itertools.count(8) if rows not in taken)


def as_inputs(model: nn.Module, example_input: Any) -> tuple[Any, ...]:
    """Turn an example input into positional arguments, making one up where that is safe."""
    if example_input is None:
        return (_made_up_input(model),)
    inputs = tuple(example_input) if isinstance(example_input, (tuple, list)) else (example_input,)
    for tensor in tensors_in(inputs):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TransformError("The example input has NaN or infinite entries.")
        if tensor.numel() == 0:
            raise TransformError(f"The example input is empty: shape {tuple(tensor.shape)}.")
    return inputs


def _made_up_input(model: nn.Module) -> Tensor:
    for name, module in model.named_modules():
        if isinstance(module, _SEQUENCE_READERS):
            raise TransformError(
                f"`{name}` ({type(module).__name__}) reads sequences, so the shape of the input "
                "is not told by the weights. Pass example_input: a batch that the model accepts."
            )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            drawn = torch.randn(
                _unmistakable_rows(model),
                module.in_features,
                generator=generator(0, "example input"),
            )
            return drawn.to(device=model_device(model), dtype=model_dtype(model))
        if isinstance(module, (*WEIGHT_LAYERS, nn.Embedding, nn.modules.conv._ConvNd)):
            raise TransformError(
                f"The first weight layer, `{name}` ({type(module).__name__}), does not tell the "
                "shape of the input. Pass example_input: a batch that the model accepts."
            )
    raise TransformError(
        "The module has no linear layer to tell the shape of its input. Pass example_input."
    )
