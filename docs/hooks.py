"""Pages that are made when the site is built: command line, studies, notebooks, changes."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, get_origin

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]

#: A formula in the Markdown of a notebook; code is found first, and left as it is.
MATHS = re.compile(
    r"(?P<code>```.*?```|`[^`\n]+`)|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$", re.DOTALL
)


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    pages = {
        "cli.md": command_line(),
        "studies.md": studies(),
        "atlas.md": atlas(),
        "api.md": reference(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }
    lectures = sorted((ROOT / "notebooks").glob("*.ipynb"))
    pages["course.md"] = course(lectures)
    pages |= {f"{path.stem}.md": notebook(path) for path in lectures}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """Take links to files of the repository, which are not part of the site, out of a page."""
    return re.sub(r"\[([^\]]+)\]\(demos/[^)]+\)", r"\1", markdown)


def command_line() -> str:
    """Every subcommand with its options, as ``--help`` prints them."""
    from invariance.cli._main import build_parser

    parser = build_parser()
    parts = ["# Command line", _help(parser)]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                parts += [f"## invariance {name}", _help(command)]
    return "\n\n".join(parts)


def _help(parser: argparse.ArgumentParser) -> str:
    return f"```text\n{parser.format_help()}```"


#: What most people need, before the packages one by one.
FRONT_DOOR = (
    "load_task", "fit", "fit_ensemble", "symmetries", "check", "measure", "Report", "Estimate",
    "Task", "Fit", "canonicalize", "gauge_fixed", "same_orbit",
)  # fmt: skip

PACKAGES = (
    "transforms", "measures", "testing", "curvature", "weakness", "symmetry", "models", "training",
    "data", "checking", "outcomes", "stats", "studies",
)  # fmt: skip


def reference() -> str:
    """Every function and class that a package promises in its ``__all__``."""
    parts = [
        "# Python",
        "Import the package as `inv`. Everything here is public; files with an underscore are not.",
        "## The front door",
        *(f"::: invariance.{name}" for name in FRONT_DOOR),
    ]
    for package in PACKAGES:
        module = import_module(f"invariance.{package}")
        parts += [f"## invariance.{package}", (module.__doc__ or "").strip().split("\n\n")[0]]
        parts += [
            f"::: invariance.{package}.{name}"
            for name in sorted(module.__all__)
            if callable(getattr(module, name)) and not get_origin(getattr(module, name))
        ]
    return "\n\n".join(parts)


def atlas() -> str:
    """Measures by kinds of map, as ``invariance atlas`` derives it."""
    from invariance.cli._main import main

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "atlas.md"
        with contextlib.redirect_stdout(io.StringIO()):
            main(["atlas", "--markdown", str(path)])
        return path.read_text(encoding="utf-8")


def studies() -> str:
    """Every committed study with all its claims and the command that repeats it."""
    parts = [
        "# Studies",
        "Each study trains the networks of a published claim, measures them as trained and after "
        "a function-preserving rescaling, and judges the claim by a region that was fixed before "
        "the number was seen. Brackets are 95 % intervals.",
    ]
    for path in sorted((ROOT / "demos" / "results").glob("*/results.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        parts += [f"## {found['title']}", f"{found['paper']}. {found['question']}"]
        parts.append(f"Repeat it: `{found['command']}`")
        lines = ["| claim | paper | ours | n | verdict |", "|---|---|---|---|---|"]
        for claim in found["claims"]:
            words = (
                claim["statement"],
                _number(claim["paper"]),
                _interval(claim),
                str(claim["n"]),
                f"**{claim['verdict']}**",
            )
            lines.append("| " + " | ".join(word.replace("|", "\\|") for word in words) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _interval(claim: dict[str, Any]) -> str:
    if claim.get("exact"):
        return f"{_number(claim['value'])} (exact)"
    if claim["ci_low"] is None:
        return _number(claim["value"])
    return f"{_number(claim['value'])} [{_number(claim['ci_low'])}, {_number(claim['ci_high'])}]"


def course(lectures: list[Path]) -> str:
    """The list of lectures."""
    lines = [
        "# The course",
        "Notebooks in the order of a lecture series; each runs in under two minutes on two cores "
        "(`pip install invariance jupyter`), and the suite runs every cell.",
    ]
    for path in lectures:
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        title = first.splitlines()[0].lstrip("# ")
        lines.append(f"* [{title}]({path.stem}.md)")
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:])


def notebook(path: Path) -> str:
    """A notebook in its committed form: text, code, and what it printed and drew."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source = MATHS.sub(_mathml, source)
            parts.append(re.sub(r"\]\((?!https?:|#|data:)[^)]*\)", "]", source))
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [text for output in cell.get("outputs", []) if (text := _output(output))]
    return "\n\n".join(parts)


def _mathml(found: re.Match[str]) -> str:
    """Typeset a formula in MathML, which browsers draw without a script from elsewhere."""
    if found["code"]:
        return found["code"]
    display = "block" if found["block"] else "inline"
    return convert(found["block"] or found["inline"], display=display)


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        image = "".join(data["image/png"]).strip()
        return f"![what the cell above drew](data:image/png;base64,{image})"
    if "text/html" in data and "<svg" in "".join(data["text/html"]):
        return f"<div>\n{''.join(data['text/html']).strip()}\n</div>"  # a block, left as it is
    text = "".join(output.get("text") or data.get("text/plain", ""))
    return f"```text\n{text.rstrip()}\n```" if text else ""
