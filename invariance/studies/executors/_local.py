"""A pool of processes on this machine.

Made of processes and pipes rather than of ``ProcessPoolExecutor``: which batch a lost worker
held is known, progress comes through the same pipe, workers can be ended at once, and they
end themselves when the parent is killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from invariance.core._errors import StudyError, UsageError
from invariance.core._foreign import account, where
from invariance.core._reproducible import VARIABLE, ask_for_reproducible_kernels
from invariance.studies._jobs import ONE_THREAD, Job, limit_threads, run_job
from invariance.studies.executors._base import Done, Event, Told, Work
from invariance.weakness.separability._threads import available_cores

#: Seconds between two reports of progress from one worker.
_PACE = 0.2


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    work: Work | None = None


class Pool:
    """Processes that each run one job at a time."""

    def __init__(self, workers: int) -> None:
        """Start the processes."""
        self.name = f"{workers} processes"
        # Spawned, not forked: a fork of a process with threads (torch, progress bar) can hang.
        context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._failure: Exception | None = None
        before = {name: os.environ.get(name) for name in (*ONE_THREAD, VARIABLE)}
        # Libraries read these when they are loaded, which in a child is before our code runs.
        os.environ.update(ONE_THREAD)
        ask_for_reproducible_kernels()
        try:
            with _signals_held():
                for index in range(workers):
                    ours, theirs = context.Pipe()
                    process = context.Process(
                        target=_serve, args=(theirs,), name=f"study-worker-{index}", daemon=True
                    )
                    process.start()
                    theirs.close()
                    self._workers.append(_Worker(process, ours))
        except OSError as error:
            self.close()
            raise StudyError(
                f"This machine allows no further process ({error.strerror or error}): "
                f"{len(self._workers)} of {workers} were started. Run with fewer --workers, or "
                "raise the limit (ulimit -u, ulimit -n)."
            ) from error
        except BaseException:
            self.close()
            raise
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def room(self) -> bool:
        """Whether a worker is idle."""
        return any(worker.work is None for worker in self._workers)

    def submit(self, work: Work) -> None:
        """Hand a job to an idle worker."""
        worker = next(worker for worker in self._workers if worker.work is None)
        job = work.load()
        require_portable(job)
        worker.work = work
        try:
            worker.pipe.send(job)
        except OSError as error:
            raise _lost(worker) from error

    def wait(self) -> list[Event]:
        """Wait for a message of any worker."""
        if self._failure is not None:
            raise self._failure
        ready = wait([worker.pipe for worker in self._workers if worker.work is not None])
        events: list[Event] = []
        for worker in self._workers:
            if worker.pipe not in ready:
                continue
            try:
                kind, content = worker.pipe.recv()
            except (EOFError, OSError):
                kind, content = "failed", _lost(worker)
            work = worker.work
            assert work is not None
            if kind == "told":
                events.append(Told(work, content))
            elif kind == "done":
                worker.work = None
                events.append(Done(work, content))
            else:
                self._failure = content
        if self._failure is not None and not events:
            raise self._failure
        return events  # what came together with a failure is kept first

    def close(self) -> None:
        """End the processes, at once."""
        for worker in self._workers:
            worker.process.kill()  # they write nothing: there is nothing to lose
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()


def usable_cores(limits: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many processes can compute at once."""
    cores = available_cores()
    try:
        quota, period = limits.read_text(encoding="ascii").split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # not in a container, or not Linux
        return cores


def require_portable(job: Job) -> None:
    """Refuse a study whose functions other processes could not find."""
    try:
        pickle.dumps(job.function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"The study's function {job.function!r} cannot be sent to other processes ({error}). "
            "Define it at the top level of a module, or run with --workers 1."
        ) from error


def _lost(worker: _Worker) -> StudyError:
    worker.process.join(timeout=5)
    code = worker.process.exitcode
    how = f"exit code {code}"
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            how = signal.Signals(-code).name
    label = worker.work.label if worker.work else "idle"
    if how == "SIGKILL":
        why, remedy = "Usually that means that memory ran out. ", ", with fewer --workers"
    else:
        why, remedy = "", " when the reason, which is usually printed above, is put right"
    return StudyError(
        f"A worker process died ({how}) while {label}. {why}What is recorded is safe: go on "
        f"with --resume{remedy}."
    )


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Start processes to which Ctrl-C means nothing from their first instruction on.

    They inherit the mask. The parent gets a Ctrl-C of meanwhile as soon as this ends.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection) -> None:
    """Run jobs until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    limit_threads()
    while True:
        message: tuple[str, Any]
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        except BaseException as error:  # the study's module can be imported there, not here
            message = ("failed", StudyError(f"A worker process met a study that {account(error)}."))
        else:
            try:
                message = ("done", run_job(job, _Teller(pipe)))
            except Exception as error:
                message = ("failed", _portable(error, job))
        with contextlib.suppress(OSError):
            pipe.send(message)


class _Teller:
    """Sends progress, not too often."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._last = 0.0

    def __call__(self, share: float) -> None:
        now = time.monotonic()
        if now - self._last >= _PACE:
            self._last = now
            self._pipe.send(("told", float(share)))


def _portable(error: Exception, job: Job) -> Exception:
    """Return the error with its traceback as a note, in a form that can be sent."""
    import traceback

    error.add_note(
        f"In a worker process, {job.describe()}{where(error)}:\n{traceback.format_exc()}"
    )
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error class of the user's, of any shape
        return StudyError(f"{type(error).__name__} while {job.describe()}: {error}")
    return error


def _end_with_parent() -> None:
    """End this process when its parent is gone, even in the middle of a long batch."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
