"""Free regions: linear pieces that unseen data visits and no training point pins down."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.core._forward import reading, run
from invariance.core._modules import model_device
from invariance.weakness.patterns._patterns import as_rows, hidden_patterns


@dataclass(frozen=True)
class RegionCounts:
    """How training and unseen points spread over the linear regions of one layer.

    Attributes:
        train: Number of training points in each region that holds any, largest first.
        free: Number of regions that hold unseen points and no training point.
        shared: Number of regions that hold both.
        free_points: Number of unseen points that lie in free regions.
        units: Width of the layer.
        near_boundary: Bits that round-off could flip (see
            :class:`~invariance.weakness.patterns._patterns.Patterns`).
    """

    train: tuple[int, ...]
    free: int
    shared: int
    free_points: int
    units: int
    near_boundary: int


def region_counts(
    model: nn.Module,
    x_train: Tensor,
    x_unseen: Tensor | None = None,
    *,
    layer: int = -1,
    batch_size: int | None = None,
) -> RegionCounts:
    """Sort training and unseen points into the activation regions of one layer.

    Args:
        model: A module in eval mode with a piecewise-linear hidden layer.
        x_train: ``(n, ...)`` training points.
        x_unseen: ``(u, ...)`` unseen points; ``None`` for none.
        layer: Index among the activations in order of execution, -1 the last hidden one.
        batch_size: Rows a forward pass; chosen from a memory budget when omitted.

    Returns:
        The counts, exact.

    Raises:
        MeasureError: If the layer does not exist or is not piecewise linear.
        DataError: If the inputs are empty or not finite.

    Example:
        Two unseen points show signs that no training point shows.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> x = torch.eye(2).double()
        >>> unseen = torch.tensor([[1.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]).double()
        >>> found = inv.weakness.region_counts(model, x, unseen)
        >>> found.train, found.free, found.shared
        ((1, 1), 2, 1)
    """
    seen = hidden_patterns(model, x_train, layer=layer, batch_size=batch_size, name="x_train")
    train = Counter(seen.keys)
    unseen: Counter[bytes] = Counter()
    near = seen.near_boundary
    if x_unseen is not None:
        found = hidden_patterns(
            model, x_unseen, layer=layer, batch_size=batch_size, name="x_unseen"
        )
        unseen.update(found.keys)
        near += found.near_boundary
    free = {key: count for key, count in unseen.items() if key not in train}
    return RegionCounts(
        train=tuple(sorted(train.values(), reverse=True)),
        free=len(free),
        shared=len(unseen) - len(free),
        free_points=sum(free.values()),
        units=seen.layer.units,
        near_boundary=near,
    )


def free_regions(model: nn.Module, x_train: Tensor, x_unseen: Tensor, layer: int = -1) -> Estimate:
    """Count the regions of the last hidden layer that hold unseen but no training points.

    Inside such a region training says nothing about the classifier, which is why the
    source counts every class, or silence, as open there. Source: Bennett, arXiv
    2605.05209 ("free regions").

    Args:
        model: A module in eval mode with a piecewise-linear hidden layer.
        x_train: ``(n, ...)`` training points.
        x_unseen: ``(u, ...)`` unseen points.
        layer: Index among the activations in order of execution, -1 the last hidden one.

    Returns:
        The count. ``detail`` holds ``train_regions``, ``shared_regions``,
        ``free_points`` (unseen points in free regions) and ``near_boundary``.

    Raises:
        MeasureError: If the layer does not exist or is not piecewise linear.
        DataError: If the inputs are empty or not finite.

    Example:
        Two unseen points show signs that no training point shows.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> x = torch.eye(2).double()
        >>> unseen = torch.tensor([[1.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]).double()
        >>> inv.weakness.free_regions(model, x, unseen).value
        2.0
    """
    found = region_counts(model, x_train, x_unseen, layer=layer)
    return Estimate(
        found.free,
        method="activation patterns of unseen points that no training point has",
        detail={
            "train_regions": len(found.train),
            "shared_regions": found.shared,
            "free_points": found.free_points,
            "near_boundary": found.near_boundary,
        },
    )


def output_classes(model: nn.Module, x: Tensor) -> int:
    """Return the number of classes K: the width of the model's ``(n, K)`` output."""
    with torch.no_grad(), reading(model, x):
        out = run(model, as_rows(model, x[:1], "x").to(model_device(model)))
    if not isinstance(out, Tensor) or out.ndim != 2 or out.shape[1] < 2:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise MeasureError(f"The model must return (n, K) logits with K >= 2. Got {got}.")
    return int(out.shape[1])


def region_class_weakness(
    model: nn.Module, x_train: Tensor, x_unseen: Tensor, layer: int = -1
) -> Estimate:
    """Log of the number of ways to give each free region one of K classes or none.

    That is ``k log(K + 1)`` for k free regions: ``log 11^k`` with ten classes. Source:
    Bennett, arXiv 2605.05209 ("region-class weakness").

    Args:
        model: A module in eval mode that returns ``(n, K)`` logits.
        x_train: ``(n, ...)`` training points.
        x_unseen: ``(u, ...)`` unseen points.
        layer: Index among the activations in order of execution, -1 the last hidden one.

    Returns:
        The natural logarithm; ``detail`` holds ``free_regions`` and ``classes``.

    Raises:
        MeasureError: If the layer or the output is not as described.
        DataError: If the inputs are empty or not finite.

    Example:
        Two free regions, two classes: ``2 log 3``.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> x = torch.eye(2).double()
        >>> unseen = torch.tensor([[1.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]).double()
        >>> round(inv.weakness.region_class_weakness(model, x, unseen).value, 9)
        2.197224577
    """
    regions = region_counts(model, x_train, x_unseen, layer=layer)
    classes = output_classes(model, x_train)
    return Estimate(
        regions.free * math.log(classes + 1),
        method=f"free regions times log({classes} + 1)",
        detail={
            "free_regions": regions.free,
            "classes": classes,
            "near_boundary": regions.near_boundary,
        },
    )


def free_parameters(
    model: nn.Module, x_train: Tensor, x_unseen: Tensor, layer: int = -1
) -> Estimate:
    """Sum over regions of the classifier's parameters that training points leave open.

    Each region r that holds any point contributes ``max(0, d K + K - n_r)``: the affine
    classifier on d features has ``d K + K`` parameters and each of the ``n_r`` training
    points in r pins one. A free region has ``n_r = 0`` and contributes them all. Source:
    Bennett, arXiv 2605.05209 ("free parameters").

    The width d is the layer's number of units, so the value grows when a unit is split:
    it follows the exact law of replacing d, and is not invariant under width changes.

    Args:
        model: A module in eval mode that returns ``(n, K)`` logits.
        x_train: ``(n, ...)`` training points.
        x_unseen: ``(u, ...)`` unseen points; their free regions join the sum.
        layer: Index among the activations in order of execution, -1 the last hidden one.

    Returns:
        The sum. ``detail`` holds ``train_counts`` (n_r, largest first), ``free_regions``,
        ``classes`` and ``units``; ``parts`` splits the sum by kind of region.

    Raises:
        MeasureError: If the layer or the output is not as described.
        DataError: If the inputs are empty or not finite.

    Example:
        Two regions hold one training point each, ``2 * 2 + 2 - 1`` free; two hold none, ``6`` free.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> x = torch.eye(2).double()
        >>> unseen = torch.tensor([[1.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]).double()
        >>> inv.weakness.free_parameters(model, x, unseen).value
        22.0
    """
    regions = region_counts(model, x_train, x_unseen, layer=layer)
    classes = output_classes(model, x_train)
    train, free = free_parameter_parts(regions.train, regions.free, regions.units, classes)
    return Estimate(
        train + free,
        method="sum over regions of max(0, d K + K - n_r)",
        parts={"regions with training points": train, "free regions": free},
        detail={
            "train_counts": regions.train,
            "free_regions": regions.free,
            "classes": classes,
            "units": regions.units,
            "near_boundary": regions.near_boundary,
        },
    )


def free_parameter_parts(
    train_counts: tuple[int, ...], free: int, units: int, classes: int
) -> tuple[int, int]:
    """The two terms of :func:`free_parameters`: regions with training points, and without."""
    size = units * classes + classes
    return sum(max(0, size - count) for count in train_counts), free * size
