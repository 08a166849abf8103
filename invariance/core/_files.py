"""Writing files: whole or not at all, and through a link or device instead of over it."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from invariance.core._errors import UsageError


def require_writable(path: str | Path) -> None:
    """Refuse a place that cannot be written to, before the work whose result goes there.

    Nothing is made or changed: a missing folder is made when the file is written.
    """
    with _refusing(path):
        target, there = _place(path)
        if there is not None and not os.access(target, os.W_OK):
            raise PermissionError("no permission to write to it")
        if there is None or _replaceable(there):
            folder = target.parent
            while not folder.exists():
                folder = folder.parent
            tempfile.TemporaryFile(dir=folder).close()


def write_atomically(path: str | Path, content: str | bytes) -> Path:
    """Write ``content`` to ``path``.

    A regular file is written beside itself and renamed: an interrupted write leaves the old
    file, never half of the new one. A link stays a link: what it points to is written. A
    device, a pipe or the program's own output is written into.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with _refusing(path):
        target, there = _place(path)
        if there is not None and not _replaceable(there):
            stream = _own_stream(there)
            # Our own output is written through itself: another handle has another position.
            sys.stdout.flush()
            handle = os.dup(stream) if stream else os.open(target, os.O_WRONLY)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            return Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not named after the target: its name may be as long as names can be.
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".invariance-")
        scratch = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                _fill(file, data)
            os.chmod(scratch, _mode(there))
            replace_durably(scratch, target)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
    return Path(path)


def write_durably(path: Path, content: bytes) -> Path:
    """Write ``content`` so that it survives a crash: whole and on the disk, or not there."""
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with scratch.open("wb") as file:
            _fill(file, content)
        replace_durably(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    return path


def replace_durably(source: Path, path: Path) -> None:
    """Rename ``source``, whose content is on the disk, to ``path``, and wait for the rename."""
    os.replace(source, path)
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot and need not sync a folder
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def working_folder() -> Path:
    """Return the working directory."""
    try:
        return Path.cwd()
    except OSError as error:
        raise UsageError("The working directory is gone. Change to one that exists.") from error


@contextmanager
def _refusing(path: str | Path) -> Iterator[None]:
    """Say in a sentence why ``path`` cannot be written."""
    try:
        yield
    except (OSError, ValueError) as error:  # a name with a null character is a ValueError
        if isinstance(error, UsageError):
            raise
        shown = str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}..."
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"Cannot write {shown!r}: {reason}.") from error


def _place(path: str | Path) -> tuple[Path, os.stat_result | None]:
    """Return where the bytes go, behind every link, and what is there already."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return Path(os.path.realpath(path)), None
    if stat.S_ISDIR(there.st_mode):
        raise UsageError(
            f"Cannot write {str(path)!r}: it is a folder. Give the name of a file in it."
        )
    # The name behind a link to a pipe (/dev/stdout) is no path: leave it to the system.
    return (Path(os.path.realpath(path)) if _replaceable(there) else Path(path)), there


def _replaceable(there: os.stat_result) -> bool:
    """Whether a new file may take its name: not for devices, nor where our own output goes."""
    return stat.S_ISREG(there.st_mode) and not _own_stream(there)


def _own_stream(there: os.stat_result) -> int:
    """The program's own output or error stream (1 or 2) that goes to a file; 0 if none does."""
    for stream in (1, 2):
        with suppress(OSError):
            if os.path.samestat(there, os.fstat(stream)):
                return stream
    return 0


def _mode(there: os.stat_result | None) -> int:
    """The permissions of the file that is replaced, or those that a new file gets."""
    if there is not None:
        return stat.S_IMODE(there.st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _fill(file: IO[bytes], content: bytes) -> None:
    """Write and wait for the disk: else a power cut may leave the new name on an empty file."""
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
