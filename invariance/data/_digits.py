"""The 1,797 digits that ship with scikit-learn: a real task that needs no network."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch

#: Held-out points. The split has a seed of its own, so that every task sees the same one.
N_TEST = 360
_SPLIT_SEED = 20260101
#: Grey levels run from 0 to 16.
_WHITE = 16.0

Points = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@functools.cache
def load_digits() -> tuple[Points, Labels, Points, Labels]:
    """Return train images, train labels, test images, test labels.

    Shapes: returns ``(1437, 64)``.
    """
    from sklearn.datasets import load_digits as bundled

    data, target = bundled(return_X_y=True)
    x = (data / _WHITE).astype(np.float32)  # sixteenths: exact
    y = target.astype(np.int64)
    draw = torch.Generator().manual_seed(_SPLIT_SEED)
    order = torch.randperm(len(y), generator=draw).numpy()
    # Inside each part the original order is kept, as in the image sets.
    test, train = np.sort(order[:N_TEST]), np.sort(order[N_TEST:])
    return x[train], y[train], x[test], y[test]
