"""Catches: a code block of the README or the site that does not run as it stands."""

import builtins
import inspect
import json
import re
import sys
from pathlib import Path

import pytest

import invariance as inv
from invariance.cells import CellRow
from invariance.reporting._words import change, moved, number, word
from invariance.testing._networks import Networks

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").glob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- raises: (?P<raises>\w+) -->\n)?^```python\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
RUN = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


def test_there_are_snippets():
    assert {page.name for page in RUN} >= {"README.md", "tutorial.md", "how-to.md", "index.md"}


def run(code, namespace):
    """Run a block; what it defines as a test gets the fixtures that the plugin would give."""
    exec(code, namespace)
    for name in [name for name in namespace if name.startswith("test_")]:
        test = namespace.pop(name)
        given = {"invariance_networks": Networks(), "transform": inv.transforms.Permutation()}
        test(**{key: given[key] for key in inspect.signature(test).parameters})


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    namespace = {"__name__": "snippets"}
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        line = text[: block.start("code")].count("\n") + 1
        code = compile("\n" * (line - 1) + block["code"], str(page), "exec")
        if block["raises"]:
            with pytest.raises(getattr(builtins, block["raises"])):
                run(code, namespace)
        else:
            run(code, namespace)


def test_the_readme_is_short_and_breaks_no_link_on_a_package_index():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    links = re.findall(r"(!?)\[([^\]]*)\]\(([^)]+)\)", text)
    relative = [link for image, alt, link in links if "://" not in link and not (image and alt)]
    assert relative == []


def test_the_numbers_of_the_readme_are_those_of_the_committed_report():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    kept = json.loads((ROOT / "demos" / "results" / "report.json").read_text(encoding="utf-8"))
    rows = [CellRow(**row) for row in kept["rows"]]
    assert len(rows) == 10
    shown = text.split("```text\n")[1].split("```")[0]
    for row in rows:
        (line,) = [line for line in shown.splitlines() if line.split()[:1] == [row.measure]]
        factor = change(row) if moved(row) else "="
        expected = [row.measure, number(row.before), number(row.after), factor, *word(row).split()]
        assert line.split() == expected
    (trace,) = [row for row in rows if row.measure == "hessian_trace"]
    assert f"{trace.ratio:.4g} times" in text
