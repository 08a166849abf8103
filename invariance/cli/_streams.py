"""Standard output and error that cannot change a verdict: closed, full, or of few letters."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, TextIO


class Outlet:
    """A text stream whose failures are remembered instead of raised.

    A reader that has seen enough (``head``, a pager) is no failure. What the stream's encoding
    lacks is written as an escape.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or io.StringIO()  # None where the shell has closed it
        self._lost = False
        self.problem = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, unless the stream has failed before."""
        if not self._lost:
            try:
                try:
                    self._stream.write(text)
                except UnicodeEncodeError:
                    encoding = self._stream.encoding or "ascii"
                    plain = text.encode(encoding, "backslashreplace").decode(encoding)
                    self._stream.write(plain)
            except (OSError, ValueError) as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush, unless the stream has failed before."""
        if not self._lost:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._lost = True
        if not isinstance(error, BrokenPipeError):
            self.problem = str(getattr(error, "strerror", None) or error)
        # The interpreter flushes once more at exit; what is left then goes nowhere.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


class Streams:
    """A block in which standard output and error are :class:`Outlet` objects.

    Attributes:
        problem: Why the standard output could not be written, after the block; "" if it was.
    """

    def __enter__(self) -> Streams:
        self._before = sys.stdout, sys.stderr
        self._out, self._error = Outlet(sys.stdout), Outlet(sys.stderr)
        sys.stdout, sys.stderr = self._out, self._error
        self.problem = ""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._out.flush()
        self.problem = self._out.problem
        if self.problem:
            self._error.write(f"invariance: cannot write to standard output: {self.problem}.\n")
        self._error.flush()
        sys.stdout, sys.stderr = self._before
        if self.problem and isinstance(error, SystemExit) and not error.code:
            raise SystemExit(2) from None
