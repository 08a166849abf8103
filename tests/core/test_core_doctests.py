"""Every example in a docstring gives what it shows, and every public function shows one."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

import invariance

ROOT = Path(invariance.__file__).parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL

WITH_EXAMPLES = sorted(
    ".".join(("invariance", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    )
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
#: Sub-packages whose every exported function shows an example. More join; none leaves.
COMPLETE = (
    "stats", "outcomes", "models", "data", "training", "checking", "curvature", "measures",
    "transforms",
)  # fmt: skip


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_give_what_they_show(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=FLAGS)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", COMPLETE)
def test_every_public_function_shows_an_example(name):
    package = importlib.import_module(f"invariance.{name}")
    defined = {
        node.name: ast.get_docstring(node) or ""
        for path in (ROOT / name).rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    public = [exported for exported in package.__all__ if exported in defined]
    assert public
    assert [exported for exported in public if ">>> " not in defined[exported]] == []
