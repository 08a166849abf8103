"""The SQLite file of a study: its tables, the digest of each row, and how it is opened.

Every row ends with a digest of the others' content, made when it is written and compared
whenever it is read: a row that a disk, a copy or a hand has changed is told, never believed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from invariance.core._errors import StudyError
from invariance.core._files import replace_durably
from invariance.studies._config import digest

DATABASE_FILE = "study.db"

#: Raise when the tables change, and say in :func:`_migrate` how the older ones become these.
SCHEMA_VERSION = 2

#: "ivst" as a number: tells a study from any other SQLite file.
_APPLICATION = 0x69767374

_TABLES = {
    "meta": """CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL,
    digest TEXT NOT NULL
)""",
    "environments": """CREATE TABLE environments (
    id TEXT PRIMARY KEY,
    description TEXT NOT NULL,
    digest TEXT NOT NULL
)""",
    "networks": """CREATE TABLE networks (
    id TEXT PRIMARY KEY,       -- Config.id
    config TEXT NOT NULL,      -- canonical JSON
    facts TEXT NOT NULL,       -- JSON
    weights TEXT NOT NULL,     -- SHA-256 of weights/<id>.safetensors
    environment TEXT,          -- where it was trained; NULL if its file does not say
    digest TEXT NOT NULL
)""",
    "measurements": """CREATE TABLE measurements (
    network TEXT NOT NULL REFERENCES networks (id),
    key TEXT NOT NULL,         -- settings.key
    value TEXT NOT NULL,       -- JSON
    environment TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (network, key)
)""",
    "settings": """CREATE TABLE settings (
    key TEXT PRIMARY KEY,
    description TEXT NOT NULL,
    digest TEXT NOT NULL
)""",
    "runs": """CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    started TEXT NOT NULL,
    seconds REAL NOT NULL,     -- up to the last record
    trained INTEGER NOT NULL,
    measured INTEGER NOT NULL,
    adopted INTEGER NOT NULL,
    digest TEXT NOT NULL
)""",
}


def put(database: sqlite3.Connection, table: str, *row: object, ignore: bool = False) -> None:
    """Write a row with its digest, in place of the one of its key."""
    how = "IGNORE" if ignore else "REPLACE"
    marks = ", ".join("?" * (len(row) + 1))
    values = (*row, _seal(table, row))
    database.execute(f"INSERT OR {how} INTO {table} VALUES ({marks})", values)


def read(
    database: sqlite3.Connection, path: Path, table: str, **where: object
) -> Iterator[tuple[Any, ...]]:
    """Read the rows of a table in the order in which they were written, each compared."""
    chosen = " AND ".join(f"{name} = ?" for name in where) or "1"
    query = f"SELECT * FROM {table} WHERE {chosen} ORDER BY rowid"
    for *row, seal in database.execute(query, tuple(where.values())):
        if seal != _seal(table, row):
            raise _changed(path, table, row[0])
        yield tuple(row)


def _seal(table: str, row: Any) -> str:
    return digest(json.dumps([table, *row], default=repr))


def create(path: Path, meta: Mapping[str, str]) -> None:
    """Make an empty study file: it appears under its name only when it is whole."""
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
        database.execute("BEGIN")
        for table in _TABLES.values():
            database.execute(table)
        for entry in sorted(meta.items()):
            put(database, "meta", *entry)
        database.execute(f"PRAGMA application_id = {_APPLICATION}")
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("COMMIT")
        database.execute("PRAGMA journal_mode = WAL")
    finally:
        database.close()
    replace_durably(scratch, path)


def siblings(path: Path) -> list[Path]:
    """Return the files in which SQLite keeps what is not in the main file yet."""
    return [path.with_name(path.name + end) for end in ("-wal", "-journal", "-shm")]


def open_database(path: Path, study: str) -> sqlite3.Connection:
    """Open a study file after looking at it without writing."""
    # Read-only: closing an ordinary connection may move pending records into the file,
    # and nothing may be written to a file that turns out to be damaged.
    pending = path.with_name(f"{path.name}-wal")
    # "immutable" also keeps SQLite from making files of its own; it ignores pending records.
    how = "mode=ro" if pending.exists() and pending.stat().st_size else "immutable=1"
    with closing(_connect(f"{path.resolve().as_uri()}?{how}", uri=True)) as looking:
        version = _require_sound(looking, path, study)
    database = _connect(path, timeout=30)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if version < SCHEMA_VERSION:
            _migrate(database)
    except BaseException:
        database.close()
        raise
    return database


def _connect(path: Path | str, **options: Any) -> sqlite3.Connection:
    database: sqlite3.Connection = sqlite3.connect(path, isolation_level=None, **options)
    # Text that a flipped bit has made no UTF-8 is compared and told like any other.
    database.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    return database


def _require_sound(database: sqlite3.Connection, path: Path, study: str) -> int:
    """Compare everything in the file with what was written; return its version."""
    if path.stat().st_size == 0:
        raise damaged(path, "it is empty")
    if database.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
        raise StudyError(
            f"{path} is a SQLite file, but not of a study. Choose another folder with --out."
        )
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    if not 1 <= version <= SCHEMA_VERSION:
        age = "newer" if version > SCHEMA_VERSION else "older"
        raise StudyError(
            f"{path} was written by {_an(age)} version of invariance (schema {version}, this one "
            f"reads schema {SCHEMA_VERSION}). Nothing was changed. Go on with the version that "
            "wrote it, or start anew in another folder with --out."
        )
    found = [row[0] for row in database.execute("PRAGMA integrity_check")]
    if found != ["ok"]:
        raise damaged(path, found[0])
    if version == SCHEMA_VERSION:
        tables = dict(database.execute("SELECT name, sql FROM sqlite_master WHERE sql NOT NULL"))
        if tables != _TABLES:
            raise damaged(path, "its tables are not those of a study")
        for table in _TABLES:
            for _ in read(database, path, table):
                pass
    else:
        _require_names(database, path)
    name = database.execute("SELECT value FROM meta WHERE key = 'study'").fetchone()
    if name is None or name[0] != study:
        raise StudyError(
            f"{path} holds the study {name[0] if name else 'without a name'!r}, not {study!r}. "
            "Choose another folder with --out."
        )
    return version


def _require_names(database: sqlite3.Connection, path: Path) -> None:
    """Compare the rows of schema 1 with their names, where these were made from the content."""
    for table, name, content in (
        ("networks", "id", "config"),
        ("settings", "key", "description"),
        ("environments", "id", "description"),
    ):
        for key, text in database.execute(f"SELECT {name}, {content} FROM {table}"):
            if digest(text) != key:
                raise _changed(path, table, key)


def _migrate(database: sqlite3.Connection) -> None:
    """Give the rows of schema 1 their digests: all of them, or nothing has happened."""
    database.execute("BEGIN IMMEDIATE")
    try:
        for table, text in _TABLES.items():
            database.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
            database.execute(text)
            for row in database.execute(f"SELECT * FROM old_{table} ORDER BY rowid").fetchall():
                put(database, table, *row)
        for table in reversed(_TABLES):
            database.execute(f"DROP TABLE old_{table}")
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _changed(path: Path, table: str, row: object) -> StudyError:
    return damaged(path, f"row {row!r} of its table {table} has changed since it was written")


def _an(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def damaged(path: Path, reason: str) -> StudyError:
    """Return the error for a study file that is not what was written, with the remedy."""
    return StudyError(
        f"{path} is not a whole study file: {reason}. Nothing was changed. Restore it from a "
        f"copy; or move it away, with {path.name}-wal if there is one, and run again with "
        f"--resume: networks whose weights lie in {path.parent / 'weights'} are taken over, not "
        "trained again."
    )
