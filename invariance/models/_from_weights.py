"""Perceptrons with given weights: for teaching, and for answers that are known by hand."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from invariance.core._errors import ModelError
from invariance.models._activations import activation_module

Numbers = Tensor | Sequence[float] | Sequence[Sequence[float]]


def from_weights(
    weights: Sequence[Numbers],
    biases: Sequence[Numbers] | None = None,
    *,
    activation: str = "relu",
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    """Build the perceptron whose weight matrices are given.

    Args:
        weights: One ``(out, in)`` matrix a layer, the first layer first; copied.
        biases: One ``(out,)`` vector a layer; ``None`` for layers without a bias.
        activation: One of ``invariance.models.ACTIVATIONS``, between the layers.
        dtype: Floating-point type.

    Returns:
        A module in eval mode, its layers named as those of :func:`invariance.models.mlp`.

    Raises:
        ModelError: If the shapes do not make a chain.
        UsageError: For an unknown activation.

    Example:
        The absolute value, ``|x| = relu(x) + relu(-x)``:

        >>> model = from_weights([[[1.0], [-1.0]], [[1.0, 1.0]]])
        >>> model(torch.tensor([[-3.0], [2.0]], dtype=torch.float64)).flatten().tolist()
        [3.0, 2.0]
    """
    matrices = [torch.as_tensor(matrix, dtype=dtype) for matrix in weights]
    vectors = None if biases is None else [torch.as_tensor(bias, dtype=dtype) for bias in biases]
    shapes = [tuple(matrix.shape) for matrix in matrices]
    chained = all(len(shape) == 2 for shape in shapes) and all(
        after[1] == before[0] for before, after in pairwise(shapes)
    )
    if not matrices or not chained:
        raise ModelError(
            "weights must be matrices (out, in), each as wide as the one before is high. "
            f"Got shapes {shapes}."
        )
    if vectors is not None and [tuple(v.shape) for v in vectors] != [s[:1] for s in shapes]:
        raise ModelError(
            f"biases must have the shapes {[s[:1] for s in shapes]}. "
            f"Got {[tuple(v.shape) for v in vectors]}."
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, matrix in enumerate(matrices, 1):
        rows, columns = matrix.shape
        layer = nn.Linear(columns, rows, bias=vectors is not None, dtype=dtype)
        with torch.no_grad():
            layer.weight.copy_(matrix)
            if vectors is not None:
                layer.bias.copy_(vectors[number - 1])
        layers[f"linear{number}"] = layer
        if number < len(matrices):
            layers[f"act{number}"] = activation_module(activation)
    return nn.Sequential(layers).eval()
