"""The ``invariance`` command: one file a subcommand, listed in ``COMMANDS``.

Importing this module is cheap: torch is imported only when a command runs.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import NoReturn

from invariance.cli import _atlas as atlas
from invariance.cli import _check as check
from invariance.cli import _listing as listing
from invariance.cli import _report as report
from invariance.cli import _studies as studies
from invariance.cli import _study as study
from invariance.cli._streams import Streams
from invariance.core._foreign import no_sudden_end
from invariance.core._reproducible import ask_for_reproducible_kernels

#: Modules that each offer ``add_parser(subparsers)``; add a subcommand here.
COMMANDS = (report, check, study, studies, listing, atlas)

USAGE_ERROR = 2
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Names the nearest choice to one that does not exist."""

    def error(self, message: str) -> NoReturn:
        known = re.search(r"invalid choice: '?([^' ]*)'? \(choose from (.*)\)", message)
        if known:
            close = get_close_matches(known[1], re.findall(r"[\w-]+", known[2]), n=1)
            message += f". Did you mean {close[0]!r}?" if close else ""
        super().error(message)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser with all subcommands."""
    parser = _Parser(
        prog="invariance",
        description=(
            "Rescale networks without changing their function, and see which measures of "
            "generalization move."
        ),
    )
    parser.add_argument("--version", action="version", version=f"invariance {_version()}")
    with suppress(ImportError):  # the extra "completion"
        import shtab

        shtab.add_argument_to(parser, "--print-completion", help="print a shell's completion")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    with Streams() as streams:
        code = _run(arguments)
    return code or (USAGE_ERROR if streams.problem else 0)


def _run(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    ask_for_reproducible_kernels()  # before a command loads torch
    try:
        from invariance.core._files import working_folder

        working_folder()  # every command imports, reads or writes relative to it
        with no_sudden_end():  # a user's module may call os._exit(0)
            code: int = options.run(options)
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted; files already written are whole.\n")
        return INTERRUPTED
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        from invariance.core._text import printable

        sys.stderr.write(printable(f"invariance: {sentence}\n"))
        return USAGE_ERROR
    return code


def _sentence(error: Exception) -> str | None:
    """Say what stopped a command, if it is not a defect of this program."""
    from invariance.core._errors import InvarianceError

    if isinstance(error, InvarianceError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"Out of memory{f' ({error})' if str(error) else ''}. Ask for less at a time."
    if "can't start new thread" in str(error) or isinstance(error, BlockingIOError):
        return (
            f"This machine allows no further thread or process ({error}). Raise the limit "
            "(ulimit -u), or set OMP_NUM_THREADS=1."
        )
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename is not None else ""
        return f"The system refused: {error.strerror or error}{where}."
    return None


def _version() -> str:
    from invariance.core._version import __version__

    return __version__
