"""Activation patterns and free regions that dormant units cannot move.

Both counts depend on every unit of a layer, used or not. The repair counts on the
narrowest network that the parameters certify to be the same function: dormant units
removed, constant ones folded into biases, duplicates merged. Removing a constant or a
duplicate changes no count; removing a dormant unit drops its bit. The last layer is
first taken relative to class 0, so that a unit that only shifts all logits alike counts
as dormant too.

The repaired counts are unchanged by everything that leaves the plain ones unchanged, and
by giving, moving and taking dormant units. They equal the plain ones on a network that
has no unit to spare. Unlike the repaired pair proxy, a unit that is used but that data
never activates is not recognised as spare; its bit is constant and counts for nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invariance.core._errors import MeasureError, TransformError
from invariance.core._estimate import Estimate
from invariance.core._modules import clone
from invariance.weakness._features import frozen_features
from invariance.weakness.patterns._patterns import activation_patterns, as_rows
from invariance.weakness.patterns._regions import free_regions


def reduced_network(model: nn.Module, x: Tensor) -> nn.Module:
    """Return the narrowest copy of ``model`` that has the same softmax at every input.

    Args:
        model: A network that ends with a linear layer, in eval mode.
        x: At least one input row.

    Returns:
        A new module; its logits are relative to class 0's.

    Raises:
        MeasureError: If the network's graph cannot be analysed; says where.

    Example:
        Neither unit can go: each is needed.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> x = torch.eye(2).double()
        >>> inv.weakness.reduced_network(model, x)[0].weight.shape
        torch.Size([2, 2])
    """
    from invariance.symmetry.elements._reduce_width import reduce_width

    rows = as_rows(model, x[:2], "x")
    name = frozen_features(model, rows).layer
    copy = clone(model)
    for module in copy.modules():
        if parametrize.is_parametrized(module):
            for tensor in tuple(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
    last = copy.get_submodule(name)
    if not isinstance(last, nn.Linear):
        raise MeasureError(f"Expected a linear last layer, got {type(last).__name__}.")
    with torch.no_grad():
        last.weight.sub_(last.weight[:1].clone())
        if last.bias is not None:
            last.bias.sub_(last.bias[:1].clone())
    try:
        return reduce_width(copy, rows).model
    except TransformError as error:
        raise MeasureError(
            f"The network's width cannot be reduced, so its spare units are not known: {error}"
        ) from error


def repaired_activation_patterns(model: nn.Module, x: Tensor, layer: int = -1) -> Estimate:
    """Count the distinct activation patterns of the units that the function uses.

    Args:
        model: A network that ends with a linear layer, in eval mode.
        x: ``(n, ...)`` inputs.
        layer: Index among the activations in order of execution, -1 the last hidden one.

    Returns:
        As for the plain count, of the reduced network.

    Raises:
        MeasureError: If the network cannot be reduced, or the layer not counted.
        DataError: If ``x`` is empty or not finite.

    Example:
        Two ReLU units on the plane show the signs (+, +), (+, -) and (-, -).

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> unseen = torch.tensor([[1.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]).double()
        >>> inv.weakness.repaired_activation_patterns(model, unseen).value
        3.0
    """
    return activation_patterns(reduced_network(model, x), x, layer)


def repaired_free_regions(
    model: nn.Module, x_train: Tensor, x_unseen: Tensor, layer: int = -1
) -> Estimate:
    """Count the free regions among the units that the function uses.

    Args:
        model: A network that ends with a linear layer, in eval mode.
        x_train: ``(n, ...)`` training points.
        x_unseen: ``(u, ...)`` unseen points.
        layer: Index among the activations in order of execution, -1 the last hidden one.

    Returns:
        As for the plain count, of the reduced network.

    Raises:
        MeasureError: If the network cannot be reduced, or the layer not counted.
        DataError: If the inputs are empty or not finite.

    Example:
        Two unseen points show signs that no training point shows.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> x = torch.eye(2).double()
        >>> unseen = torch.tensor([[1.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]).double()
        >>> inv.weakness.repaired_free_regions(model, x, unseen).value
        2.0
    """
    return free_regions(reduced_network(model, x_train), x_train, x_unseen, layer)
