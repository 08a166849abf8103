"""A small set of seeded image corruptions at five strengths, on NumPy and SciPy.

In the spirit of Hendrycks & Dietterich (2019), "Benchmarking neural network robustness to
common corruptions and perturbations", at sizes that make sense for small images: lengths are
shares of the image's side, so that 8 x 8 and 32 x 32 images are hurt alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage, sparse
from torch import Tensor

from invariance.core._errors import DataError, UsageError, unknown_name
from invariance.core._rng import generator

#: Strengths, from slight to severe.
STRENGTHS = (1, 2, 3, 4, 5)

#: Standard deviation of the noise, pixels being in [0, 1].
NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)

#: Standard deviation of the Gaussian blur, as a share of the side.
BLUR = (0.015, 0.025, 0.035, 0.05, 0.07)

#: What is left of the contrast.
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)

#: Angle in degrees, clockwise or counterclockwise by chance.
ROTATION = (10.0, 20.0, 30.0, 40.0, 50.0)

#: Side of the black square, as a share of the image's.
OCCLUSION = (0.2, 0.3, 0.4, 0.5, 0.6)

Array = npt.NDArray[np.float64]


def corrupt(x: Tensor, kind: str, strength: int, seed: int = 0) -> Tensor:
    """Corrupt square images.

    The draws depend on the seed, the kind and the row's place alone: all networks see the same
    corrupted images, and a stronger corruption of an image is more of the same.

    Args:
        x: ``(n, d)`` flat images with values in [0, 1], of one channel (d = s * s) or three
            (d = 3 * s * s, channel by channel), or ``(n, c, s, s)``. Left as it is.
        kind: ``"noise"``, ``"blur"``, ``"contrast"``, ``"rotation"`` or ``"occlusion"``.
        strength: 1 to 5.
        seed: Seed of the draws.

    Returns:
        Images of the same shape and dtype, in [0, 1].

    Raises:
        UsageError: For an unknown kind or strength.
        DataError: If the rows are no square images in [0, 1].

    Example:
        Contrast draws every pixel towards the image's mean; a constant image stays:

        >>> import torch
        >>> grey = torch.full((1, 9), 0.5)
        >>> torch.equal(corrupt(grey, "contrast", 3), grey)
        True
    """
    if kind not in CORRUPTIONS:
        raise unknown_name("corruption", kind, CORRUPTIONS)
    if strength not in STRENGTHS or isinstance(strength, bool):
        raise UsageError(f"strength must be one of {STRENGTHS}. Got {strength!r}.")
    images = _as_images(x)
    draws = generator(seed, "corruption", kind)
    made = CORRUPTIONS[kind](images, strength - 1, draws)
    return torch.from_numpy(np.clip(made, 0.0, 1.0)).to(x).view(x.shape)


def _noise(images: Array, level: int, draws: torch.Generator) -> Array:
    """Add Gaussian noise to every value."""
    noise = torch.randn(images.shape, generator=draws, dtype=torch.float64).numpy()
    return np.asarray(images + NOISE[level] * noise)


def _blur(images: Array, level: int, draws: torch.Generator) -> Array:
    """Smooth with a Gaussian; edges repeat."""
    width = BLUR[level] * images.shape[-1]
    return ndimage.gaussian_filter(images, (0.0, 0.0, width, width), mode="nearest")


def _contrast(images: Array, level: int, draws: torch.Generator) -> Array:
    """Draw every value towards its image's mean."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    return np.asarray(mean + CONTRAST[level] * (images - mean))


def _rotation(images: Array, level: int, draws: torch.Generator) -> Array:
    """Rotate about the centre, bilinear, black outside: one sparse matrix for each side."""
    clockwise = (torch.rand(len(images), generator=draws) < 0.5).numpy()
    channels, side = images.shape[1:3]
    result = np.empty_like(images)
    for chosen, sign in ((clockwise, -1.0), (~clockwise, 1.0)):
        matrix = rotation_matrix(side, math.radians(sign * ROTATION[level]))
        flat = images[chosen].reshape(-1, side * side)
        result[chosen] = (matrix @ flat.T).T.reshape(-1, channels, side, side)
    return result


def _occlusion(images: Array, level: int, draws: torch.Generator) -> Array:
    """Blacken a square that lies within the image at random."""
    n, _, side, _ = images.shape
    size = max(1, round(OCCLUSION[level] * side))
    corner = torch.rand((n, 2), generator=draws, dtype=torch.float64).numpy()
    first = np.floor(corner * (side - size + 1)).astype(np.int64)  # (n, 2)
    place = np.arange(side)
    inside = (place >= first[:, :, None]) & (place < first[:, :, None] + size)  # (n, 2, side)
    hidden = inside[:, 0, :, None] & inside[:, 1, None, :]
    return np.where(hidden[:, None], 0.0, images)


#: Name to what does it.
CORRUPTIONS: Mapping[str, Callable[[Array, int, torch.Generator], Array]] = MappingProxyType(
    {
        "noise": _noise,
        "blur": _blur,
        "contrast": _contrast,
        "rotation": _rotation,
        "occlusion": _occlusion,
    }
)


def rotation_matrix(side: int, angle: float) -> Any:
    """Return the ``(s * s, s * s)`` sparse matrix that rotates a flat image by ``angle``."""
    center = (side - 1) / 2
    rows, columns = np.divmod(np.arange(side * side), side)
    cos, sin = math.cos(angle), math.sin(angle)
    from_row = center + cos * (rows - center) + sin * (columns - center)
    from_column = center - sin * (rows - center) + cos * (columns - center)
    top, left = np.floor(from_row).astype(np.int64), np.floor(from_column).astype(np.int64)
    entries: list[tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for down in (0, 1):
        for right in (0, 1):
            row, column = top + down, left + right
            weight = (1 - np.abs(from_row - row)) * (1 - np.abs(from_column - column))
            ok = (row >= 0) & (row < side) & (column >= 0) & (column < side)
            target = np.flatnonzero(ok)
            entries.append((weight[ok], target, row[ok] * side + column[ok]))
    values, targets, sources = (np.concatenate(part) for part in zip(*entries, strict=True))
    return sparse.csr_matrix((values, (targets, sources)), shape=(side * side, side * side))


def _as_images(x: Tensor) -> Array:
    """Return ``(n, c, s, s)`` float64 images."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim not in (2, 4) or not len(x):
        got = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise DataError(
            f"x must be (n, d) flat images or (n, c, s, s), floating point, not empty. Got {got}."
        )
    values = x.detach().cpu().double().numpy()
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise DataError("x must be finite with values in [0, 1]. Divide pixels by 255.")
    if x.ndim == 4:
        if x.shape[2] != x.shape[3]:
            raise DataError(f"Images must be square. Got {x.shape[2]} x {x.shape[3]} pixels.")
        return values
    for channels in (1, 3):
        side = math.isqrt(x.shape[1] // channels)
        if channels * side * side == x.shape[1]:
            return values.reshape(-1, channels, side, side)
    raise DataError(
        f"A row of {x.shape[1]} values is no square image with 1 or 3 channels. "
        "Give square images, or (n, c, s, s)."
    )
