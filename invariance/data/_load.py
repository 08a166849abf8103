"""``load_task``: a named data set, verified, and split the same way every time."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from invariance.core._arguments import as_seed
from invariance.core._errors import DataError, unknown_name
from invariance.core._rng import torch_seed
from invariance.data._catalog import IMAGE_SETS, MNIST, ImageSet
from invariance.data._cifar import BINARY_SETS, read_cifar
from invariance.data._digits import load_digits
from invariance.data._download import DownloadError, download
from invariance.data._idx import read_verified
from invariance.data._locate import Located, locate, searched
from invariance.data._task import Task
from invariance.data._tiny_imagenet import N_CLASSES as TINY_CLASSES
from invariance.data._tiny_imagenet import NAME as TINY
from invariance.data._tiny_imagenet import Pictures, read_tiny_imagenet

TASKS = ("auto", *IMAGE_SETS, "digits", *BINARY_SETS, TINY)

UnseenFrom = Literal["rest", "train", "test"]

#: Seed of the unseen points' draw in the paper; ours is this plus the task's seed.
UNSEEN_SEED = 99
#: "auto" stops a download after this many seconds and takes the digits.
_AUTO_SECONDS = 60.0


@dataclass(frozen=True)
class _Raw:
    """A whole data set, shared between loads: uint8 pixels, or float32 in [0, 1] already."""

    name: str
    n_classes: int
    x_train: npt.NDArray[Any] | Pictures
    y_train: npt.NDArray[Any]
    x_test: npt.NDArray[Any]
    y_test: npt.NDArray[Any]
    source: str


def load_task(
    name: str = "auto",
    *,
    n_train: int | None = None,
    n_unseen: int | None = 0,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
    unseen_seed: int | None = None,
    unseen_from: UnseenFrom = "rest",
    download: bool = True,
) -> Task:
    """Load a classification task, verified and split deterministically.

    The training subset is ``torch.randperm(N, generator seeded with seed)[:n_train]``.
    The unseen points come from a pool in original order (by default the rest of the
    training set, then the test set); they are entries
    ``torch.randperm(len(pool), generator seeded with unseen_seed)[:n_unseen]`` of it.
    With ``seed=42, unseen_seed=99`` these are the subsets of Bennett, "Are Flat Minima
    an Illusion?" (arXiv 2605.05209). Pixels are divided by their maximum, flattened,
    and not normalised further.

    Files are looked for in ``root``, in the folder named by ``INVARIANCE_DATA``, in
    ``./data``, ``~/data`` and ``~/.torch`` in torchvision's layout, and in the download
    cache; then they are downloaded. Each is verified byte for byte before use.

    Args:
        name: ``"mnist"``, ``"fashion-mnist"``, ``"digits"`` (bundled with scikit-learn,
            no network), or ``"auto"``: MNIST if found or quickly downloadable, else
            digits; ``Task.source`` says which and why. ``"cifar-10"`` and ``"cifar-100"``
            (binary version: the unpacked folder, or the official archive, whose MD5 sum is
            verified; downloaded if neither is there). Not downloaded, but read where it is:
            ``"tiny-imagenet"`` (its folder of JPEG files; the validation images are the test
            points).
        n_train: Size of the training subset; ``None`` for the whole training set in its
            original order.
        n_unseen: How many unseen points to draw; ``None`` for the whole pool in order.
        seed: Seed of the training subset.
        root: Folder to look into first.
        unseen_seed: Seed of the unseen points' draw; ``None`` for ``99 + seed``.
        unseen_from: The pool: ``"rest"`` (rest of train, then test), ``"train"`` (rest
            of train only) or ``"test"``.
        download: Whether to use the network when the files are not found.

    Returns:
        The task; its tensors belong to it alone.

    Raises:
        UsageError: For an unknown ``name`` or ``unseen_from``; lists the known ones. For a
            seed that is no integer.
        DataError: If a file is truncated, corrupt or wrong, cannot be had, or if more
            points are asked for than there are.

    Example:
        >>> task = load_task("digits", n_train=200, n_unseen=20)
        >>> task.x_train.shape, task.n_classes
        (torch.Size([200, 64]), 10)
    """
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    if unseen_from not in get_args(UnseenFrom):
        raise unknown_name("unseen_from", unseen_from, get_args(UnseenFrom))
    _check_count("n_train", n_train, 1)
    _check_count("n_unseen", n_unseen, 0)
    seed = as_seed(seed)
    unseen_seed = UNSEEN_SEED + seed if unseen_seed is None else as_seed(unseen_seed, "unseen_seed")
    raw = _load(name, root, download)

    total = len(raw.y_train)
    if n_train is not None and n_train > total:
        raise DataError(
            f"n_train = {n_train} is more than the {total} training points of "
            f"{raw.name} ({raw.source}). Ask for {total} at most."
        )
    train = torch.arange(total)
    if n_train is not None:
        train = torch.randperm(total, generator=_generator(seed))[:n_train]
    rest = torch.ones(total, dtype=torch.bool)
    rest[train] = False
    left = rest.nonzero()[:, 0] if unseen_from != "test" else train[:0]
    held_out = len(raw.y_test) if unseen_from != "train" else 0
    pool = len(left) + held_out
    if n_unseen is not None and n_unseen > pool:
        raise DataError(
            f"n_unseen = {n_unseen} is more than the {pool} points of {raw.name} that are left "
            f"(unseen_from = {unseen_from!r}, {len(train)} training points). "
            "Ask for fewer, or lower n_train."
        )
    picked = torch.arange(pool)
    if n_unseen is not None:
        picked = torch.randperm(pool, generator=_generator(unseen_seed))[:n_unseen]
    # Index into train then test as if they were one array, without joining 70,000 images.
    from_test = picked >= len(left)
    x_unseen = np.empty((len(picked), *raw.x_train.shape[1:]), raw.x_train.dtype)
    y_unseen = np.empty(len(picked), raw.y_train.dtype)
    for mask, x, y, where in (
        (~from_test, raw.x_train, raw.y_train, left[picked[~from_test]]),
        (from_test, raw.x_test, raw.y_test, picked[from_test] - len(left)),
    ):
        x_unseen[mask.numpy()] = x[where.numpy()]
        y_unseen[mask.numpy()] = y[where.numpy()]
    return Task(
        name=raw.name,
        n_classes=raw.n_classes,
        x_train=_points(raw.x_train[train.numpy()]),
        y_train=_labels(raw.y_train[train.numpy()]),
        x_test=_points(raw.x_test),
        y_test=_labels(raw.y_test),
        x_unseen=_points(x_unseen),
        y_unseen=_labels(y_unseen),
        source=raw.source,
    )


def _load(name: str, root: str | os.PathLike[str] | None, allow_download: bool) -> _Raw:
    if name in BINARY_SETS:
        found = read_cifar(BINARY_SETS[name], root, allow_download)
        return _Raw(name, BINARY_SETS[name].n_classes, **found)
    if name == TINY:
        return _Raw(name, TINY_CLASSES, **read_tiny_imagenet(root))
    if name == "digits":
        return _digits("digits of scikit-learn")
    if name != "auto":
        return _read(IMAGE_SETS[name], _obtain(IMAGE_SETS[name], root, allow_download, None))
    try:
        located = _obtain(MNIST, root, allow_download, _AUTO_SECONDS)
    except DownloadError as error:
        reason = str(error).split(" -- ")[0]
        return _digits(f"digits of scikit-learn, since MNIST is not on this machine. {reason}")
    return _read(MNIST, located)


def _obtain(
    images: ImageSet,
    root: str | os.PathLike[str] | None,
    allow_download: bool,
    deadline: float | None,
) -> Located:
    located = locate(images, root)
    if located is not None:
        return located
    if not allow_download:
        raise DownloadError(
            f"{images.name} was not found in {searched(images, root)}, and download=False. "
            "-- Name the folder with root=..., or allow the download."
        )
    return download(images, deadline=deadline)


def _read(images: ImageSet, located: Located) -> _Raw:
    arrays = {
        logical: read_verified(path, images.sha256[logical])
        for logical, path in located.paths.items()
    }
    return _Raw(
        name=images.name,
        n_classes=images.n_classes,
        x_train=arrays["x_train"],
        y_train=arrays["y_train"],
        x_test=arrays["x_test"],
        y_test=arrays["y_test"],
        source=f"{images.name} from {located.folder} ({located.origin}; SHA-256 verified)",
    )


def _digits(source: str) -> _Raw:
    return _Raw("digits", 10, *load_digits(), source=source)


def _points(images: npt.NDArray[Any]) -> Tensor:
    """Flatten images into new float32 rows in [0, 1]."""
    flat = images.reshape(len(images), math.prod(images.shape[1:]))
    rows = torch.from_numpy(flat.astype(np.float32))
    return rows.div_(255) if images.dtype == np.uint8 else rows


def _labels(labels: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(torch_seed(seed))


def _check_count(name: str, value: int | None, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"{name} must be an integer of at least {least}, or None. Got {value!r}.")
