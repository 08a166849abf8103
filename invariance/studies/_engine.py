"""Runs a study: plans what is missing, has it trained and measured, keeps it, judges it."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from invariance.core._errors import UsageError
from invariance.studies._config import Config
from invariance.studies._jobs import Job, JobKind, Result, describe_machine, train_job
from invariance.studies._plan import Batch, batches_of, grid_of
from invariance.studies._study import Options, Study
from invariance.studies.executors._base import Done, Executor, Told, Work
from invariance.studies.report._output import StudyOutcome, write_outcome
from invariance.studies.store._store import Store, measurement_key

#: Takes (work done, all work, what is being done).
TellCost = Callable[[float, float, str], object]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a study; what is recorded is safe.

    Attributes:
        kept: Networks with a record.
        total: Networks of the study.
    """

    def __init__(self, kept: int, total: int) -> None:
        super().__init__(f"{kept} of {total} networks are kept")
        self.kept = kept
        self.total = total


def run_study(
    study: Study,
    options: Options | None = None,
    *,
    out: Path | str,
    resume: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    tls: Sequence[Path | str] = (),
    progress: TellCost | None = None,
    reference: str | None = None,
) -> StudyOutcome:
    """Run a study, or what is missing of it, and write its results.

    Args:
        study: The study.
        options: Its size; the paper's by default.
        out: The study's folder: records, weights, figures, ``results.json``, ``report.md``.
        resume: Whether to go on with what is in the folder.
        workers: Processes; one for each core by default. One means this process.
        scheduler: Address of a Dask scheduler to hand the batches to. Its machines run what
            is sent to them, and what they answer is unpickled here: in a trusted network only.
        tls: With a scheduler behind TLS, three PEM files: the authority's certificate, one's
            own, and its key.
        progress: Called as ``progress(done, total, what)``, in units of the study's cost.
        reference: What the study is called on the command line, if not by its name.

    Returns:
        Records, findings and the files written.

    Raises:
        UsageError: For options that make no sense.
        StudyError: If the folder cannot be used, or a worker is gone.
        Interrupted: On Ctrl-C.
    """
    from invariance.training._options import resolve_device

    options = study.full if options is None else options
    if workers is not None and workers < 1:
        raise UsageError(f"workers must be a positive integer. Got {workers}.")
    _check_tls(tls, scheduler)
    # A cluster's machines need not have this one's devices.
    wanted = "cpu" if scheduler and options.device == "auto" else options.device
    device = wanted if scheduler else str(resolve_device(wanted))
    configs = grid_of(study, options)
    began = time.monotonic()
    with Store(Path(out), study.name, resume=resume) as store:
        session = _Session(study, options, device, store, configs, progress or _silent)
        try:
            session.plan()
            session.run(lambda told: _executor(session, workers, scheduler, tls, told))
            session.say("analysing")
            return write_outcome(
                study,
                options,
                store,
                configs,
                session.key,
                environment=describe_machine("cpu" if scheduler else device),
                reference=reference or study.name,
                run={
                    "executor": session.executor,
                    "seconds": round(time.monotonic() - began, 3),
                    "job_seconds": {k: round(v, 3) for k, v in session.job_seconds.items()},
                },
            )
        except KeyboardInterrupt as error:
            raise Interrupted(session.kept(), len(configs)) from error


def _check_tls(tls: Sequence[Path | str], scheduler: str | None) -> None:
    """Refuse files that are no three, are not there, or have no use."""
    if not tls:
        return
    if isinstance(tls, (str, Path)) or len(tls) != 3:
        raise UsageError(f"tls takes three files: authority, certificate and key. Got {tls!r}.")
    if not (scheduler or "").startswith("tls://"):
        raise UsageError(f"tls needs a scheduler at tls://HOST:PORT. Got {scheduler!r}.")
    for path in tls:
        if not Path(path).is_file():
            raise UsageError(f"tls: there is no file {str(path)!r}.")


def _silent(done: float, total: float, what: str) -> None:
    """Say nothing."""


def _executor(
    session: _Session,
    workers: int | None,
    scheduler: str | None,
    tls: Sequence[Path | str],
    told: Callable[[Told], object],
) -> Executor:
    if scheduler:
        from invariance.studies.executors._cluster import Cluster

        return Cluster(scheduler, session.study, tls)
    from invariance.studies.executors._inline import Inline
    from invariance.studies.executors._local import Pool, usable_cores

    count = min(workers or usable_cores(), len(session.waiting))
    # One GPU is best used by one process.
    if count <= 1 or session.device != "cpu":
        return Inline(told)
    return Pool(count)


@dataclass(frozen=True, eq=False)
class _Part:
    """One batch in one of its two stages."""

    kind: JobKind
    batch: Batch


