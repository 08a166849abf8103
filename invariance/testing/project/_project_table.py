"""What a project wants checked: the ``[tool.invariance]`` table, and names of functions."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from invariance.core._errors import UsageError, unknown_name
from invariance.core._files import working_folder
from invariance.core._foreign import foreign
from invariance.core._groups import RESCALINGS, Group

#: What a plain function claims unless it is told otherwise: no rescaling moves it.
DEFAULT_GROUPS = tuple(group.value for group in Group if group in RESCALINGS)

#: Precisions that a claim can be checked in.
DTYPES = ("float64", "float32", "bfloat16", "float16")

#: Networks that a measure is checked on unless told otherwise.
DEFAULT_MODELS = ("mlp", "mlp_batch_norm")


@dataclass(frozen=True)
class Request:
    """One measure to be checked, as the table or the command line asks for it.

    Attributes:
        function: ``module:function``, ``path/to/file.py:function``, or a registered name.
        groups: Kinds of map that it claims to be invariant under; ``None`` for what it
            declares itself, or, for a plain function, all scalings.
        models: Names of the built-in networks, or ``module:function`` of a function that
            returns ``(model, x, y)``; ``None`` for the default ones.
        rtol: Relative tolerance.
        dtype: Precision; ``None`` for float64 and float32.
        seed: Seed of the random maps.
        examples: Random members of each kind.
    """

    function: str
    groups: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    rtol: float = 1e-6
    dtype: str | None = None
    seed: int = 0
    examples: int = 1


@dataclass(frozen=True)
class Project:
    """The ``[tool.invariance]`` table.

    Attributes:
        requests: The measures to check.
        defaults: Settings for measures that are named on the command line.
        snapshot: Where the recorded table is kept, if anywhere.
        root: Folder of the ``pyproject.toml``; ``None`` if there is no table.
    """

    requests: tuple[Request, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    snapshot: str | None = None
    root: Path | None = None


def read_project(start: Path, *, path: Path | None = None) -> Project:
    """Read the table from the nearest ``pyproject.toml`` at or above ``start``."""
    candidates = [path] if path else [folder / "pyproject.toml" for folder in _up(start)]
    for candidate in candidates:
        if path and not candidate.is_file():
            raise UsageError(f"There is no file {candidate}.")
        if not candidate.is_file():
            continue
        try:
            tool = tomllib.loads(candidate.read_text(encoding="utf-8")).get("tool", {})
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"{candidate} is no valid TOML: {error}.") from error
        if isinstance(tool, Mapping) and "invariance" in tool:
            return _project(tool["invariance"], candidate)
    return Project()


def _up(start: Path) -> list[Path]:
    folder = start.resolve()
    return [folder, *folder.parents]


def _project(table: Mapping[str, Any], source: Path) -> Project:
    where = f"[tool.invariance] in {source}"
    if not isinstance(table, Mapping):
        raise UsageError(f"{where} must be a table. Got {table!r}.")
    settings = [entry.name for entry in fields(Request) if entry.name != "function"]
    known = [*settings, "measures", "snapshot"]
    for key in table:
        if key not in known:
            raise UsageError(f"{where}: {unknown_name('key', key, known)}")
    defaults = checked_settings({k: table[k] for k in settings if k in table}, where)
    measures = table.get("measures", [])
    if not isinstance(measures, list):
        raise UsageError(f"{where}: measures must be a list. Got {measures!r}.")
    requests = []
    for entry in measures:
        given = {"function": entry} if isinstance(entry, str) else entry
        if not isinstance(given, Mapping) or not isinstance(given.get("function"), str):
            raise UsageError(
                f'{where}: a measure is "module:function" or {{function = "...", groups = [...]}}. '
                f"Got {entry!r}."
            )
        for key in given:
            if key not in [*settings, "function"]:
                raise UsageError(f"{where}: {unknown_name('key', key, [*settings, 'function'])}")
        own = checked_settings({k: v for k, v in given.items() if k != "function"}, where)
        requests.append(Request(given["function"], **{**defaults, **own}))
    snapshot = table.get("snapshot")
    if snapshot is not None and not (isinstance(snapshot, str) and snapshot.strip()):
        raise UsageError(f"{where}: snapshot must be a path. Got {snapshot!r}.")
    return Project(tuple(requests), defaults, snapshot, source.parent)


def checked_settings(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check settings of a request, before any work that needs them."""
    kinds: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
        "groups": ("a list of names, not empty", _names),
        "models": ("a list of names, not empty", _names),
        "rtol": ("a number in [0, 1)", lambda v: _number(v) and 0 <= v < 1),
        "dtype": ("a name such as 'float64'", lambda v: isinstance(v, str)),
        "seed": ("an integer", _integer),
        "examples": ("a positive integer", lambda v: _integer(v) and v > 0),
    }
    checked = {}
    for key, value in given.items():
        expected, ok = kinds[key]
        if not ok(value):
            raise UsageError(f"{where}: {key} must be {expected}. Got {value!r}.")
        checked[key] = tuple(value) if isinstance(value, list) else value
    for group in checked.get("groups", ()):
        if group not in list(Group):
            raise UsageError(f"{where}: {unknown_name('group', group, [g.value for g in Group])}")
    if checked.get("dtype", DTYPES[0]) not in DTYPES:
        raise UsageError(f"{where}: {unknown_name('dtype', checked['dtype'], DTYPES)}")
    return checked


def _names(value: Any) -> bool:
    listed = isinstance(value, (list, tuple)) and bool(value)
    return listed and all(isinstance(entry, str) for entry in value)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def load_function(target: str, *, root: Path | None = None) -> Callable[..., Any]:
    """Import ``module:function``, with the working directory and ``root`` on the path."""
    module_name, _, name = target.rpartition(":")
    if not module_name or not name:
        raise UsageError(
            f"Expected MODULE:FUNCTION, such as mypackage.measures:sharpness. Got {target!r}."
        )
    found: Any = load_module(module_name, root=root)
    for part in name.split("."):
        with foreign(f"Looking for {part!r} in {module_name!r}"):
            missing = not hasattr(found, part)
            public = [entry for entry in dir(found) if not entry.startswith("_")]
        if missing:
            raise UsageError(f"{module_name} has no {name!r}. {unknown_name('name', part, public)}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{target} is no function but a {type(found).__name__}.")
    function: Callable[..., Any] = found
    return function


def load_module(name: str, *, root: Path | None = None) -> Any:
    """Import a module of the user's, with the working directory and ``root`` on the path."""
    here = str(working_folder())
    for folder in (str(root) if root else None, here):
        if folder and folder not in sys.path:
            sys.path.insert(0, folder)
    with foreign(f"Importing {name!r} failed: it"):
        try:
            return _module_from_file(Path(name)) if name.endswith(".py") else import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or name
            raise UsageError(
                f"There is no module {name!r} on the path or in {here}."
                if name == missing or name.startswith(f"{missing}.")
                else f"Module {name!r} imports {missing!r}, which is not installed."
            ) from error


def _module_from_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    # A measure's file may be called torch.py; it must not become what others import as torch.
    taken = path.stem in sys.modules
    title = f"{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}" if taken else path.stem
    spec = importlib.util.spec_from_file_location(title, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[title] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[title]
        raise
    return module
