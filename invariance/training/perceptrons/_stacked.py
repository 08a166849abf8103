"""Tensors that hold one entry per network, and the buffers that go with them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Stacked:
    """A tensor with one entry for each network along its first dimension.

    Networks that are done are dropped by moving the last active entry into their place
    and narrowing the view: no other entry is copied, and nothing is allocated.

    Attributes:
        now: ``(count, ...)`` view of the active entries, to read and to write in place.
    """

    def __init__(self, full: Tensor) -> None:
        self._full = full
        self.now = full

    def move(self, source: int, target: int) -> None:
        """Copy entry ``source`` over entry ``target``."""
        self._full[target].copy_(self._full[source])

    def narrow(self, count: int) -> None:
        """Keep the first ``count`` entries."""
        self.now = self._full[:count]

    def zeros(self) -> Stacked:
        """Return a new stack of the same shape, filled with zeros."""
        return Stacked(torch.zeros_like(self._full)[: len(self.now)])


def stack(tensors: Iterable[Tensor]) -> Stacked:
    """Stack one tensor a network into new memory."""
    return Stacked(torch.stack([tensor.detach() for tensor in tensors]))


class Workspace:
    """Scratch buffers by name and shape, so that steps allocate nothing large.

    Attributes:
        count: Number of active networks.
    """

    def __init__(self, count: int, like: Tensor) -> None:
        self.count = count
        self._like = like
        self._buffers: dict[tuple[object, ...], Tensor] = {}

    def take(self, owner: object, *shape: int) -> Tensor:
        """Return the ``(count, *shape)`` buffer of ``owner``; its content is arbitrary."""
        key = (owner, *shape)
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = self._like.new_empty((self.count, *shape))
            self._buffers[key] = buffer
        return buffer[: self.count]
