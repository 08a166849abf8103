"""Tiny ImageNet from its folder of JPEG files: 200 classes, 64 x 64 pixels.

Layout of the archive ``tiny-imagenet-200``: ``wnids.txt`` names the classes,
``train/<wnid>/images`` has 500 images of each, ``val/images`` 10,000 images whose classes
stand in ``val/val_annotations.txt``. The test images have no labels, so the validation
images are the test points. Training images are decoded when they are asked for, so that a
small subset of the 100,000 costs little.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from invariance.core._errors import DataError, UsageError
from invariance.data._folders import find_folder, not_found

NAME = "tiny-imagenet"
N_CLASSES = 200
#: Images of a class in the training set, and in the validation set.
PER_CLASS = (500, 50)
SIDE = 64

_LAYOUTS = ("tiny-imagenet-200", NAME)
_NEEDED = ("wnids.txt", "train", "val/val_annotations.txt", "val/images")


class Pictures:
    """Images on disk that are indexed like an array, and decoded on the way.

    Attributes:
        shape: ``(n, 3, 64, 64)``.
        dtype: Unsigned bytes.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self.shape = (len(self._paths), 3, SIDE, SIDE)
        self.dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Decode the images with these numbers."""
        out = np.empty((len(rows), 3, SIDE, SIDE), np.uint8)
        for place, row in enumerate(rows):
            out[place] = _decode(self._paths[int(row)])
        return out


def read_tiny_imagenet(root: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Find the folder, verify its form, and read what is small."""
    located = find_folder(NAME, _LAYOUTS, _NEEDED, root)
    if located is None:
        raise not_found(NAME, _LAYOUTS, root, "is not downloaded")
    folder, origin = located
    classes = sorted((folder / "wnids.txt").read_text().split())
    if len(set(classes)) != N_CLASSES:
        raise DataError(f"{folder / 'wnids.txt'} names {len(set(classes))} classes, not 200.")
    train: list[Path] = []
    for name in classes:
        found = sorted((folder / "train" / name / "images").glob("*.JPEG"))
        _require(len(found), PER_CLASS[0], f"training images of class {name}", folder)
        train += found
    test, labels = _validation(folder, {name: i for i, name in enumerate(classes)})
    return {
        "x_train": Pictures(train),
        "y_train": np.repeat(np.arange(N_CLASSES), PER_CLASS[0]),
        "x_test": Pictures(test)[np.arange(len(test))],
        "y_test": labels,
        "source": f"{NAME} from {folder} ({origin}; classes and numbers of images verified; the "
        "validation images are the test points)",
    }


def _validation(folder: Path, number: dict[str, int]) -> tuple[list[Path], npt.NDArray[np.int64]]:
    lines = (folder / "val" / "val_annotations.txt").read_text().splitlines()
    entries = sorted(line.split("\t")[:2] for line in lines if line.strip())
    unknown = [name for _, name in entries if name not in number]
    if unknown:
        raise DataError(f"val_annotations.txt in {folder} names an unknown class {unknown[0]!r}.")
    labels = np.array([number[name] for _, name in entries], dtype=np.int64)
    for label, count in enumerate(np.bincount(labels, minlength=N_CLASSES)):
        _require(int(count), PER_CLASS[1], f"validation images of class {label}", folder)
    return [folder / "val" / "images" / file for file, _ in entries], labels


def _require(count: int, expected: int, what: str, folder: Path) -> None:
    if count != expected:
        raise DataError(
            f"{folder} has {count} {what}, expected {expected}. Unpack the archive again."
        )


def _decode(path: Path) -> npt.NDArray[np.uint8]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UsageError(
            "Tiny ImageNet needs Pillow to decode images: pip install pillow"
        ) from error
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"Cannot decode {path}: {error}. Unpack the archive again.") from error
    if pixels.shape != (SIDE, SIDE, 3):
        raise DataError(f"{path} has shape {pixels.shape}, expected (64, 64, 3).")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
