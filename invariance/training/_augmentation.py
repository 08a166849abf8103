"""Random changes of training images, drawn per network, epoch and point.

What happens to point i of a network in epoch e depends on the network's seed, e and i alone:
not on the batch, its order, or the ensemble. The labels stay, and so do the points that
train loss and accuracy are looked at on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from invariance.core._errors import UsageError
from invariance.core._rng import generator

#: Shifts go up to a side of the image divided by this: 2 pixels of 28 or 32.
SIDES_A_SHIFT = 14

#: Rotations go up to this many degrees, to either side.
DEGREES = 15.0


def image_shape(n_features: int) -> tuple[int, int]:
    """Return channels and side of the square images that flat rows stand for.

    Shapes: returns ``(1, side)``.
    """
    for channels in (1, 3):
        side = math.isqrt(n_features // channels)
        if channels * side * side == n_features and side > 1:
            return channels, side
    raise UsageError(
        f"augmentation needs square images of 1 or 3 channels as flat rows. Got rows of "
        f"{n_features} features; leave augmentation out."
    )


@dataclass(frozen=True)
class View:
    """The changes of one epoch.

    Attributes:
        kinds: Which changes are made.
        shape: Channels and side of an image.
        reach: Largest shift.
        choice: ``(networks, n)`` rows of ``table``: shift and flip of every point.
        cosine: ``(networks, n)`` cosines of the angles.
        sine: ``(networks, n)`` their sines.
        table: For every shift and flip, the pixel that each pixel is taken from; the
            number of pixels stands for a zero from outside the image.
    """

    kinds: tuple[str, ...]
    shape: tuple[int, int]
    reach: int
    choice: Tensor
    cosine: Tensor
    sine: Tensor
    table: Tensor

    def of(self, slot: int) -> View:
        """Return the changes of one network, as an ensemble of one."""
        one = slice(slot, slot + 1)
        return replace(self, choice=self.choice[one], cosine=self.cosine[one], sine=self.sine[one])

    def apply(self, images: Tensor, index: Tensor | slice) -> Tensor:
        """Change a batch of every network.

        Shapes: ``images (networks, rows, features)``, ``index (networks, rows)``.
        """
        count, rows, features = images.shape
        channels, side = self.shape
        flat = images.reshape(count * rows, channels, side * side)
        choice = _pick(self.choice, index).reshape(-1)
        if "rotate" in self.kinds:
            cosine, sine = (_pick(entry, index).reshape(-1) for entry in (self.cosine, self.sine))
            width = 2 * self.reach + 1
            down, right = (
                entry.to(images.dtype) - self.reach
                for entry in (choice // 2 // width, choice // 2 % width)
            )
            square = flat.view(-1, channels, side, side)
            flat = _turn(square, cosine, sine, down, right, choice % 2 == 1).flatten(2)
        else:
            source = self.table[choice]
            flat = F.pad(flat, (0, 1)).gather(2, source[:, None, :].expand(-1, channels, -1))
        return flat.reshape(count, rows, features)


class Augmentation:
    """Draws the changes of each epoch."""

    def __init__(
        self, kinds: Sequence[str], n_features: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._kinds = tuple(kinds)
        self._shape = image_shape(n_features)
        self._device, self._dtype = device, dtype
        self._reach = max(1, round(self._shape[1] / SIDES_A_SHIFT))
        self._table = _table(self._shape[1], self._reach).to(device)

    def draw(self, seeds: Sequence[int], epoch: int, n: int) -> View:
        """Draw one epoch's changes of ``n`` points for the networks with these seeds."""
        drawn = [self._draw_one(seed, epoch, n) for seed in seeds]
        choice, cosine, sine = (torch.stack(entries) for entries in zip(*drawn, strict=True))
        return View(
            self._kinds,
            self._shape,
            self._reach,
            choice.to(self._device),
            cosine.to(self._device, self._dtype),
            sine.to(self._device, self._dtype),
            self._table,
        )

    def _draw_one(self, seed: int, epoch: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw on the CPU, one network at a time, and every kind: kinds share their draws."""
        draw = generator(seed, "augmentation", epoch)
        width = 2 * self._reach + 1
        down, right = torch.randint(width, (2, n), generator=draw)
        flip = torch.randint(2, (n,), generator=draw)
        angle = (2 * torch.rand(n, generator=draw, dtype=torch.float64) - 1) * math.radians(DEGREES)
        if "shift" not in self._kinds:
            down = right = torch.full((n,), self._reach)
        if "flip" not in self._kinds:
            flip = torch.zeros(n, dtype=torch.int64)
        return (down * width + right) * 2 + flip, angle.cos(), angle.sin()


def _pick(drawn: Tensor, index: Tensor | slice) -> Tensor:
    return drawn[:, index] if isinstance(index, slice) else drawn.gather(1, index)


def _table(side: int, reach: int) -> Tensor:
    """Return ``(shifts * 2, pixels)`` sources: down, then right, then flipped or not."""
    at = torch.arange(side)
    rows = []
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            for flip in (False, True):
                y = (at - down)[:, None].expand(side, side)
                x = ((side - 1 - at) if flip else at) - right
                x = x[None, :].expand(side, side)
                inside = (y >= 0) & (y < side) & (x >= 0) & (x < side)
                rows.append(torch.where(inside, y * side + x, side * side).flatten())
    return torch.stack(rows)


def _turn(
    images: Tensor, cosine: Tensor, sine: Tensor, down: Tensor, right: Tensor, flip: Tensor
) -> Tensor:
    """Rotate images about their centre, then shift, then flip them: one bilinear resampling.

    The grid is made entry by entry: a matrix product might round by batch size.

    Shapes: ``images (images, channels, side, side)``, ``cosine (images,)``, ``sine (images,)``,
    ``down (images,)``, ``right (images,)``, ``flip (images,)``.
    """
    side = images.shape[-1]
    at = (torch.arange(side, device=images.device, dtype=images.dtype) * 2 + 1) / side - 1
    mirror = torch.where(flip, -1.0, 1.0).to(images.dtype)[:, None, None]
    y = at[None, :, None] - 2 / side * down[:, None, None]
    x = mirror * at[None, None, :] - 2 / side * right[:, None, None]
    c, s = cosine[:, None, None], sine[:, None, None]
    grid = torch.stack((c * x - s * y, s * x + c * y), dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
