"""CIFAR-10 and CIFAR-100 from their binary files (Krizhevsky 2009).

Format: https://www.cs.toronto.edu/~kriz/cifar.html, "binary version": records of one label
byte (two for CIFAR-100: coarse, fine) and 3,072 pixel bytes, the red, green and blue planes
of a 32 x 32 image, row by row. No checksums of these files are published with them, so they
are verified by their exact sizes, by the range of every label, and by the exact number of
images that every class has.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from invariance.core._errors import DataError
from invariance.data._folders import find_folder

SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class BinarySet:
    """One of the two sets.

    Attributes:
        name: The task's name.
        layouts: Folders to look for, the official one first.
        train: Training files, in order.
        test: Test files.
        records: Images in each file.
        label_bytes: Bytes before the pixels; the last of them is the label.
        n_classes: Number of classes.
    """

    name: str
    layouts: tuple[str, ...]
    train: Mapping[str, int]
    test: Mapping[str, int]
    label_bytes: int
    n_classes: int


CIFAR_10 = BinarySet(
    name="cifar-10",
    layouts=("cifar-10-batches-bin", "CIFAR10/cifar-10-batches-bin", "cifar-10"),
    train=MappingProxyType({f"data_batch_{i}.bin": 10_000 for i in range(1, 6)}),
    test=MappingProxyType({"test_batch.bin": 10_000}),
    label_bytes=1,
    n_classes=10,
)
CIFAR_100 = BinarySet(
    name="cifar-100",
    layouts=("cifar-100-binary", "CIFAR100/cifar-100-binary", "cifar-100"),
    train=MappingProxyType({"train.bin": 50_000}),
    test=MappingProxyType({"test.bin": 10_000}),
    label_bytes=2,
    n_classes=100,
)

BINARY_SETS: Mapping[str, BinarySet] = MappingProxyType(
    {entry.name: entry for entry in (CIFAR_10, CIFAR_100)}
)


def read_cifar(which: BinarySet, root: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Find the binary files, verify them, and read them."""
    folder, origin = find_folder(which.name, which.layouts, [*which.train, *which.test], root)
    x_train, y_train = _read_part(which, folder, which.train)
    x_test, y_test = _read_part(which, folder, which.test)
    return {
        "x_train": x_train,
        "y_train": y_train,
        "x_test": x_test,
        "y_test": y_test,
        "source": f"{which.name} from {folder} ({origin}; sizes, labels and class counts verified)",
    }


def _read_part(which: BinarySet, folder: Path, files: Mapping[str, int]) -> tuple[Bytes, Bytes]:
    """Read the files of one part and check that its classes are equally large."""
    parts = [_read_file(folder / name, records, which) for name, records in files.items()]
    table = np.concatenate(parts)
    labels = table[:, which.label_bytes - 1].copy()
    counts = np.bincount(labels, minlength=which.n_classes)
    expected = len(labels) // which.n_classes
    if (counts != expected).any():
        odd = int(np.flatnonzero(counts != expected)[0])
        raise DataError(
            f"{', '.join(files)} in {folder} hold {counts[odd]} images of class {odd}, expected "
            f"{expected} of each class of {which.name}. {_REMEDY}"
        )
    images = np.ascontiguousarray(table[:, which.label_bytes :]).reshape(-1, *SHAPE)
    return images, labels


def _read_file(path: Path, records: int, which: BinarySet) -> Bytes:
    width = which.label_bytes + _PIXELS
    try:
        content = np.fromfile(path, dtype=np.uint8, count=records * width + 1)  # no more than that
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error}. Check the path and permissions.") from error
    if content.size != records * width:
        raise DataError(
            f"{path} has {path.stat().st_size} bytes, expected {records * width} ({records} "
            f"records of {width} bytes, the binary version of {which.name}). {_REMEDY}"
        )
    table: Bytes = content.reshape(records, width)
    labels = table[:, which.label_bytes - 1]
    if (labels >= which.n_classes).any():
        row = int(np.flatnonzero(labels >= which.n_classes)[0])
        raise DataError(
            f"{path} has label {int(labels[row])} in record {row}, expected labels up to "
            f"{which.n_classes - 1}. {_REMEDY}"
        )
    return table


_REMEDY = "Nothing of it was used. Unpack the archive again; the Python version will not do."
