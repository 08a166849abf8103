"""``invariance atlas``, ``prove`` and ``explain``: what is known, and why."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from invariance.cli._targets import require_target


def add_parser(subparsers: Any) -> None:
    """Add the subcommands to the command line."""
    atlas = subparsers.add_parser(
        "atlas", help="every measure under every kind of map, with the evidence of each cell"
    )
    for kind in ("json", "html", "markdown", "latex"):
        atlas.add_argument(f"--{kind}", metavar="PATH", help=f"write it as {kind} to PATH")
    atlas.set_defaults(run=show_atlas)
    prove = subparsers.add_parser("prove", help="derive what a measure declares")
    prove.add_argument("measure", metavar="MEASURE")
    prove.set_defaults(run=show_proof)
    explain = subparsers.add_parser("explain", help="explain a measure, transform or kind of map")
    explain.add_argument("name", metavar="NAME")
    explain.set_defaults(run=show_explanation)


def show_atlas(options: argparse.Namespace) -> int:
    """Write the atlas to the files asked for, or print it as Markdown."""
    import json
    from pathlib import Path

    from invariance import atlas
    from invariance.core._files import write_atomically

    writers = {
        "json": lambda made: json.dumps(made.to_dict(), indent=1) + "\n",
        "html": atlas.to_html,
        "markdown": atlas.to_markdown,
        "latex": atlas.to_latex,
    }
    wanted = {kind: path for kind in writers if (path := getattr(options, kind))}
    for path in wanted.values():
        require_target(path)
    made = atlas.build()
    for kind, path in wanted.items():
        write_atomically(Path(path), writers[kind](made).encode())
    if not wanted:
        sys.stdout.write(atlas.to_markdown(made))
    return 0


def show_proof(options: argparse.Namespace) -> int:
    """Print the derivation of one measure's declarations."""
    import invariance.measures  # noqa: F401 - importing fills the registry
    from invariance.atlas import derivation

    sys.stdout.write(derivation(options.measure))
    return 0


def show_explanation(options: argparse.Namespace) -> int:
    """Print what there is to know about one name."""
    from invariance.atlas import explain

    sys.stdout.write(explain(options.name))
    return 0
