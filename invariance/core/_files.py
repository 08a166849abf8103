"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from invariance.core._errors import UsageError


def require_writable(path: Path) -> None:
    """Refuse a place that cannot be written to, before the work whose result goes there.

    Args:
        path: A file to be written later; missing folders are made.

    Raises:
        UsageError: If it is a folder, or nothing can be written beside it.
    """
    if path.is_dir():
        raise UsageError(f"Cannot write {path}: it is a folder. Give the name of a file in it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror or error}.") from error


def write_atomically(path: Path, text: str) -> Path:
    """Write ``text`` to ``path`` through a temporary file beside it.

    An interrupted write leaves the old file, never half of the new one.

    Args:
        path: Where to write; missing folders are made.
        text: What to write, as UTF-8.

    Returns:
        The path.

    Raises:
        UsageError: If the place cannot be written to.
    """
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(scratch, 0o666 & ~umask)  # mkstemp makes it private; users expect the default
        os.replace(scratch, path)
    except OSError as error:
        if scratch is not None:
            Path(scratch).unlink(missing_ok=True)
        raise UsageError(f"Cannot write {path}: {error.strerror or error}.") from error
    except BaseException:
        if scratch is not None:
            Path(scratch).unlink(missing_ok=True)
        raise
    return path


def write_durably(path: Path, content: bytes) -> Path:
    """Write ``content`` so that it survives a crash: whole and on the disk, or not there.

    Args:
        path: Where to write; the folder must be there. The temporary file beside it is
            ``.NAME.tmp``, which whoever owns the folder may delete after a crash.
        content: What to write.

    Returns:
        The path.

    Raises:
        OSError: If it cannot be written.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        replace_durably(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    return path


def replace_durably(source: Path, path: Path) -> None:
    """Rename ``source``, whose content is on the disk, to ``path``, and wait for the rename.

    Args:
        source: The file.
        path: Its new name, in the same folder; a file of that name is replaced.

    Raises:
        OSError: If it cannot be renamed.
    """
    os.replace(source, path)
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot and need not sync a folder
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
