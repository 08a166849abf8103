"""Activations by name, for builders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from invariance.core._activations import TABLE
from invariance.core._errors import unknown_name

#: Name to a factory of a fresh module: what is elementwise and not random in training.
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        known.name: known.modules[0]
        for known in TABLE
        if known.modules and not known.random and known.name != "threshold"  # has no defaults
    }
)


def activation_module(name: str) -> nn.Module:
    """Return a fresh module for the activation called ``name``."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()
