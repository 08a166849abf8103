"""``invariance measures`` and ``invariance transforms``: what there is."""

from __future__ import annotations

import argparse
from string import ascii_uppercase
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the subcommands to the command line."""
    measures = subparsers.add_parser(
        "measures", help="list the measures and what theory declares for each"
    )
    measures.set_defaults(run=list_measures)
    transforms = subparsers.add_parser("transforms", help="list the function-preserving maps")
    transforms.set_defaults(run=list_transforms)


def list_measures(options: argparse.Namespace) -> int:
    """Print the master table: each measure's declaration under each group."""
    from rich.table import Table
    from rich.text import Text

    import invariance.measures  # noqa: F401 - importing fills the registry
    from invariance.cli._progress import list_console
    from invariance.core._groups import Group
    from invariance.core._text import printable
    from invariance.measures._registry import all_measures, get_measure

    # Letters for headings: a dozen names side by side fit no terminal of 80 columns.
    letters = dict(zip(ascii_uppercase, Group, strict=False))
    symbols = {"invariant": "=", "law": "L", "varies": "~"}
    table = Table(title="= invariant   L follows a stated law   ~ varies   ? not claimed")
    table.add_column("measure", no_wrap=True)
    for letter in letters:
        table.add_column(letter, justify="center", no_wrap=True)
    for name in all_measures():
        entry = get_measure(name)
        declared = [entry.declared([g]) if entry.claims([g]) else "" for g in Group]
        table.add_row(printable(name), *(symbols.get(word, "?") for word in declared))
    console = list_console()
    console.print(table)
    legend = (f"{letter}={group.value}" for letter, group in letters.items())
    console.print("under  " + "   ".join(legend), highlight=False)
    for name in all_measures():
        line = Text.assemble((printable(name), "bold"), f"  {printable(get_measure(name).summary)}")
        console.print(line, highlight=False)
    return 0


def list_transforms(options: argparse.Namespace) -> int:
    """Print each transform with its signature, group and summary."""
    import inspect

    from rich.table import Table

    from invariance import transforms
    from invariance.cli._progress import list_console
    from invariance.transforms._base import Transform

    table = Table()
    for heading in ("transform", "group", "what it does"):
        table.add_column(heading, overflow="fold")
    for name in transforms.__all__:
        found = getattr(transforms, name)
        if inspect.isclass(found) and issubclass(found, Transform) and found is not Transform:
            # A composition's groups are those of its parts.
            group = "any" if "groups" in vars(found) else str(getattr(found, "group", "any"))
            full = inspect.signature(found)
            bare = [p.replace(annotation=p.empty) for p in full.parameters.values()]
            signature = inspect.Signature(bare)
            summary = (inspect.getdoc(found) or "").split("\n", 1)[0]
            table.add_row(f"{name}{signature}", group, summary)
    list_console().print(table)
    return 0
