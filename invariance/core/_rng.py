"""Seeded randomness that never touches a global generator."""

from __future__ import annotations

import hashlib

import numpy as np
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
    return torch.Generator(device=device).manual_seed(_bits(as_seed(seed), *stream))


def torch_seed(seed: int) -> int:
    """Return a seed for torch's own generators: itself below 2^32, else its digest.

    On the CPU torch reads 32 bits of a seed: 0 and 2^32 would be the same one.

    Args:
        seed: Any integer.

    Returns:
        An integer that ``manual_seed`` takes.
    """
    number = as_seed(seed)
    return number if 0 <= number < 2**32 else _bits(number)


def numpy_generator(seed: int) -> np.random.Generator:
    """Return ``numpy.random.default_rng`` for any integer, negative ones included."""
    number = as_seed(seed)
    return np.random.default_rng(number if number >= 0 else _bits(number))


def _bits(*key: object) -> int:
    """63 bits of a key's digest: as many as ``manual_seed`` takes everywhere."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1
