"""The SQLite file of a study: its tables, and how it is opened without harm."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

from invariance.core._errors import StudyError
from invariance.core._files import replace_durably

DATABASE_FILE = "study.db"

#: Raise when the tables change.
SCHEMA_VERSION = 1

#: "ivst" as a number: tells a study from any other SQLite file.
_APPLICATION = 0x69767374

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE environments (id TEXT PRIMARY KEY, description TEXT NOT NULL);
CREATE TABLE networks (
    id TEXT PRIMARY KEY,       -- Config.id
    config TEXT NOT NULL,      -- canonical JSON
    facts TEXT NOT NULL,       -- JSON
    weights TEXT NOT NULL,     -- SHA-256 of weights/<id>.safetensors
    environment TEXT           -- where it was trained; NULL if its file does not say
);
CREATE TABLE measurements (
    network TEXT NOT NULL REFERENCES networks (id),
    key TEXT NOT NULL,         -- settings.key
    value TEXT NOT NULL,       -- JSON
    environment TEXT NOT NULL,
    PRIMARY KEY (network, key)
);
CREATE TABLE settings (key TEXT PRIMARY KEY, description TEXT NOT NULL);
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    started TEXT NOT NULL,
    seconds REAL NOT NULL,     -- up to the last record
    trained INTEGER NOT NULL,
    measured INTEGER NOT NULL,
    adopted INTEGER NOT NULL
);
"""


def create(path: Path, meta: Mapping[str, str]) -> None:
    """Make an empty study file: it appears under its name only when it is whole.

    Args:
        path: Where.
        meta: What the study is.
    """
    if left := [p for p in siblings(path) if p.exists()]:
        raise StudyError(
            f"{left[0]} holds records that belong to {path.name}, which is missing. Put it back, "
            f"or move {left[0].name} away too."
        )
    scratch = path.with_name(f".{path.name}.new")
    for leftover in (scratch, *siblings(scratch)):
        leftover.unlink(missing_ok=True)
    database = sqlite3.connect(scratch, isolation_level=None)
    try:
        database.executescript(f"BEGIN; {_TABLES} COMMIT;")
        database.executemany("INSERT INTO meta VALUES (?, ?)", sorted(meta.items()))
        database.execute(f"PRAGMA application_id = {_APPLICATION}")
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("PRAGMA journal_mode = WAL")
    finally:
        database.close()
    replace_durably(scratch, path)


def siblings(path: Path) -> list[Path]:
    """Return the files in which SQLite keeps what is not in the main file yet."""
    return [path.with_name(path.name + end) for end in ("-wal", "-journal", "-shm")]


def open_database(path: Path, study: str) -> sqlite3.Connection:
    """Open a study file after looking at it without writing.

    Args:
        path: The file.
        study: Name of the study that should be in it.

    Returns:
        A connection in autocommit mode; every commit reaches the disk.

    Raises:
        StudyError: If it is damaged, of another version, or of another study.
    """
    try:
        # Read-only: closing an ordinary connection may move pending records into the file,
        # and nothing may be written to a file that turns out to be damaged.
        pending = path.with_name(f"{path.name}-wal")
        # "immutable" also keeps SQLite from making files of its own; it ignores pending records.
        how = "mode=ro" if pending.exists() and pending.stat().st_size else "immutable=1"
        looking = sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True)
        try:
            _require_sound(looking, path, study)
        finally:
            looking.close()
        database = sqlite3.connect(path, isolation_level=None, timeout=30)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error as error:
        raise _damaged(path, str(error)) from error
    return database


def _require_sound(database: sqlite3.Connection, path: Path, study: str) -> None:
    if path.stat().st_size == 0:
        raise _damaged(path, "it is empty")
    if database.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
        raise StudyError(
            f"{path} is a SQLite file, but not of a study. Choose another folder with --out."
        )
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        age = "newer" if version > SCHEMA_VERSION else "older"
        raise StudyError(
            f"{path} was written by {_an(age)} version of invariance (schema {version}, this one "
            f"reads schema {SCHEMA_VERSION}). Nothing was changed. Go on with the version that "
            "wrote it, or start anew in another folder with --out."
        )
    found = [row[0] for row in database.execute("PRAGMA quick_check")]
    if found != ["ok"]:
        raise _damaged(path, found[0])
    name = database.execute("SELECT value FROM meta WHERE key = 'study'").fetchone()
    if name is None or name[0] != study:
        raise StudyError(
            f"{path} holds the study {name[0] if name else 'without a name'!r}, not {study!r}. "
            "Choose another folder with --out."
        )


def _an(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _damaged(path: Path, reason: str) -> StudyError:
    return StudyError(
        f"{path} is not a whole study file: {reason}. Nothing was changed. Restore it from a "
        f"copy; or move it away, with {path.name}-wal if there is one, and run again with "
        f"--resume: networks whose weights lie in {path.parent / 'weights'} are taken over, not "
        "trained again."
    )
