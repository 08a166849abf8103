"""One progress bar that any stage of a command can move."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

from invariance.core._text import printable


class PlainConsole(Console):
    """A console that shows control characters of what it prints instead of obeying them."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render, with pictures for control characters; see :func:`printable`."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


class Bar:
    """A context manager that can be called as ``bar(done, total, what)``.

    It draws on standard error, so that standard output holds the report alone, and
    disappears when the work is done.
    """

    def __init__(self, *, counted: bool = True) -> None:
        """Prepare a bar."""
        self._progress = Progress(
            TextColumn("{task.description:<46.46}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn() if counted else TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=PlainConsole(stderr=True),
            transient=True,
            speed_estimate_period=30 if counted else 3600,
        )
        self._task = self._progress.add_task("starting", total=None)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, done: float, total: float, what: str) -> None:
        """Show that ``done`` of ``total`` steps of ``what`` are finished."""
        self._progress.update(self._task, completed=done, total=total, description=what)


#: Width of a report that goes to a file or a pipe, where nobody has said how wide it is.
PIPE_WIDTH = 132

#: Widths that a table can be read in; outside them COLUMNS says nothing, and this many are taken.
WIDTHS, USUAL_WIDTH = range(20, 10_000), 80


def list_console() -> Console:
    """Return a console for standard output, as wide as COLUMNS or the terminal says."""
    console = PlainConsole()
    return console if console.width in WIDTHS else PlainConsole(width=USUAL_WIDTH)


def report_console() -> Console:
    """Return a console for standard output: as wide as the terminal, if it is one."""
    console = list_console()
    return console if console.is_terminal else PlainConsole(width=PIPE_WIDTH)
