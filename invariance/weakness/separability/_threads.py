"""Keep the threads of libraries from nesting inside the threads of this package."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def available_cores() -> int:
    """Number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_library_thread(kind: str | None = "blas") -> Iterator[None]:
    """Run the block with one thread in each linear-algebra library, and restore after it.

    The matrices here are small: a second BLAS thread gains nothing on an idle machine and
    waits for its core on a busy one, which was seen to cost a factor of ten.
    """
    with _controller().limit(limits=1, user_api=kind):
        yield


@functools.lru_cache(maxsize=1)
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()
