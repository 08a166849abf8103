"""Jobs one after another in this process: for one worker, or for a GPU."""

from __future__ import annotations

from collections.abc import Callable

from invariance.studies._jobs import run_job
from invariance.studies.executors._base import Done, Event, Told, Work


class Inline:
    """Runs each job when it is waited for."""

    name = "this process"

    def __init__(self, told: Callable[[Told], object]) -> None:
        """Prepare."""
        self._told = told
        self._work: Work | None = None

    def room(self) -> bool:
        """Whether another job can be taken now."""
        return self._work is None

    def submit(self, work: Work) -> None:
        """Take a job."""
        self._work = work

    def wait(self) -> list[Event]:
        """Run the job."""
        work, self._work = self._work, None
        if work is None:
            return []
        return [Done(work, run_job(work.load(), lambda share: self._told(Told(work, share))))]

    def close(self) -> None:
        """Nothing to free."""
