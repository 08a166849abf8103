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


class RunLock:
    """Holds a study's folder for this process until it is closed, or the process ends.

    The lock is SQLite's own lock on a file that nothing else uses: the operating system
    drops it when the process dies, however it dies, so no stale lock is ever left behind.
    The holder's name stays readable, for the message that a second process prints. As with
    any SQLite file, the folder should be on a local disk.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Args:
            folder: The study's folder.

        Raises:
            StudyError: If another process holds it; the message says which.
        """
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
            raise StudyError(f"Cannot write {self._path}: {error}.") from error
        try:
            # BEGIN IMMEDIATE keeps other writers out and lets readers in. Committing the
            # holder's name lets go for an instant, so make sure afterwards that it stands.
            while self._take() != me:
                self._database.execute("INSERT OR REPLACE INTO holder VALUES (0, ?)", (me,))
                self._database.execute("COMMIT")
        except sqlite3.Error as error:
            holder = self._holder()
            self._database.close()
            if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                raise StudyError(
                    f"{folder} is in use by {holder}. Wait until it ends, or choose another "
                    "folder with --out."
                ) from error
            raise StudyError(
                f"Cannot lock {self._path}: {error}. It holds no results: if the disk is not "
                "full and no other run uses the folder, delete it and try again."
            ) from error

    def _take(self) -> str:
        self._database.execute("BEGIN IMMEDIATE")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS holder (id INTEGER PRIMARY KEY, who TEXT NOT NULL)"
        )
        row = self._database.execute("SELECT who FROM holder").fetchone()
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
