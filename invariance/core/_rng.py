"""Seeded randomness that never touches a global generator."""

from __future__ import annotations

import hashlib

import torch

from invariance.core._arguments import as_seed


def generator(seed: int, *stream: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator for ``seed`` and a named stream.

    Streams keep unrelated draws apart: ``generator(0, "init")`` and
    ``generator(0, "order")`` are independent, and adding a third stream changes neither.

    Args:
        seed: Any integer.
        stream: Labels that name the use, in any hashable printable form.
        device: Where the generator lives.

    Returns:
        A :class:`torch.Generator` that shares no state with any other.

    Raises:
        UsageError: If ``seed`` is no integer.
    """
    digest = hashlib.sha256(repr((as_seed(seed), *stream)).encode()).digest()
    value = int.from_bytes(digest[:8], "little") >> 1  # manual_seed takes 63 bits
    return torch.Generator(device=device).manual_seed(value)
