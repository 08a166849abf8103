"""The arrows of the house: no circle between files, and folders import downwards only.

Lazy imports inside functions count too; imports under ``TYPE_CHECKING`` do not run and are
held to the order of folders alone.
"""

import ast
from pathlib import Path

import pytest

import invariance

ROOT = Path(invariance.__file__).parent

#: Folders from the ground up. A file may import from its own line and from lines above it.
ORDER = (
    "core",
    "data stats",
    "models symmetry",
    "training curvature transforms weakness",
    "outcomes measures",
    "cells",
    "reporting",
    "checking testing",
    "atlas",
    "studies",
    "papers",
    "cli",
)
LEVEL = {folder: level for level, line in enumerate(ORDER) for folder in line.split()}
FILES = {
    ".".join(("invariance", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in ROOT.rglob("*.py")
}


def imports_of(name, path):
    """``(imported file, line, whether it runs)`` of every import of this package in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}:{node.lineno} imports relatively"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name_given in targets:
            target = name_given
            if target.partition(".")[0] != "invariance":
                continue
            while target not in FILES:
                target = target.rpartition(".")[0]
            yield target, node.lineno, node not in typing_only


EDGES = {
    name: [edge for edge in imports_of(name, path) if edge[0] != name]
    for name, path in FILES.items()
}


def circles(graph):
    """Strongly connected components of more than one node (Tarjan 1972)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            component, stack[at:] = stack[at:], []
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_no_file_imports_itself_through_others():
    graph = {name: [to for to, _, runs in edges if runs] for name, edges in EDGES.items()}
    assert circles(graph) == []


def test_a_circle_would_be_seen():
    assert circles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [["a", "b", "c"]]


def test_every_folder_stands_in_the_order():
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == set(LEVEL)


@pytest.mark.parametrize("folder", sorted(LEVEL))
def test_folders_import_downwards(folder):
    wrong = []
    for name, edges in EDGES.items():
        if name.split(".")[1:2] != [folder]:
            continue
        for to, line, _ in edges:
            to_folder = to.split(".")[1] if "." in to else None
            if to_folder is None:
                wrong.append(f"{name}:{line} imports the package's root")
            elif to_folder != folder and LEVEL[to_folder] > LEVEL[folder]:
                wrong.append(f"{name}:{line} imports {to}, which stands above it")
    assert wrong == []


def test_modules_are_private_or_listed():
    """A file without an underscore is public: only what runs by ``python -m`` may be one."""
    public = {path.name for path in FILES.values() if not path.name.startswith("_")}
    assert public == set()
