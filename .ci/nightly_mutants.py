"""Breaks the library on purpose, one small change at a time, and sees whether a test notices.

    python .ci/nightly_mutants.py --sample 200 --seed 0 --results mutants.jsonl

A seed draws the sample from all changes of the folders below, from each by its share. Each is
made in a copy of the last commit; the tests of its folder run there, those first that name what
was changed, until one fails or the time is up. ``--results`` keeps every outcome: a run that was
stopped goes on.
``.ci/equivalent_mutants.txt`` lists changes that change nothing, each with its reason; they do
not count. At the end stand the killed share with its 95 % interval (Wilson's) and whatever
survived. Needs the test extra, and a system that can fork.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: Folder of the library to the folders of tests that hold it.
FOLDERS = {
    "cells": ("cells", "checking"),
    "checking": ("checking",),
    "testing": ("testing",),
    "measures": ("measures",),
    "curvature": ("curvature", "measures"),
    "symmetry": ("symmetry", "transforms"),
    "transforms": ("transforms",),
    "stats": ("stats",),
}

#: Exit code of a child whose pytest itself raised.
BROKEN = 70

SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of one file: the bytes from ``start`` to ``end`` become ``after``."""

    path: str
    owner: str
    line: int
    start: int
    end: int
    before: str
    after: str
    count: int

    @property
    def key(self) -> str:
        """A name that stays when lines move."""
        again = f" #{self.count}" if self.count else ""
        return f"{self.path} | {self.owner} | {self.before} -> {self.after}{again}"


def variants(node: ast.AST) -> Iterator[str]:  # noqa: PLR0912 - a kind of node, a branch
    """Yield what a node could be by mistake."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        right = node.comparators[0]
        if isinstance(right, ast.Constant) and isinstance(right.value, float):
            yield f"not ({ast.unparse(node)})"  # nothing is ever exactly at such a bound
        elif other := SWAPS.get(type(node.ops[0])):
            yield ast.unparse(ast.Compare(node.left, [other()], node.comparators))
    elif isinstance(node, ast.BoolOp):
        yield ast.unparse(ast.BoolOp(SWAPS[type(node.op)](), node.values))
    elif isinstance(node, ast.BinOp):
        text = isinstance(node.left, (ast.JoinedStr, ast.Constant)) and not isinstance(
            getattr(node.left, "value", ""), (int, float)
        )
        if not text and (other := SWAPS.get(type(node.op))):
            yield f"({ast.unparse(ast.BinOp(node.left, other(), node.right))})"
    elif isinstance(node, ast.UnaryOp):
        yield f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        value = node.value
        if isinstance(value, bool):
            yield repr(not value)
        else:
            yield repr(value + 1 if isinstance(value, int) else 2 * value + 0.5)
    elif isinstance(node, ast.IfExp):
        yield f"({ast.unparse(ast.IfExp(node.test, node.orelse, node.body))})"
    elif isinstance(node, ast.Return) and node.value is not None:
        if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield "return None"
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "pass"


def walk(node: ast.AST, owner: str = "module") -> Iterator[tuple[ast.AST, str]]:
    """Yield every node that may be changed: no annotation, message, narrowing or docstring."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "format_spec"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(
                child, (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)
            ):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            inside = owner
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                inside = child.name if owner == "module" else f"{owner}.{child.name}"
            yield child, inside
            yield from walk(child, inside)


