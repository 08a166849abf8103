"""Seeded randomness that never touches a global generator."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from invariance.core._arguments import as_seed


def generator(seed: int, *stream: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator for ``seed`` and a named stream.

    Streams keep unrelated draws apart: ``generator(0, "init")`` and
    ``generator(0, "order")`` are independent, and adding a third stream changes neither.
    """
    return torch.Generator(device=device).manual_seed(_bits(as_seed(seed), *stream))


def torch_seed(seed: int) -> int:
    """Return a seed for torch's own generators: itself below 2^32, else its digest.

    On the CPU torch reads 32 bits of a seed: 0 and 2^32 would be the same one.
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


@contextmanager
def undisturbed_generators() -> Iterator[None]:
    """Put the global generators back after a loader has drawn from them."""
    state, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - restored, not drawn
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if started else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(legacy)  # noqa: NPY002
