"""Batches handed to a Dask cluster.

Each batch is one task with one torch thread, so the results are those of this machine, bit
for bit, on processors of the same kind and with ``MKL_CBWR=AUTO`` in the workers' environment,
which is theirs to set (see :mod:`invariance.core._reproducible`; the records say whether it
was). Whoever reaches a scheduler's port can run code on its machines, and what its workers
answer is unpickled here: it belongs in a network that one trusts, or behind TLS with
certificates of one's own. A worker that is lost costs the batches that it held: the scheduler
hands them to others (as often as its ``allowed-failures`` says).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pickle
import queue
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invariance.core._errors import InvarianceError, StudyError
from invariance.studies._jobs import Job, Result, run_job
from invariance.studies.executors._base import Done, Event, Told, Work

if TYPE_CHECKING:
    from invariance.studies._study import Study

#: Seconds between two reports of progress from one worker.
_PACE = 1.0

#: Errors of a batch that speak of the scheduler.
_GONE = {"CancelledError", "FutureCancelledError", "CommClosedError"}

#: Dask's names of the three files.
_TLS = ("tls_ca_file", "tls_client_cert", "tls_client_key")

#: Seconds to wait for the scheduler, and for its first worker.
_PATIENCE = 60


class Cluster:
    """Hands jobs to the workers of a Dask scheduler."""

    def __init__(self, address: str, study: Study, tls: Sequence[Path | str] = ()) -> None:
        """Connect."""
        try:
            from distributed import Client, Security
        except ImportError as error:
            raise StudyError(
                '--scheduler needs Dask. Install it with pip install "invariance[cluster]", '
                "here and on the workers."
            ) from error
        connect: Any = Client  # Dask has no types
        files = dict(zip(_TLS, (str(path) for path in tls), strict=bool(tls)))
        known: Any = Security
        security = known(require_encryption=True, **files) if files else None
        self.name = f"Dask at {address}"
        try:
            self._client: Any = connect(
                address, timeout=_PATIENCE, set_as_default=False, security=security
            )
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise StudyError(
                f"No Dask scheduler answers at {address!r} ({error}). Start one with "
                "'dask scheduler', and workers with 'dask worker ADDRESS --nthreads 1'."
            ) from error
        try:
            with _answered("greeting the workers"):
                try:
                    self._client.wait_for_workers(1, timeout=_PATIENCE)
                except TimeoutError as error:
                    raise StudyError(
                        f"The scheduler at {address} has no workers. Start some with "
                        f"'dask worker {address} --nthreads 1'."
                    ) from error
                self._require_same_version(address)
        except BaseException:
            self._client.close()
            raise
        _send_by_value(study)
        self._events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._topic = f"invariance-{uuid.uuid4().hex}"
        self._client.subscribe_topic(self._topic, self._heard)
        self._works: dict[str, tuple[Work, Any]] = {}

    def room(self) -> bool:
        """Whether some worker has nothing to do: one job more than there are threads."""
        with _answered("handing out batches"):
            return len(self._works) <= int(sum(self._client.nthreads().values()))

    def submit(self, work: Work) -> None:
        """Hand a job to the scheduler."""
        key = f"study-{uuid.uuid4().hex}"
        # Packed here: what cannot be unpacked there is then an error of the task, not of the
        # connection, and functions of the user's own module travel by value.
        job: bytes = _cloudpickle().dumps(work.load())
        with _answered(work.label):
            future = self._client.submit(_run, job, key, self._topic, key=key, pure=False)
        self._works[key] = (work, future)
        future.add_done_callback(lambda finished: self._events.put(("done", finished.key)))

    def wait(self) -> list[Event]:
        """Wait until a batch is finished or says how far it is."""
        kind, content = self._events.get()
        if kind == "told":
            key, share = content
            return [Told(self._works[key][0], share)] if key in self._works else []
        work, future = self._works.pop(content)
        try:
            result: Result = future.result()
        except Exception as error:
            if type(error).__name__ == "KilledWorker":
                raise StudyError(
                    f"Several workers died one after another while {work.label}: {error} "
                    "Usually their memory is too small. What is recorded is safe: go on with "
                    "--resume."
                ) from error
            if type(error).__name__ in _GONE:
                raise _gone(work.label) from error
            if isinstance(error, ModuleNotFoundError):
                raise StudyError(
                    f"A worker cannot import {error.name!r}, which the study needs. Install it "
                    "there, or put its folder on the workers' PYTHONPATH."
                ) from error
            raise
        finally:
            future.release()
        return [Done(work, result)]

    def close(self) -> None:
        """Drop what is unfinished and disconnect."""
        futures = [future for _, future in self._works.values()]
        if futures:
            self._client.cancel(futures, force=True)
        self._client.close()

    def _require_same_version(self, address: str) -> None:
        from invariance.core._version import __version__

        found = self._client.run(importlib.metadata.version, "invariance", on_error="return")
        for worker, version in found.items():
            if version != __version__:
                said = "is not installed" if isinstance(version, Exception) else f"is {version}"
                raise StudyError(
                    f"On worker {worker} of {address} invariance {said}; here it is "
                    f"{__version__}. Install the same version everywhere."
                )

    def _heard(self, event: tuple[float, Any]) -> None:
        self._events.put(("told", event[1]))


@contextmanager
def _answered(what: str) -> Iterator[None]:
    """Tell one story of the many errors that Dask has for a scheduler that is gone."""
    try:
        yield
    except InvarianceError:
        raise
    except (OSError, RuntimeError) as error:
        raise _gone(what) from error


def _gone(what: str) -> StudyError:
    return StudyError(
        f"The scheduler is gone, or dropped the batch, while {what}. What is recorded is safe: "
        "go on with --resume."
    )


def _run(packed: bytes, key: str, topic: str) -> Result:
    """Do a packed job on a worker of the cluster."""
    from distributed import get_worker

    job: Job = pickle.loads(packed)
    worker = get_worker()
    last = 0.0

    def tell(share: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PACE:
            last = now
            worker.log_event(topic, (key, float(share)))

    return run_job(job, tell)


def _send_by_value(study: Study) -> None:
    """Let workers have the user's own study without its file."""
    for function in (study.train, study.measure):
        module = sys.modules.get(function.__module__)
        name = function.__module__.partition(".")[0]
        if module is not None and name not in {"invariance", "__main__"}:
            _cloudpickle().register_pickle_by_value(module)


def _cloudpickle() -> Any:
    """Import what Dask itself sends functions with."""
    return importlib.import_module("cloudpickle")
