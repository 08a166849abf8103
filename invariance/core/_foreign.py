"""Code of the user's that the program runs: whatever it does, the program goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from invariance.core._errors import InvarianceError, UsageError


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """Run somebody else's code; what it raises, ``sys.exit`` included, becomes a sentence."""
    try:
        yield
    except (KeyboardInterrupt, InvarianceError):
        raise
    except BaseException as error:
        raise UsageError(f"{what} {account(error)}.") from error


@contextmanager
def no_sudden_end() -> Iterator[None]:
    """Let ``os._exit`` raise ``SystemExit`` in this process, so that no code ends it unheard.

    Processes that are forked from this one end by it as ever.
    """
    real, here = os._exit, os.getpid()

    def leave(status: int) -> None:
        if os.getpid() != here:
            real(status)
        raise SystemExit(status)

    os._exit = leave  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = real


def account(error: BaseException) -> str:
    """Say what an error of the user's code was, and where it came from, in half a sentence."""
    if isinstance(error, SystemExit):
        return f"tried to end the program (sys.exit({error.code!r})){where(error)}"
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})" if error.filename else ""
        return f"is no valid Python: {error.msg}{place}"
    text = str(error).rstrip(".")
    return f"raised {type(error).__name__}{f': {text}' if text else ''}{where(error)}"


def where(error: BaseException) -> str:
    """The innermost line of a file that is neither this package's nor Python's machinery."""
    place, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in ("invariance", "contextlib", "torch", "importlib"):
            place = "" if name.startswith("<") else f" ({name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place
