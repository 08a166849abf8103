"""The data of one experiment: an immutable bundle of training, test and unseen points."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Task:
    """One classification task, split deterministically.

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
