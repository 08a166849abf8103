"""Activation patterns: which linear pieces of a network a set of points visits.

A pattern is one bit a unit, ``pre-activation > 0``, packed eight to a byte. Patterns
are compared byte by byte, never by a hash alone, so counts are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from invariance.core._errors import DataError, MeasureError
from invariance.core._estimate import Estimate
from invariance.core._forward import reading, run
from invariance.core._modules import model_device, model_dtype
from invariance.weakness.patterns._activation_layers import (
    ActivationLayer,
    activation_layers,
    pick_layer,
    require_eval,
    watching,
)

#: Bytes that the largest intermediate tensor of one batch may take.
MEMORY_BUDGET = 64 * 2**20
_PROBE_ROWS = 2


class _Enough(Exception):  # noqa: N818 - control flow, not an error
    """Ends a forward pass as soon as the wanted layer has been read."""


@dataclass(frozen=True, eq=False)
class Patterns:
    """The activation patterns of one layer over a set of points.

    Attributes:
        packed: ``(n, ceil(units / 8))`` uint8, the bits ``pre-activation > 0``, packed
            in C order of (channels, positions), high bit first.
        layer: Which layer they belong to.
        near_boundary: How many bits (over all points) are decided by a pre-activation
            within 16 ulp of zero, measured on the scale of the layer's largest one; such
            a bit can flip when round-off changes. Exact zeros are not among them.
    """

    packed: npt.NDArray[np.uint8]
    layer: ActivationLayer
    near_boundary: int = 0
    _keys: list[bytes] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return int(self.packed.shape[0])

    @property
    def keys(self) -> list[bytes]:
        """One bytes object a point; two points share a pattern exactly if these are equal."""
        if not self._keys and len(self):
            rows = np.ascontiguousarray(self.packed)
            # A void view keeps every byte of a row; an 'S' view would drop trailing zeros.
            self._keys.extend(rows.view(f"V{rows.shape[1]}").ravel().tolist())
        return self._keys

    def bits(self) -> npt.NDArray[np.bool_]:
        """Return the patterns unpacked, ``(n, units)``."""
        return np.unpackbits(self.packed, axis=1, count=self.layer.units).astype(np.bool_)

    def distinct(self) -> set[bytes]:
        """Return the set of distinct patterns."""
        return set(self.keys)


def as_rows(model: nn.Module, x: Tensor, name: str) -> Tensor:
    """Check a batch of inputs and give it the model's floating dtype.

    Shapes: ``x (n, ...)``.
    """
    if not isinstance(x, Tensor) or x.ndim < 1 or x.shape[0] == 0:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise DataError(f"{name} must be a tensor with at least one row. Got {got}.")
    if x.is_floating_point():
        # The extremes of a tensor with a NaN are NaN: one pass, and no mask to store.
        if x.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(x))).all()):
            raise DataError(f"{name} holds NaN or infinite entries. Clean the data first.")
        return x.to(model_dtype(model))
    return x


def _pack(bits: Tensor) -> npt.NDArray[np.uint8]:
    """Pack ``(n, units)`` booleans into ``(n, ceil(units / 8))`` bytes, high bit first."""
    if bits.device.type == "cpu":
        return np.packbits(bits.numpy(), axis=1)
    # On a device, pack before the transfer: an eighth of the bytes.
    packed: npt.NDArray[np.uint8] = _pack_on_device(bits).cpu().numpy()
    return packed


def _pack_on_device(bits: Tensor) -> Tensor:
    bits = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 8))
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=bits.device)
    octets = bits.to(torch.uint8).reshape(bits.shape[0], -1, 8)
    return (octets * weights).sum(dim=2, dtype=torch.uint8)


def _batch_rows(model: nn.Module, x: Tensor, budget: int, name: str) -> int:
    """How many rows fit the budget, from the largest tensor of a forward pass on a few."""
    few = x[:_PROBE_ROWS].to(model_device(model))
    with watching(lambda *_: None) as watch, reading(model, few, name):
        run(model, few)
    per_row = max(watch.largest // few.shape[0], few[0].numel() * few.element_size(), 1)
    return max(1, min(x.shape[0], budget // per_row))


def hidden_patterns(
    model: nn.Module,
    x: Tensor,
    *,
    layer: int = -1,
    batch_size: int | None = None,
    memory_budget: int = MEMORY_BUDGET,
    name: str = "x",
) -> Patterns:
    """Read the activation pattern of every row of ``x`` at one hidden layer.

    Args:
        model: A module in eval mode; it is not modified.
        x: ``(n, ...)`` inputs.
        layer: Index among the activations in order of execution (see
            :func:`activation_layers`); -1 is the last hidden layer.
        batch_size: Rows a forward pass; chosen from ``memory_budget`` when omitted.
        memory_budget: Bytes that the largest tensor of a batch may take.
        name: What ``x`` is called, for messages.

    Returns:
        The packed patterns. A convolutional layer's pattern covers all positions.

    Raises:
        MeasureError: If the layer does not exist, is not piecewise linear with its kink
            at zero, has non-finite pre-activations, or does not keep rows first.
        DataError: If ``x`` is empty or not finite.

    Example:
        One row of bits a point, eight to a byte.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> unseen = torch.tensor([[1.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]).double()
        >>> inv.weakness.hidden_patterns(model, unseen).packed.tolist()  # 11, 10 and 00
        [[192], [128], [0]]
    """
    rows = as_rows(model, x, name)
    device = model_device(model)
    require_eval(model)
    with reading(model, rows, name):
        seen = activation_layers(model, rows[:_PROBE_ROWS].to(device))
    chosen = pick_layer(seen, layer)
    if batch_size is None:
        batch_size = _batch_rows(model, rows, memory_budget, name)
    elif batch_size < 1:
        raise MeasureError(f"batch_size must be at least 1. Got {batch_size}.")

    packed = np.empty((rows.shape[0], -(-chosen.units // 8)), dtype=np.uint8)
    near = 0
    captured: list[Tensor] = []

    def capture(index: int, _kind: str, _refused: str, source: Tensor) -> None:
        if index == chosen.index:
            captured.append(source)
            raise _Enough

    for start in range(0, rows.shape[0], batch_size):
        batch = rows[start : start + batch_size].to(device)
        captured.clear()
        try:
            with watching(capture), reading(model, batch, name):
                run(model, batch)
        except _Enough:
            pass
        if not captured or captured[0].shape != (batch.shape[0], *chosen.shape):
            got = tuple(captured[0].shape) if captured else "nothing"
            raise MeasureError(
                f"Activation layer {chosen} should have shape {(batch.shape[0], *chosen.shape)} "
                f"on {batch.shape[0]} rows but has {got}: the forward pass must keep rows in "
                "dimension 0 and run the same activations for every batch."
            )
        flat = captured[0].reshape(batch.shape[0], -1)
        size = flat.abs()
        scale = size.max()
        if not bool(torch.isfinite(scale)):
            raise MeasureError(
                f"Activation layer {chosen} has NaN or infinite pre-activations on rows "
                f"{start} to {start + batch.shape[0] - 1} of {name}."
            )
        band = 16 * torch.finfo(flat.dtype).eps * scale
        near += int(((size <= band) & (size > 0)).sum())
        packed[start : start + batch.shape[0]] = _pack(flat > 0)
    return Patterns(packed, chosen, near)


def activation_patterns(
    model: nn.Module,
    x: Tensor,
    layer: int = -1,
    *,
    batch_size: int | None = None,
) -> Estimate:
    """Count the distinct activation patterns of a hidden layer over ``x``.

    The pattern of a point is the bit vector ``pre-activation > 0`` of the layer's units
    (of all positions for a convolution). More patterns mean that the points are spread
    over more linear regions. Source: Bennett, arXiv 2605.05209 ("L1/L2 patterns").

    Args:
        model: A module in eval mode with a piecewise-linear hidden layer.
        x: ``(n, ...)`` inputs; the unseen points in the source.
        layer: Index among the activations in order of execution, -1 the last hidden one.
        batch_size: Rows a forward pass; chosen from a memory budget when omitted.

    Returns:
        The count. ``detail`` holds the layer's ``kind`` and ``units``, the ``points``,
        and ``near_boundary``, the number of bits that round-off could flip.

    Raises:
        MeasureError: If the layer does not exist or is not piecewise linear.
        DataError: If ``x`` is empty or not finite.

    Example:
        Two ReLU units on the plane show the signs (+, +), (+, -) and (-, -).

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> unseen = torch.tensor([[1.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]).double()
        >>> inv.weakness.activation_patterns(model, unseen).value
        3.0
    """
    found = hidden_patterns(model, x, layer=layer, batch_size=batch_size)
    return Estimate(
        len(found.distinct()),
        method=f"distinct sign patterns of activation layer {found.layer}",
        detail={
            "points": len(found),
            "units": found.layer.units,
            "kind": found.layer.kind,
            "near_boundary": found.near_boundary,
        },
    )


def activation_patterns_ensemble(
    models: Sequence[nn.Module],
    x: Tensor,
    layer: int = -1,
    *,
    batch_size: int | None = None,
) -> Estimate:
    """Count the distinct activation patterns of each of several networks over ``x``.

    Args:
        models: The networks; they need not share an architecture.
        x: ``(n, ...)`` inputs.
        layer: As for :func:`activation_patterns`.
        batch_size: As for :func:`activation_patterns`.

    Returns:
        A vector estimate, one count a network.

    Raises:
        MeasureError: If ``models`` is empty, or a network is refused (it is named).
        DataError: If ``x`` is empty or not finite.

    Example:
        Two ReLU units on the plane show the signs (+, +), (+, -) and (-, -).

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> unseen = torch.tensor([[1.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]).double()
        >>> inv.weakness.activation_patterns_ensemble([model, model], unseen).value.tolist()
        [3.0, 3.0]
    """
    if not models:
        raise MeasureError("models is empty. Give at least one network.")
    counts, near = [], []
    for place, model in enumerate(models):
        try:
            one = activation_patterns(model, x, layer, batch_size=batch_size)
        except MeasureError as error:
            raise MeasureError(f"Network {place}: {error}") from error
        counts.append(float(one))
        near.append(one.detail["near_boundary"])
    return Estimate(
        np.array(counts),
        method=f"distinct sign patterns of activation layer {layer}, one count a network",
        detail={"points": int(x.shape[0]), "near_boundary": near},
    )
