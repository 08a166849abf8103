"""Seeded construction: default initialisation under a seed, without touching global state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from invariance.core._modules import floating_dtype
from invariance.core._rng import torch_seed


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run the block as right after ``torch.manual_seed(seed)``, then restore the state.

    Only the CPU generator is touched: modules built inside are built on the CPU, so that
    a seed means the same network on every machine.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(torch_seed(seed))
        yield


def as_dtype(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Convert a freshly built model, or leave it in the default dtype.

    Converting after initialisation keeps the network that a seed stands for: drawing in
    float64 would give other weights than drawing in float32.
    """
    return model if dtype is None else model.to(floating_dtype(dtype))
