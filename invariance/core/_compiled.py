"""Inner loops compiled with numba, in one way for the whole package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile ``function``, cached on disk where there is a place for it.

    The interpreter lock is released, and sums may be re-ordered so that they vectorise.

    Args:
        function: Code that numba can compile.

    Returns:
        The compiled function.
    """
    njit = cast(Any, numba.njit)
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        return cast(F, njit(cache=True, **options)(function))
    except RuntimeError:  # no writable place for numba's cache
        return cast(F, njit(**options)(function))
