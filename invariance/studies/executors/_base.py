"""What the engine asks of an executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from invariance.studies._jobs import Job, Result


@dataclass(frozen=True, eq=False)
class Work:
    """A job that is not loaded yet.

    Attributes:
        load: Makes the job; called when a worker has room for it, so that the weights of
            thousands of networks are never in memory together.
        label: What it is, in words.
    """

    load: Callable[[], Job]
    label: str


@dataclass(frozen=True)
class Told:
    """A job has come some way.

    Attributes:
        work: The job.
        share: From 0 to 1.
    """

    work: Work
    share: float


@dataclass(frozen=True)
class Done:
    """A job is finished.

    Attributes:
        work: The job.
        result: What came of it.
    """

    work: Work
    result: Result


Event = Told | Done


class Executor(Protocol):
    """Runs jobs somewhere."""

    #: In words, for the report: "2 processes".
    name: str

    def room(self) -> bool:
        """Whether another job can be taken now."""
        ...

    def submit(self, work: Work) -> None:
        """Take a job; only when there is room."""
        ...

    def wait(self) -> list[Event]:
        """Wait until something happens with the jobs taken, and say what.

        Raises:
            Exception: What a job raised; or ``StudyError`` if a worker is gone.
        """
        ...

    def close(self) -> None:
        """Drop what is unfinished, at once, and free everything."""
        ...
