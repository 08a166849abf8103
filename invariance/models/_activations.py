"""Activations by name: the one table that every builder reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from invariance.core._errors import unknown_name

#: Name to a factory of a fresh module.
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "relu": nn.ReLU,
        "leaky_relu": nn.LeakyReLU,
        "prelu": nn.PReLU,
        "identity": nn.Identity,
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
        "elu": nn.ELU,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "softplus": nn.Softplus,
    }
)


def activation_module(name: str) -> nn.Module:
    """Return a fresh module for the activation called ``name``.

    Args:
        name: One of :data:`ACTIVATIONS`. ``"prelu"`` has one slope shared by all units.

    Returns:
        A new module.

    Raises:
        UsageError: For an unknown name; lists the known ones.
    """
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()
