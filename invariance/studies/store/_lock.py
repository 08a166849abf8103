"""One run at a time in a study's folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from invariance.core._errors import StudyError

LOCK_FILE = "run.lock"

#: What SQLite says where the place is at fault, not the lock: read-only, full, not a file.
_NO_PLACE = ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_IOERR", "SQLITE_FULL")

#: Times to write one's name before giving up: others that start now may be faster.
_TRIES = 100


class RunLock:
    """Holds a study's folder for this process until it is closed, or the process ends.

    The lock is SQLite's own lock on a file that nothing else uses: the operating system
    drops it when the process dies, however it dies, so no stale lock is ever left behind.
    The holder's name stays readable, for the message that a second process prints. As with
    any SQLite file, the folder should be on a local disk.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock."""
        self._path = folder / LOCK_FILE
        me = json.dumps(
            {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
        try:
            self._database = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        except sqlite3.Error as error:
            raise StudyError(
                f"Cannot write to {self._path} ({error}). Make the folder writable, or choose "
                "another with --out."
            ) from error
        try:
            # BEGIN IMMEDIATE keeps other writers out and lets readers in. Committing the
            # holder's name lets go for an instant, so make sure afterwards that it stands.
            for _ in range(_TRIES):
                if self._take() == me:
                    return
                self._database.execute("INSERT OR REPLACE INTO holder VALUES (0, ?)", (me,))
                self._database.execute("COMMIT")
            raise sqlite3.DatabaseError("what is written there does not stay")
        except (sqlite3.Error, UnicodeDecodeError) as error:
            holder = self._holder()
            self._database.close()
            kind = getattr(error, "sqlite_errorname", "")
            if kind.startswith("SQLITE_BUSY"):
                raise StudyError(
                    f"{folder} is in use by {holder}. Wait until it ends, or choose another "
                    "folder with --out."
                ) from error
            if kind.startswith(_NO_PLACE):
                raise StudyError(
                    f"Cannot write to {self._path} ({error}). Make room, or make the folder "
                    "writable, then try again; or choose another folder with --out."
                ) from error
            raise StudyError(
                f"Cannot lock {self._path}: {error}. It holds no results: if no other run uses "
                "the folder, delete it and try again."
            ) from error

    def _take(self) -> str:
        self._database.execute("BEGIN IMMEDIATE")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS holder (id INTEGER PRIMARY KEY, who TEXT NOT NULL)"
        )
        row = self._database.execute("SELECT who FROM holder WHERE id = 0").fetchone()
        return str(row[0]) if row else ""

    def _holder(self) -> str:
        with contextlib.suppress(sqlite3.Error, ValueError, TypeError, KeyError):
            row = self._database.execute("SELECT who FROM holder").fetchone()
            who = json.loads(row[0])
            return f"process {who['pid']} on {who['host']} since {who['since']}"
        return "another process"

    def close(self) -> None:
        """Let go of the folder."""
        self._database.close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
