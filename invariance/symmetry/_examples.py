"""Example inputs: what a module is run on to be analysed, and to be verified."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from invariance.core._errors import TransformError
from invariance.core._modules import WEIGHT_LAYERS, model_device, model_dtype
from invariance.core._rng import generator
from invariance.symmetry.analysis._tracing import all_tensors_in

#: These read a batch of vectors as one sequence, which is another function of the rows.
_SEQUENCE_READERS = (nn.MultiheadAttention, nn.RNNBase)


class Examples(tuple[tuple[Any, ...], ...]):
    """Several examples, each a tuple of positional arguments."""

    __slots__ = ()


def each(inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
    """Return the examples in what :func:`as_inputs` returned, each as positional arguments."""
    return inputs if isinstance(inputs, Examples) else (inputs,)


def as_inputs(model: nn.Module, example_input: Any) -> tuple[Any, ...]:
    """Turn an example input into positional arguments, making one up where that is safe."""
    if example_input is None:
        return (_made_up_input(model),)
    if isinstance(example_input, (list, Examples)):
        if not example_input:
            raise TransformError("The list of example inputs is empty. Give at least one.")
        found = Examples(as_inputs(model, one) for one in example_input)
        return found if len(found) > 1 else found[0]
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    for tensor in all_tensors_in(inputs):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TransformError("The example input has NaN or infinite entries.")
        if tensor.numel() == 0:
            raise TransformError(f"The example input is empty: shape {tuple(tensor.shape)}.")
    return tuple(inputs)


def describe(inputs: tuple[Any, ...]) -> str:
    """Return the shapes of an example's tensors, for a reader."""
    shapes = [f"({', '.join(map(str, tensor.shape))})" for tensor in all_tensors_in(inputs)]
    return " and ".join(shapes) or "no tensor"


def _unmistakable_rows(model: nn.Module) -> int:
    """Return a number of rows that is no parameter's dimension.

    A forward pass that contracts the rows by mistake (it wants another shape than a made-up
    matrix) then fails, where eight rows into eight inputs would pass for a network.
    """
    taken = {size for parameter in model.parameters() for size in parameter.shape}
    return next(rows for rows in itertools.count(8) if rows not in taken)


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
