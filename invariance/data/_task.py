"""The data of one experiment: an immutable bundle of training, test and unseen points."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from invariance.core._errors import DataError
from invariance.core._repr import facts_table

_PARTS = ("train", "test", "unseen")


@dataclass(frozen=True, eq=False)
class Task:
    """One classification task, split deterministically.

    The tensors are checked and copied on construction, so that a task cannot change
    under a measurement because someone wrote into the array it was made from. To alter
    one, use :func:`dataclasses.replace`.

    Attributes:
        name: The data set's name.
        n_classes: Number of classes K.
        x_train: ``(n, d)`` float32 in [0, 1].
        y_train: ``(n,)`` int64 in ``0 .. K - 1``.
        x_test: ``(m, d)`` test points.
        y_test: ``(m,)`` their labels.
        x_unseen: ``(u, d)`` points drawn from outside the training subset.
        y_unseen: ``(u,)`` their labels.
        source: Where the data came from, in words for a report's header.

    Raises:
        DataError: If a tensor has the wrong shape or dtype, holds NaN or infinity, or
            if a label is outside ``0 .. K - 1``; the message names the tensor.
    """

    name: str
    n_classes: int
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    x_unseen: Tensor
    y_unseen: Tensor
    source: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.n_classes, bool) or not isinstance(self.n_classes, int):
            raise DataError(f"Task.n_classes must be an int. Got {self.n_classes!r}.")
        if self.n_classes < 2:
            raise DataError(f"Task.n_classes must be at least 2. Got {self.n_classes}.")
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name[:2] not in ("x_", "y_"):
                continue
            if not isinstance(value, Tensor):
                raise DataError(
                    f"Task.{entry.name} must be a torch.Tensor. Got {type(value).__name__}; "
                    "convert it with torch.as_tensor."
                )
            object.__setattr__(self, entry.name, value.detach().clone())
        for part in _PARTS:
            self._check_part(part)
        if self.x_train.shape[0] == 0:
            raise DataError("Task.x_train is empty. A task needs at least one training point.")

    def _check_part(self, part: str) -> None:
        x: Tensor = getattr(self, f"x_{part}")
        y: Tensor = getattr(self, f"y_{part}")
        if x.ndim != 2 or x.shape[1] == 0:
            raise DataError(
                f"Task.x_{part} must have shape (points, features). Got {tuple(x.shape)}. "
                "Flatten images with x.flatten(1)."
            )
        if x.shape[1] != self.x_train.shape[1]:
            raise DataError(
                f"Task.x_{part} has {x.shape[1]} features, but x_train has {self.x_train.shape[1]}."
            )
        if not x.is_floating_point():
            raise DataError(
                f"Task.x_{part} must be floating point. Got {x.dtype}; "
                "for pixels use x.float() / 255."
            )
        if y.shape != x.shape[:1]:
            raise DataError(
                f"Task.y_{part} must hold one label per point, shape ({x.shape[0]},). "
                f"Got {tuple(y.shape)}."
            )
        if y.dtype != torch.int64:
            raise DataError(f"Task.y_{part} must be int64. Got {y.dtype}; use y.long().")
        finite = torch.isfinite(x).all(dim=1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0, 0])
            raise DataError(
                f"Task.x_{part} holds NaN or infinity in {int((~finite).sum())} of "
                f"{x.shape[0]} rows; the first is row {row}. Drop or repair those rows."
            )
        outside = (y < 0) | (y >= self.n_classes)
        if bool(outside.any()):
            row = int(outside.nonzero()[0, 0])
            raise DataError(
                f"Task.y_{part}[{row}] is {int(y[row])}, outside 0 .. {self.n_classes - 1} "
                f"(n_classes = {self.n_classes})."
            )

    @property
    def n_train(self) -> int:
        """Number of training points n."""
        return int(self.x_train.shape[0])

    @property
    def n_features(self) -> int:
        """Number of features d of a point."""
        return int(self.x_train.shape[1])

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(getattr(self, f'y_{part}'))} {part}" for part in _PARTS)
        return (
            f"Task({self.name!r}, {self.n_classes} classes, {self.n_features} features, {counts})"
        )

    def _repr_html_(self) -> str:
        counts: dict[str, object] = {
            f"{part} points": f"{len(getattr(self, f'y_{part}')):,}" for part in _PARTS
        }
        about = {"classes": self.n_classes, "features": self.n_features}
        return facts_table(f"Task {self.name}", {**counts, **about, "from": self.source or "given"})


def cast_task(task: Task, dtype: torch.dtype, device: torch.device) -> Task:
    """Return the task with its points in ``dtype`` and everything on ``device``.

    Example:
        >>> import torch
        >>> import invariance as inv
        >>> task = cast_task(inv.load_task("digits"), torch.float64, torch.device("cpu"))
        >>> task.x_train.dtype, task.y_train.dtype
        (torch.float64, torch.int64)
    """
    changes: dict[str, Any] = {}
    for entry in fields(task):
        value = getattr(task, entry.name)
        if isinstance(value, Tensor):
            changes[entry.name] = value.to(device, dtype if value.is_floating_point() else None)
    return replace(task, **changes)
