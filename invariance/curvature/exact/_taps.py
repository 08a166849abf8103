"""Taps on a network's layers: what one backward pass tells about each layer's block.

A weight layer, linear or convolutional, maps its input's patches ``U`` (``(n, g, D, P)``: g
groups, D entries a patch, P positions; P = 1 for a linear layer on rows) by ``W_g U``. For a
cotangent ``Z`` of its output (``(n, g, O, P)``) the gradient of one row is ``G = Z U^T``, and

    trace             |G|^2 = <Z^T Z, U^T U>,
    diagonal          G^2 entry by entry,
    relative flatness |W^T G|^2 = <(B^T Z)^T (B^T Z), U^T U> with B B^T = W W^T,

summed over rows, groups and cotangents. The Gram form (P x P) is cheaper when there are
fewer positions than entries in a patch: in late convolutions, and in every linear layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invariance.core._modules import BATCH_NORMS, WEIGHT_LAYERS, has_global_hooks
from invariance.core._perceptron import qualified
from invariance.curvature._batches import Sums
from invariance.curvature.exact._collector import Collector
from invariance.curvature.exact._result import Wants


def patches(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return the patches that a weight layer multiplies.

    Shapes: ``inputs (n, ..., D)``; returns ``(n, g, D, P)``.
    """
    if isinstance(module, nn.Linear):
        return inputs.reshape(inputs.shape[0], 1, -1, inputs.shape[-1]).mT
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise TypeError(f"not a weight layer: {type(module).__name__}")
    dims = len(module.kernel_size)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(inputs, _pad_amounts(module), mode=mode)
    windows = padded
    for axis, (size, step, gap) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True)
    ):
        windows = windows.unfold(2 + axis, (size - 1) * gap + 1, step)[..., ::gap]
    # (n, C, *positions, *kernel) -> (n, g, C/g * kernel, positions)
    n, channels = windows.shape[:2]
    order = (0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    groups = module.groups
    kernel = (channels // groups) * int(torch.Size(module.kernel_size).numel())
    return windows.permute(order).reshape(n, groups, kernel, -1)


def _pad_amounts(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[int]:
    """Return the amounts for ``F.pad``, last dimension first."""
    amounts: list[int] = []
    padding = module.padding
    for axis in reversed(range(len(module.kernel_size))):
        if padding == "same":
            total = module.dilation[axis] * (module.kernel_size[axis] - 1)
            amounts += [total // 2, total - total // 2]
        elif isinstance(padding, str):  # "valid"
            amounts += [0, 0]
        else:
            amounts += [padding[axis], padding[axis]]
    return amounts


class Tap(ABC):
    """Makes one layer's values from the cotangents of its output."""

    def __init__(self, name: str, module: nn.Module, wants: Wants) -> None:
        self.name = name
        self.module = module
        self.wants = wants

    @abstractmethod
    def observe(self, cotangent: Tensor, signs: Tensor | None, into: Collector) -> None:
        """Collect the share of one cotangent of the layer's output.

        Shapes: ``signs (n,)``.
        """

    def finish(self, into: Collector, sums: Sums) -> None:  # noqa: B027 - most have nothing left
        """Hand over what is better done once than for every cotangent."""


class WeightTap(Tap):
    """A linear or convolutional layer."""

    def __init__(self, name: str, module: nn.Module, inputs: Tensor, wants: Wants) -> None:
        super().__init__(name, module, wants)
        self.patches = patches(module, inputs)
        _, groups, depth, positions = self.patches.shape
        self.groups = groups
        self.gram = None
        if positions <= depth:
            self.gram = self.patches.mT @ self.patches
        #: With one position an entry's square is a square of the output's times one of the input's.
        self._multiplies = positions == 1 and self.gram is not None
        self.narrow = None
        if wants.relative_flatness:
            weight = module.get_parameter("weight").detach()
            rows = weight.reshape(groups, -1, depth)
            wide = rows.shape[1] > depth
            self.narrow = rows if wide else torch.linalg.qr(rows.mT, mode="r").R.mT

    def observe(self, cotangent: Tensor, signs: Tensor | None, into: Collector) -> None:
        """Collect the share of one cotangent: see the module's docstring."""
        n, positions = cotangent.shape[0], self.patches.shape[-1]
        if isinstance(self.module, nn.Linear):
            z = cotangent.reshape(n, 1, positions, -1).mT
        else:
            z = cotangent.reshape(n, self.groups, -1, positions)
        weight = qualified(self.name, "weight")
        scale = into.scale(weight)
        entries = self.wants.diagonal or scale is not None
        gradient = None
        if self.gram is None or (entries and not self._multiplies):
            gradient = z @ self.patches.mT
        if entries and gradient is not None:
            into.add_entries(weight, gradient.square(), signs)
        elif entries:
            self._add_products(weight, z.square()[..., 0], scale, signs, into)
        into.add("trace", weight, self._energy(z, gradient), signs)
        if self.narrow is not None:
            carried = None if gradient is None else self.narrow.mT @ gradient
            energy = self._energy(self.narrow.mT @ z, carried)
            into.add("kappa", self.name, energy, signs)
        if getattr(self.module, "bias", None) is not None:
            bias = qualified(self.name, "bias")
            squares = z.sum(-1).flatten(1).square()
            into.add("trace", bias, squares.sum(1), signs)
            into.add_entries(bias, squares, signs)

    def _add_products(
        self,
        name: str,
        squares: Tensor,
        scale: Tensor | None,
        signs: Tensor | None,
        into: Collector,
    ) -> None:
        """Add entries whose squares are products of the output's and the input's.

        Shapes: ``squares (n, g, O)``.
        """
        if self.wants.diagonal:
            into.add_squares(name, squares, signs, by_row=True)
        if scale is not None:
            weights = scale.to(squares).square().view(self.groups, squares.shape[-1], -1)
            carried = torch.einsum("ngo,god->ngd", squares, weights)
            features = self.patches.square()[..., 0]
            into.add("scaled", name, (carried * features).flatten(1).sum(1), signs)

    def finish(self, into: Collector, sums: Sums) -> None:
        """Multiply the squares of output and input, where the diagonal is made of them."""
        weight = qualified(self.name, "weight")
        found = into.taken_squares(weight) if self._multiplies else None
        if found is None:
            return
        rows, spread = found
        features = self.patches.square()[..., 0].transpose(0, 1)  # (g, n, D)
        shape = self.module.get_parameter("weight").shape
        more = None
        if spread is not None:
            more = (spread.permute(1, 2, 0) @ features.square()).reshape(shape)
        sums.add_diagonal(weight, (rows.permute(1, 2, 0) @ features).reshape(shape), more)

    def _energy(self, z: Tensor, gradient: Tensor | None) -> Tensor:
        """Return the squared norm of each row's gradient, ``(n,)``."""
        if self.gram is None:
            if gradient is None:
                raise AssertionError("the gradient is formed when the Gram matrix is not")
            norm: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
            return norm.square()
        return ((z.mT @ z) * self.gram).flatten(1).sum(1)


class NormTap(Tap):
    """An eval-mode BatchNorm: linear in its gain and in its shift."""

    def __init__(self, name: str, module: nn.Module, inputs: Tensor, wants: Wants) -> None:
        super().__init__(name, module, wants)
        shape = (1, -1) + (1,) * (inputs.ndim - 2)
        mean = module.get_buffer("running_mean").view(shape)
        variance = module.get_buffer("running_var").view(shape)
        self.normalised = (inputs - mean) * (variance + float(module.eps)).rsqrt()  # type: ignore[arg-type]

    def observe(self, cotangent: Tensor, signs: Tensor | None, into: Collector) -> None:
        """Collect the share of one cotangent: every channel's gain and shift."""
        for leaf, rows in (("weight", cotangent * self.normalised), ("bias", cotangent)):
            name = qualified(self.name, leaf)
            squares = rows.flatten(2).sum(2).square() if rows.ndim > 2 else rows.square()
            into.add("trace", name, squares.sum(1), signs)
            into.add_entries(name, squares, signs)


class LayerNormTap(Tap):
    """A LayerNorm: linear in its gain and in its shift, which all positions share."""

    def __init__(self, name: str, module: nn.LayerNorm, inputs: Tensor, wants: Wants) -> None:
        super().__init__(name, module, wants)
        self.shape = module.normalized_shape
        self.normalised = F.layer_norm(inputs, self.shape, eps=module.eps)

    def observe(self, cotangent: Tensor, signs: Tensor | None, into: Collector) -> None:
        """Collect the share of one cotangent: every feature's gain and shift."""
        leaves = [("weight", cotangent * self.normalised)]
        if self.module.bias is not None:
            leaves.append(("bias", cotangent))
        for leaf, rows in leaves:
            name = qualified(self.name, leaf)
            squares = rows.reshape(rows.shape[0], -1, *self.shape).sum(1).square().flatten(1)
            into.add("trace", name, squares.sum(1), signs)
            into.add_entries(name, squares, signs)


def tappable(module: nn.Module) -> bool:
    """Whether a module's parameters have a tap (exact types: a subclass may compute else).

    A hook of its own is no obstacle: the tap reads what goes into it.
    """
    if "forward" in vars(module) or has_global_hooks():
        return False
    if type(module) in BATCH_NORMS:
        return getattr(module, "weight", None) is not None
    if type(module) is nn.LayerNorm:
        return module.elementwise_affine
    return type(module) in WEIGHT_LAYERS


def make_tap(name: str, module: nn.Module, inputs: Tensor, wants: Wants) -> Tap:
    """Tap a module that is :func:`tappable`, given the input of its one call."""
    if isinstance(module, nn.LayerNorm):
        return LayerNormTap(name, module, inputs.detach(), wants)
    kind = WeightTap if type(module) in WEIGHT_LAYERS else NormTap
    return kind(name, module, inputs.detach(), wants)


def tap_bytes(taps: Sequence[Tap]) -> int:
    """Return the bytes that the taps of one row hold, and the largest scratch of one."""
    held, scratch = 0, 0
    for tap in taps:
        if isinstance(tap, WeightTap):
            held += tap.patches.nbytes + (0 if tap.gram is None else tap.gram.nbytes)
            weight = tap.module.get_parameter("weight")
            entries = tap.wants.diagonal or tap.wants.scales is not None
            gradient = weight.nbytes if tap.gram is None or entries else 0
            scratch = max(scratch, 3 * gradient, 0 if tap.gram is None else 3 * tap.gram.nbytes)
        elif isinstance(tap, NormTap | LayerNormTap):
            held += tap.normalised.nbytes
    return held + scratch
