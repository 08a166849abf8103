"""Runs a study again and again, each time in a fresh process that is killed where it is told.

Started once, because importing torch takes seconds; each run is a fork that has imported
everything and done nothing. Reads one JSON line a run from standard input:

    {"out": FOLDER, "event": K}     SIGKILL at the K-th event
    {"out": FOLDER, "torn": K}      the same, and what was being written is half there
    {"out": FOLDER, "after": S}     SIGKILL after S seconds
    {"out": FOLDER}                 not killed

With ``"quick": true`` it is the quick version, with ``"unseen": N`` it is measured another
way. An event is a moment before or after a file is
synced or renamed, or before a statement of SQL. Answers with one line:
``{"killed": bool, "code": int, "events": int, "seconds": float}``.
"""

import json
import os
import signal
import sqlite3
import struct
import sys
import time
from pathlib import Path

import torch
from tiny_study import STUDY

from invariance.studies import run_study

torch.set_num_threads(1)


class Killer:
    """Counts events and ends the process at one of them."""

    def __init__(self, order):
        self.order, self.count = order, 0
        fsync, replace, connect = os.fsync, os.replace, sqlite3.connect

        def watched_fsync(handle):
            self.event(handle)
            fsync(handle)
            self.event()

        def watched_replace(source, target):
            self.event()
            replace(source, target)
            self.event()

        def watched_connect(*arguments, **options):
            connection = connect(*arguments, **options)
            connection.set_trace_callback(lambda statement: self.event())
            return connection

        os.fsync, os.replace, sqlite3.connect = watched_fsync, watched_replace, watched_connect

    def event(self, handle=None):
        self.count += 1
        if self.count == self.order.get("event"):
            os.kill(os.getpid(), signal.SIGKILL)
        # A torn write can be told from a whole one only before the sync.
        if handle is not None and self.count >= self.order.get("torn", 1e9):
            try:
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
            except OSError:
                return  # a folder: wait for the next file
            os.kill(os.getpid(), signal.SIGKILL)


def child(order, report):
    killer = Killer(order)
    options = STUDY.quick if order.get("quick") else STUDY.full
    options = options.but(n_unseen=order.get("unseen"))
    run_study(STUDY, options, out=Path(order["out"]), resume=True, workers=1)
    os.write(report, struct.pack("q", killer.count))


def serve(order):
    began = time.monotonic()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(order, write)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    if "after" in order:
        time.sleep(order["after"])
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    seconds = time.monotonic() - began
    counted = os.read(read, 8)
    os.close(read)
    return {
        "killed": os.WIFSIGNALED(status),
        "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "events": struct.unpack("q", counted)[0] if counted else None,
        "seconds": seconds,
    }


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(serve(json.loads(line))) + "\n")
        sys.stdout.flush()