class _Session:
    """One run of a study on its store."""

    def __init__(
        self,
        study: Study,
        options: Options,
        device: str,
        store: Store,
        configs: Sequence[Config],
        progress: TellCost,
    ) -> None:
        self.study, self.options, self.device, self.store = study, options, device, store
        self.settings = {"study": study.name, "measurement": dict(study.measurement(options))}
        self.key = measurement_key(self.settings)
        self.executor = "nothing was missing"
        self.job_seconds = {"train": 0.0, "measure": 0.0}
        self._progress = progress
        self._configs = configs
        self._wanted = {config.id for config in configs}
        self._trained, self._measured = store.trained(), store.measured(self.key)
        self.waiting: deque[_Part] = deque()
        self._total = self._done = 0.0
        self._shares: dict[Work, float] = {}
        self._parts: dict[Work, _Part] = {}

    def plan(self) -> None:
        """Take over weights without a record, then find out what is missing."""
        self.store.start_run()
        for config in self._configs:
            if config.id not in self._trained and self.store.adopt(config):
                self._trained.add(config.id)
        batches = batches_of(self.study, self._configs)
        self._forget_lost_weights(batches)
        self.waiting = deque(
            _Part("train" if self._missing(batch, self._trained) else "measure", batch)
            for batch in batches
            if self._missing(batch, self._trained) or self._missing(batch, self._measured)
        )
        # The work of one stage of a batch is taken as half of the batch's.
        self._total = sum(
            part.batch.cost * (2 if part.kind == "train" else 1) for part in self.waiting
        )

    def run(self, make_executor: Callable[[Callable[[Told], object]], Executor]) -> None:
        """Do everything that is missing."""
        if not self.waiting:
            return
        executor = make_executor(self._told)
        self.executor = executor.name
        with contextlib.closing(executor):
            self.say()
            while self.waiting or self._parts:
                while self.waiting and executor.room():
                    part = self.waiting.popleft()
                    work = self._work(part)
                    self._parts[work] = part
                    self._shares[work] = 0.0
                    executor.submit(work)
                for event in executor.wait():
                    if isinstance(event, Told):
                        self._told(event)
                    else:
                        self._finish(event)

    def kept(self) -> int:
        """How many of the wanted networks have a record."""
        return len(self._trained & self._wanted)

    def say(self, what: str | None = None) -> None:
        """Report how far the run has come."""
        moving = sum(self._parts[work].batch.cost * s for work, s in self._shares.items())
        if what is None:
            kinds = sorted({part.kind for part in self._parts.values()}, reverse=True)
            verbs = " and ".join({"train": "training", "measure": "measuring"}[k] for k in kinds)
            done = len(self._measured & self._wanted)
            what = f"{verbs or 'starting'}: {done} of {len(self._wanted)} networks done"
        self._progress(self._done + moving, self._total, what)

    def _work(self, part: _Part) -> Work:
        def load() -> Job:
            if part.kind == "train":
                members = self._members(part.batch, self._trained)
                return train_job(self.study, members, self.options, self.device)
            members = self._members(part.batch, self._measured)
            kept = tuple(self.store.load(config) for config in members)
            function = self.study.measure
            return Job("measure", function, members, self.options, self.device, kept)

        verb = "training" if part.kind == "train" else "measuring"
        config = part.batch.configs[0]
        label = f"{verb} {len(part.batch.configs)} network(s) like {config.canonical()}"
        return Work(load, label)

    def _members(self, batch: Batch, done: set[str]) -> tuple[Config, ...]:
        """Which networks of a batch to work on.

        On a CPU with reproducible kernels a network does not depend on its batch mates to the
        last bit (to round-off without), so only what is missing is done. Elsewhere the kernels
        differ with the size of the batch: there the whole batch is done again, and only what
        was missing is kept.
        """
        if self.device != "cpu":
            return batch.configs
        return tuple(config for config in batch.configs if config.id not in done)

    def _finish(self, event: Done) -> None:
        part = self._parts.pop(event.work)
        del self._shares[event.work]
        self._keep(part, event.result)
        self._done += part.batch.cost
        self.job_seconds[part.kind] += event.result.seconds
        if part.kind == "train" and self._missing(part.batch, self._measured):
            # Ahead of further training: a study that cannot be measured says so early.
            self.waiting.appendleft(_Part("measure", part.batch))
        self.say()

    def _keep(self, part: _Part, result: Result) -> None:
        if part.kind == "train":
            members = self._members(part.batch, self._trained)
            for config, (content, facts) in zip(members, result.trained, strict=True):
                if config.id not in self._trained:
                    self.store.add_network(config, content, facts, result.environment)
                    self._trained.add(config.id)
                    self._measured.discard(config.id)
        else:
            members = self._members(part.batch, self._measured)
            for config, value in zip(members, result.measured, strict=True):
                if config.id not in self._measured:
                    self.store.add_measurement(config, self.settings, value, result.environment)
                    self._measured.add(config.id)

    def _told(self, event: Told) -> None:
        self._shares[event.work] = min(max(float(event.share), 0.0), 1.0)
        self.say()

    def _missing(self, batch: Batch, done: set[str]) -> bool:
        return any(config.id not in done for config in batch.configs)

    def _forget_lost_weights(self, batches: Sequence[Batch]) -> None:
        """Have networks trained anew whose weights are needed and were deleted."""
        for batch in batches:
            if self._missing(batch, self._measured):
                for config in self._members(batch, self._measured):
                    if not self.store.weights_path(config.id).exists():
                        self._trained.discard(config.id)
