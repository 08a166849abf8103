"""One batch of work as it travels to a worker, and what the worker does with it.

The same function runs in this process, in a pool and on a cluster, always with one torch
thread: the number of threads changes the order of sums, and with it the last bits.
Tensors travel as safetensors bytes; everything else is plain.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from invariance.core._errors import StudyError, UsageError
from invariance.core._foreign import account
from invariance.core._reproducible import reproducible_kernels
from invariance.studies._config import Config
from invariance.studies._plain_json import to_json
from invariance.studies._study import Context, Options, Study, Tell, Trained
from invariance.studies.store import _weights as weights

#: What keeps numerical libraries to one thread; read when they are loaded.
ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    ),
    "1",
)

#: What ``results.json`` says of every network; a measured value needs another name.
RESERVED = frozenset({"id", "recipe", "seed", "settings", "facts", "not_finite"})

JobKind = Literal["train", "measure"]


@dataclass(frozen=True)
class Job:
    """One batch to train or to measure.

    Attributes:
        kind: Which of the two.
        function: The study's function for it.
        configs: The networks.
        options: The study's options.
        device: Where to compute.
        kept: For measuring: each network's safetensors bytes and facts as JSON.
    """

    kind: JobKind
    function: Callable[..., Sequence[Any]]
    configs: tuple[Config, ...]
    options: Options
    device: str
    kept: tuple[tuple[bytes, str], ...] = ()

    def describe(self) -> str:
        """Return what is done, in words."""
        settings = dict(self.configs[0].settings)
        verb = "training" if self.kind == "train" else "measuring"
        shown = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        seeds = [config.seed for config in self.configs]
        return (
            f"{verb} {len(self.configs)} network(s) of {self.configs[0].recipe} "
            f"({shown}; seeds {min(seeds)} to {max(seeds)})"
        )


@dataclass(frozen=True)
class Result:
    """What came of a job.

    Attributes:
        trained: For training: each network's safetensors bytes and facts as JSON.
        measured: For measuring: what was found, as JSON.
        environment: Where it was done, as JSON.
        seconds: How long it took.
    """

    trained: tuple[tuple[bytes, str], ...]
    measured: tuple[str, ...]
    environment: str
    seconds: float


def run_job(job: Job, tell: Tell) -> Result:
    """Do one job in this process."""
    began = time.perf_counter()
    context = Context(job.options, job.device, tell)
    trained: list[tuple[bytes, str]] = []
    measured: list[str] = []
    with one_thread():
        try:
            if job.kind == "train":
                networks = job.function(job.configs, context)
            else:
                kept = [
                    Trained(weights.decode(content, "A network")[0], json.loads(facts))
                    for content, facts in job.kept
                ]
                found = job.function(job.configs, kept, context)
        except SystemExit as error:
            raise StudyError(
                f"The study {account(error)} while {job.describe()}. To stop a study, raise an "
                "error."
            ) from error
        if job.kind == "train":
            _require_one_each(job, networks)
            for config, network in zip(job.configs, networks, strict=True):
                facts = to_json(network.facts, f"facts of {config.id}")
                trained.append((weights.encode(network.tensors), facts))
        else:
            _require_one_each(job, found)
            for config, value in zip(job.configs, found, strict=True):
                _require_names(value, job)
                measured.append(to_json(value, f"measurement of {config.id}"))
        environment = to_json(describe_machine(job.device))
    seconds = time.perf_counter() - began
    return Result(tuple(trained), tuple(measured), environment, seconds)


def train_job(study: Study, configs: Sequence[Config], options: Options, device: str) -> Job:
    """Return the job of training ``configs``."""
    return Job("train", study.train, tuple(configs), options, device)


def describe_machine(device: str) -> dict[str, str]:
    """Return what can change the last digits of a number, beyond the code of a study."""
    import numpy
    import scipy

    from invariance.core._version import __version__

    kind = torch.device(device).type
    return {
        "invariance": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "device": torch.cuda.get_device_name(device) if kind == "cuda" else kind,
        "machine": platform.machine(),
        "processor": processor(),
        "kernels": "reproducible" if reproducible_kernels() else "as torch chooses",
    }


def processor() -> str:
    """Return the name of the processor: networks of the same seeds differ between processors."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


#: Jobs of one process run one after another: torch's threads and seeds are the process's.
_TURN = threading.Lock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, alone in this process, and restore the number after."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with _TURN:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with threadpool_limits(1):  # NumPy's and SciPy's linear algebra
                yield
        finally:
            torch.set_num_threads(before)


def limit_threads() -> None:
    """Keep every library of a process that is only a worker to one thread."""
    os.environ.update(ONE_THREAD)
    torch.set_num_threads(1)


def _require_names(value: Any, job: Job) -> None:
    if not isinstance(value, Mapping):
        raise UsageError(
            f"measure of a study must return mappings. Got {type(value).__name__}, "
            f"{job.describe()}."
        )
    if taken := sorted(set(value) & RESERVED):
        raise UsageError(
            f"A measured value cannot be called {taken[0]!r}: in results.json that is the "
            "network's own. Give it another name."
        )


def _require_one_each(job: Job, results: Sequence[Any]) -> None:
    if len(results) != len(job.configs):
        raise UsageError(
            f"{job.kind} of a study must return one result for each network. Got {len(results)} "
            f"for {len(job.configs)} networks, {job.describe()}."
        )
