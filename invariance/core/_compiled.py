"""Inner loops compiled with numba, in one way for the whole package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}


def compiled(function: F) -> F:
    """Compile ``function``, cached on disk where there is a place for it.

    The interpreter lock is released, and sums may be re-ordered so that they vectorise.
    """
    njit = cast(Any, numba.njit)
    try:
        return cast(F, njit(cache=True, **_OPTIONS)(function))
    except RuntimeError:  # no writable place for numba's cache
        return cast(F, njit(**_OPTIONS)(function))


def compiled_inside(function: F) -> F:
    """Compile ``function`` for callers that are compiled themselves, and for them alone.

    Python cannot call it. That saves a third of the time, which goes into unpacking its
    arguments; only what Python calls is cached, with all that it calls.
    """
    njit = cast(Any, numba.njit)
    return cast(F, njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function))
