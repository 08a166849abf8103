"""CIFAR-10 and CIFAR-100 from their binary files (Krizhevsky 2009).

Format: https://www.cs.toronto.edu/~kriz/cifar.html, "binary version": records of one label
byte (two for CIFAR-100: coarse, fine) and 3,072 pixel bytes, the red, green and blue planes
of a 32 x 32 image, row by row. MD5 sums are published for the archives, not for the files in
them. So an archive is verified by its sum, and an unpacked folder by the exact sizes, the range
of every label, and the exact number of images that every class has.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pooch

from invariance.core._errors import DataError
from invariance.data._download import fetch
from invariance.data._folders import find_folder, not_found

SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class BinarySet:
    """One of the two sets.

    Attributes:
        name: The task's name.
        layouts: Folders to look for, the official one first.
        train: Training files in order, each with its number of images.
        test: The same of the test files.
        label_bytes: Bytes before the pixels; the last of them is the label.
        n_classes: Number of classes.
        archive: The official archive, whose first folder is the first of ``layouts``.
        md5: Its published sum.
    """

    name: str
    layouts: tuple[str, ...]
    train: Mapping[str, int]
    test: Mapping[str, int]
    label_bytes: int
    n_classes: int
    archive: str
    md5: str


CIFAR_10 = BinarySet(
    name="cifar-10",
    layouts=("cifar-10-batches-bin", "CIFAR10/cifar-10-batches-bin", "cifar-10"),
    train=MappingProxyType({f"data_batch_{i}.bin": 10_000 for i in range(1, 6)}),
    test=MappingProxyType({"test_batch.bin": 10_000}),
    label_bytes=1,
    n_classes=10,
    archive="cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
)
CIFAR_100 = BinarySet(
    name="cifar-100",
    layouts=("cifar-100-binary", "CIFAR100/cifar-100-binary", "cifar-100"),
    train=MappingProxyType({"train.bin": 50_000}),
    test=MappingProxyType({"test.bin": 10_000}),
    label_bytes=2,
    n_classes=100,
    archive="cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
)

BINARY_SETS: Mapping[str, BinarySet] = MappingProxyType(
    {entry.name: entry for entry in (CIFAR_10, CIFAR_100)}
)


MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)

#: SHA-256 of the label bytes, in order, of copies that are known not to be the official images.
_COPIES: Mapping[str, str] = MappingProxyType(
    {"875c0f7df621488061636605fd5e4539e2a5ecc9684d751d1b3509e5bd646038": "CIFAR-10 (JPEG copies)"}
)

#: What reads ``records`` records of a file, and the words for where it stands.
_Open = Callable[[str], tuple[Bytes, str]]


def read_cifar(
    which: BinarySet, root: str | os.PathLike[str] | None, allow_download: bool = False
) -> dict[str, Any]:
    """Find the unpacked files or the archive, or download it; verify, and read.

    ``source`` says whether these are the official images (the archive's sum is verified), known
    copies of them, or files in the right form of which nothing else is known.
    """
    located = find_folder(which.name, which.layouts, [*which.train, *which.test], root)
    if located is not None:
        folder, origin = located
        parts = _read_parts(which, lambda name: (_load(folder / name, which), str(folder / name)))
        labels = np.concatenate([parts["y_train"], parts["y_test"]])
        title = _COPIES.get(hashlib.sha256(labels.tobytes()).hexdigest(), which.name)
        source = f"{title} from {folder} ({origin}; sizes, labels and class counts verified)"
        return {**parts, "source": source}
    path, origin = _archive(which, root, allow_download)
    with tarfile.open(path) as archive:
        parts = _read_parts(which, lambda name: _member(archive, path, name, which))
    return {**parts, "source": f"{which.name} from {path} ({origin}; MD5 verified)"}


def _archive(
    which: BinarySet, root: str | os.PathLike[str] | None, allow_download: bool
) -> tuple[Path, str]:
    """Find the official archive, or download it into the cache, and verify its sum."""
    located = find_folder(which.name, (".",), [which.archive], root)
    if located is not None:
        path, origin = located[0] / which.archive, located[1]
    else:
        path, origin = Path(pooch.os_cache("invariance")) / which.archive, "download cache"
        if not path.is_file():
            if not allow_download:
                raise not_found(which.name, which.layouts, root, "download=False")
            check = {which.archive: lambda file: _verify(file, which)}
            fetch(which.name, check, path.parent, MIRRORS)
            return path, "downloaded"
    _verify(path, which)
    return path, origin


def _verify(path: Path, which: BinarySet) -> None:
    """Raise unless ``path`` is the official archive, to the last byte."""
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error}. Check the path and permissions.") from error
    if actual.hexdigest() != which.md5:
        raise DataError(
            f"{path} is not the official {which.archive}: its MD5 sum is {actual.hexdigest()}, "
            f"expected {which.md5}. Nothing of it was used. Download it again."
        )


def _read_parts(which: BinarySet, read: _Open) -> dict[str, Any]:
    """Read the files of both sets and check what they hold."""
    found: dict[str, Any] = {}
    for part, files in (("train", which.train), ("test", which.test)):
        found[f"x_{part}"], found[f"y_{part}"] = _read_part(which, read, files)
    return found


def _read_part(which: BinarySet, read: _Open, files: Mapping[str, int]) -> tuple[Bytes, Bytes]:
    """Read the files of one part and check that its classes are equally large."""
    table = np.concatenate(
        [_records(*read(name), records, which) for name, records in files.items()]
    )
    labels = table[:, which.label_bytes - 1].copy()
    counts = np.bincount(labels, minlength=which.n_classes)
    expected = len(labels) // which.n_classes
    if (counts != expected).any():
        odd = int(np.flatnonzero(counts != expected)[0])
        raise DataError(
            f"{', '.join(read(name)[1] for name in files)} hold {counts[odd]} images of class "
            f"{odd}, expected {expected} of each class of {which.name}. {_REMEDY}"
        )
    images = np.ascontiguousarray(table[:, which.label_bytes :]).reshape(-1, *SHAPE)
    return images, labels


def _load(path: Path, which: BinarySet) -> Bytes:
    """Read a file, and one byte more than it should have if it is longer."""
    records = {**which.train, **which.test}[path.name]
    try:
        return np.fromfile(path, np.uint8, count=records * (which.label_bytes + _PIXELS) + 1)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error}. Check the path and permissions.") from error


def _member(archive: tarfile.TarFile, path: Path, name: str, which: BinarySet) -> tuple[Bytes, str]:
    """Read one file of the archive, whose every byte is verified already."""
    file = archive.extractfile(f"{which.layouts[0]}/{name}")
    assert file is not None, "a regular file of the official archive"
    return np.frombuffer(file.read(), np.uint8), f"{name} in {path}"


def _records(content: Bytes, where: str, records: int, which: BinarySet) -> Bytes:
    """Check a file's size and labels; return its records, one a row."""
    width = which.label_bytes + _PIXELS
    if content.size != records * width:
        more = "more than " if content.size > records * width else ""
        raise DataError(
            f"{where} has {more}{min(content.size, records * width)} bytes, expected "
            f"{records * width} ({records} records of {width} bytes, the binary version of "
            f"{which.name}). {_REMEDY}"
        )
    table = content.reshape(records, width)
    labels = table[:, which.label_bytes - 1]
    if (labels >= which.n_classes).any():
        row = int(np.flatnonzero(labels >= which.n_classes)[0])
        raise DataError(
            f"{where} has label {int(labels[row])} in record {row}, expected labels up to "
            f"{which.n_classes - 1}. {_REMEDY}"
        )
    return table


_REMEDY = "Nothing of it was used. Unpack the archive again; the Python version will not do."