def mutants_of(path: Path) -> list[Mutant]:
    """Return every change of one file."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: list[Mutant] = []
    seen: Counter[tuple[str, str, str]] = Counter()
    for node, owner in walk(ast.parse(source)):
        place, texts = node, list(variants(node))
        if isinstance(node, ast.If):
            if isinstance(node.test, (ast.Compare, ast.UnaryOp)):
                continue  # has a change of its own that says the same
            place, texts = node.test, [f"not ({ast.unparse(node.test)})"]
        for after in texts:
            start = starts[place.lineno - 1] + place.col_offset
            end = starts[place.end_lineno - 1] + place.end_col_offset
            before = " ".join(source[start:end].decode().split())
            what = (owner, before, after)
            where = str(path.relative_to(ROOT))
            found.append(Mutant(where, owner, place.lineno, start, end, before, after, seen[what]))
            seen[what] += 1
    unique = {(m.start, m.end, m.after): m for m in found}
    return list(unique.values())


def known_equivalents() -> dict[str, str]:
    """Return the keys of changes that change nothing, with their reasons."""
    lines = (Path(__file__).parent / "equivalent_mutants.txt").read_text().splitlines()
    pairs = [line.split(" :: ") for line in lines if line and not line.startswith("#")]
    return dict(pairs)


def tests_of(mutant: Mutant, tree: Path) -> list[str]:
    """Return the test files to run, those first that name what was changed."""
    folder = mutant.path.split("/")[1]
    files = [
        file for name in FOLDERS[folder] for file in sorted((tree / "tests" / name).glob("test_*"))
    ]
    words = {part for part in mutant.owner.split(".") if part != "module"}
    words |= {word.strip("_") for word in words} | {Path(mutant.path).stem.strip("_")}
    texts = {file: file.read_text() for file in files}
    return [str(f) for f in sorted(files, key=lambda f: -sum(word in texts[f] for word in words))]


def outcome(files: list[str], limit: int) -> str:
    """Run tests in a child of this process, which has everything but the library loaded."""
    child = os.fork()
    if child == 0:
        signal.alarm(limit)
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        quiet = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
        code = BROKEN
        try:
            code = int(sys.modules["pytest"].main([*quiet, *files]))
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "timeout" if os.WTERMSIG(status) == signal.SIGALRM else "killed"
    code = os.WEXITSTATUS(status)
    if code in (4, 5):  # pytest's usage error and "no tests"
        raise SystemExit(f"pytest found no tests to run ({code}): {files}")
    return "survived" if code == 0 else "killed"


def interval(killed: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    z, p = 1.96, killed / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return middle - half, middle + half


def draw(folders: list[str], count: int, seed: int) -> tuple[list[Mutant], int]:
    """Return a sample by folder without those known to be equivalent, and how many there are."""
    strata = [
        [
            mutant
            for path in sorted((ROOT / "invariance" / folder).rglob("*.py"))
            for mutant in mutants_of(path)
        ]
        for folder in folders
    ]
    total = sum(map(len, strata))
    equivalent = known_equivalents()
    chance = random.Random(seed)
    sample = []
    for stratum in strata:  # each folder by its share, so that a small one is not left to chance
        share = min(len(stratum), round(min(count, total) * len(stratum) / total))
        sample += chance.sample(stratum, share)
    chance.shuffle(sample)  # a run that is stopped has seen all folders
    return [mutant for mutant in sample if mutant.key not in equivalent], total


def checkout(folder: Path) -> None:
    """Copy the last commit, let this process import it, and load what its tests need anyway."""
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, stdout=-1, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    os.chdir(folder)
    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1", PYTHONPATH=str(folder))
    os.environ.setdefault("MKL_CBWR", "AUTO")
    sys.path.insert(0, str(folder))
    for name in ("pytest", "scipy.stats", "sklearn", "sympy", "torch"):
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)


def attempt(mutant: Mutant, tree: Path, limit: int) -> str:
    """Make a change, run its tests, undo it."""
    file = tree / mutant.path
    source = file.read_bytes()
    if source != (ROOT / mutant.path).read_bytes():
        raise SystemExit(f"{mutant.path} is not as committed: commit first.")
    file.write_bytes(source[: mutant.start] + mutant.after.encode() + source[mutant.end :])
    try:
        return outcome(tests_of(mutant, tree), limit)
    finally:
        file.write_bytes(source)


def main() -> int:
    """Draw, break, test, tell; 1 if the share is below ``--least``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", default=list(FOLDERS), help="of the library")
    parser.add_argument("--sample", type=int, default=200, help="changes in all (200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=600, help="seconds a change (600)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long")
    parser.add_argument("--results", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--least", type=float, default=0.9, help="share that must be killed")
    options = parser.parse_args()
    sample, drawn_from = draw(options.folders, options.sample, options.seed)
    results = options.results.resolve()
    done: dict[str, str] = {}
    if results.exists():
        entries = [json.loads(line) for line in results.read_text().splitlines()]
        done = {entry["key"]: entry["outcome"] for entry in entries}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        checkout(Path(folder))
        for mutant in sample:
            start = time.monotonic()
            if mutant.key in done or start - began > 60 * options.minutes:
                continue
            done[mutant.key] = attempt(mutant, Path(folder), options.limit)
            seconds = round(time.monotonic() - start, 1)
            with results.open("a") as out:
                entry = {"key": mutant.key, "outcome": done[mutant.key], "seconds": seconds}
                out.write(json.dumps(entry) + "\n")
            print(f"{done[mutant.key]:9s} {seconds:6.1f} s  {mutant.key}", flush=True)
        os.chdir(ROOT)
    tried = [mutant for mutant in sample if mutant.key in done]
    killed = sum(done[mutant.key] != "survived" for mutant in tried)
    if not tried:
        return 0
    low, high = interval(killed, len(tried))
    print(
        f"\n{killed} of {len(tried)} killed: {killed / len(tried):.1%} [{low:.1%}, {high:.1%}], "
        f"drawn from {drawn_from:,} changes of {', '.join(options.folders)}; "
        f"{sum(done[m.key] == 'timeout' for m in tried)} of them by the time limit."
    )
    for mutant in tried:
        if done[mutant.key] == "survived":
            print(f"survived: {mutant.key} (line {mutant.line})")
    return int(killed / len(tried) < options.least)


if __name__ == "__main__":
    raise SystemExit(main())
