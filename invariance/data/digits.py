"""The 1,797 digits that ship with scikit-learn: a real task that needs no network."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

#: Held-out points. The split has a seed of its own, so that every task sees the same one.
N_TEST = 360
_SPLIT_SEED = 20260101
#: Grey levels run from 0 to 16.
_WHITE = 16.0


@functools.cache
def load_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return train images, train labels, test images, test labels.

    Returns:
        ``(1437, 64)`` float32 in [0, 1], ``(1437,)`` int64, ``(360, 64)``, ``(360,)``.
        The tensors are shared between calls: copy before writing.
    """
    from sklearn.datasets import load_digits as bundled

    data, target = bundled(return_X_y=True)
    x = torch.from_numpy(data).to(torch.float32) / _WHITE  # sixteenths: exact in float32
    y = torch.from_numpy(target).to(torch.int64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    # Inside each part the original order is kept, as in the image sets.
    test, train = order[:N_TEST].sort().values, order[N_TEST:].sort().values
    return x[train], y[train], x[test], y[test]
