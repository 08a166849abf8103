"""The folder of a study: whether it may be used, and what to say when it cannot be."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from invariance.core._errors import StudyError
from invariance.studies.store._lock import LOCK_FILE, RunLock
from invariance.studies.store._schema import DATABASE_FILE, damaged

#: What a study puts into its folder; anything else there belongs to somebody else.
OWN_FILES = (DATABASE_FILE, LOCK_FILE, "weights", "figures", "results.json", "report.md")

#: What SQLite says of a file whose content makes no sense.
_DAMAGE = {"SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR", "SQLITE_SCHEMA"}

#: What a run leaves that was killed before it had anything to keep.
_BEFORE_ANYTHING = (LOCK_FILE, f".{DATABASE_FILE}.new")  # and what SQLite puts beside them


def require_place(folder: Path, *, resume: bool) -> None:
    """Make a folder for a study, or refuse one that is not for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise StudyError(
            f"Cannot use {folder} for results: {error.strerror or error}. "
            "Choose another folder with --out."
        ) from error
    there = [name for name in there if not name.startswith(_BEFORE_ANYTHING)]
    if there and not resume:
        if (folder / LOCK_FILE).exists():
            RunLock(folder).close()  # says so if somebody is at work there
        raise StudyError(
            f"{folder} is not empty. Go on with what is there with --resume, or choose another "
            "folder with --out."
        )
    if there and not any(name in OWN_FILES for name in there):
        raise StudyError(
            f"{folder} holds no study to go on with, but other files ({there[0]}, ...). "
            "Choose another folder with --out."
        )


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn what the operating system or SQLite refuse into one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise _failed(path, reason) from error
    except sqlite3.Error as error:
        kind = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
        if kind in _DAMAGE or kind.startswith("SQLITE_CORRUPT"):
            raise damaged(path, str(error)) from error
        raise _failed(path, str(error)) from error
    except UnicodeDecodeError as error:  # SQLite's own message quotes bytes that are no text
        raise damaged(path, "it names something that is no text") from error


def _failed(path: Path, reason: str) -> StudyError:
    return StudyError(
        f"Cannot use {path}: {reason}. What is recorded is safe: put that right (free some "
        "space, make the folder writable), then go on with --resume."
    )
