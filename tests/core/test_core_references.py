"""Catches: a docstring that refers to what no longer exists or cannot be found from there."""

import ast
import builtins
import importlib
import re
from pathlib import Path

import invariance

ROOT = Path(invariance.__file__).parent
ROLE = re.compile(r":(?:class|func|mod|meth|data|attr|exc|obj|const):`~?([\w.]+)(?:\(\))?`")


def reach(start, parts):
    """Whether attributes lead from an object, or an annotated field ends the way."""
    for number, part in enumerate(parts):
        fields = getattr(start, "__annotations__", {})
        if not hasattr(start, part):
            return part in fields and number == len(parts) - 1
        start = getattr(start, part)
    return True


def resolves(reference, module, classes):
    parts = reference.split(".")
    if parts[0] == "invariance":
        for cut in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            return reach(found, parts[cut:])
    if parts[0] in ("torch", "numpy", "scipy", "dataclasses"):
        return reach(importlib.import_module(parts[0]), parts[1:])
    return any(reach(start, parts) for start in (module, builtins, *classes))


def dangling(text, module):
    classes = [
        getattr(module, node.name)
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef) and hasattr(module, node.name)
    ]
    return [name for name in ROLE.findall(text) if not resolves(name, module, classes)]


def test_every_reference_in_a_docstring_leads_somewhere():
    wrong = {}
    for path in sorted(ROOT.rglob("*.py")):
        if path.name == "__main__.py":
            continue
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
        if found := dangling(path.read_text(encoding="utf-8"), module):
            wrong["/".join(parts)] = found
    assert wrong == {}


def test_a_reference_to_nothing_is_seen():
    text = '"""See :func:`gone`, :class:`invariance.core.Gone` and :func:`reach`."""'
    here = importlib.import_module(__name__)
    assert dangling(text, here) == ["gone", "invariance.core.Gone"]
