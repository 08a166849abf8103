"""Multilayer perceptrons as plain ``nn.Sequential`` modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from invariance.core._arguments import as_flag
from invariance.core._errors import ModelError
from invariance.models._activations import activation_module
from invariance.models._initialisation import as_dtype, seeded


def mlp(
    sizes: Sequence[int],
    *,
    activation: str = "relu",
    batch_norm: bool = False,
    bias: bool = True,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Build a multilayer perceptron.

    Layer l is ``linear{l}``, then ``norm{l}`` if asked for, then ``act{l}``; the last
    layer is ``linear{L}`` alone. The weights are those that torch's default
    initialisation gives right after ``torch.manual_seed(seed)``, for a seed below 2^32.

    Args:
        sizes: Features, hidden widths, classes: ``(784, 256, 128, 10)``.
        activation: One of ``invariance.models.ACTIVATIONS``.
        batch_norm: Whether a BatchNorm follows every hidden linear layer.
        bias: Whether the linear layers have a bias.
        seed: Seed of the initialisation. The global generator is left as it was.
        dtype: Floating-point type; ``None`` for torch's default. The network is drawn in
            the default type and then converted, so a seed means one network.

    Returns:
        A module in train mode, as torch builds it.

    Raises:
        ModelError: If ``sizes`` are not two or more positive integers.
        UsageError: For an unknown activation.

    Example:
        >>> sum(p.numel() for p in mlp([784, 64, 10]).parameters())  # 784 64 + 64 + 64 10 + 10
        50890
    """
    widths = check_sizes(sizes)
    bias, batch_norm = as_flag(bias, "bias"), as_flag(batch_norm, "batch_norm")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    depth = len(widths) - 1
    with seeded(seed):
        for number, (fan_in, fan_out) in enumerate(pairwise(widths), 1):
            layers[f"linear{number}"] = nn.Linear(fan_in, fan_out, bias=bias)
            if number == depth:
                break
            if batch_norm:
                layers[f"norm{number}"] = nn.BatchNorm1d(fan_out)
            layers[f"act{number}"] = activation_module(activation)
        model = nn.Sequential(layers)
    as_dtype(model, dtype)
    return model


def check_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """Validate layer widths."""
    good = (
        isinstance(sizes, Sequence)
        and len(sizes) >= 2
        and all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
        and all(size > 0 for size in sizes)
    )
    if not good:
        raise ModelError(
            "sizes must be two or more positive integers: features, hidden widths, classes, "
            f"such as (784, 64, 10). Got {sizes!r}."
        )
    return tuple(sizes)
